"""Question files: what loses, moves or repeats a row in silence is refused."""

import json

import pytest
from benchmark_folders import write_benchmark

from keras_betakd.data.parquet_files import parquet_rows
from keras_betakd.data.tables import expect_columns
from keras_betakd.evaluation import load_mmbench, read_jsonl
from keras_betakd.evaluation.benchmarks.registry import BENCHMARKS
from keras_betakd.evaluation.benchmarks.tsv_tables import read_tsv

TABLE = "mmbench_dev_20230712.tsv"
NUM = 4


@pytest.fixture
def table(tmp_path):
    """Eight rows of MMBench; the columns are those of the published file."""
    return write_benchmark("mmbench", tmp_path, NUM) / TABLE


def changed(path, change):
    """Applies a function to the list of the table's lines."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    path.write_text("\n".join(change(lines)) + "\n", encoding="utf-8", newline="")


def edited(number, function):
    def change(lines):
        lines[number - 1] = function(lines[number - 1])
        return lines

    return change


def opened(cell):
    return lambda line: line[: -len("dev")] + cell


@pytest.mark.parametrize("number", [2, 5, 9])
@pytest.mark.parametrize("column", [1, 3, 11])
def test_an_open_quotation_mark_is_found(table, number, column):
    """One mark left 1 of 8 rows, and no word was said."""

    def quote(line):
        cells = line.split("\t")
        cells[column] = '"' + cells[column]
        return "\t".join(cells)

    changed(table, edited(number, quote))
    with pytest.raises(
        ValueError, match=f"{TABLE}', line {number}[:,].*quotation mark"
    ):
        load_mmbench(table)


@pytest.mark.parametrize("last", [3, 5, 9])
def test_an_open_mark_that_another_one_closes(table, last):
    """The rows between them became one cell of a table with fewer rows."""
    changed(table, edited(2, opened('"dev')))
    changed(table, edited(last, opened('dev"')))
    with pytest.raises(ValueError, match="line 2, row 1: .* a whole line of the table"):
        load_mmbench(table)


def test_quoted_cells_that_are_right(table):
    changed(table, edited(2, lambda line: line.replace("What", '5" or 6"? What')))
    quoted = '"Say ""hi""\n\tor ""bye""?"'
    changed(
        table,
        edited(3, lambda line: line.replace("What color is the shape 1?", quoted)),
    )
    rows = load_mmbench(table)
    assert len(rows) == 2 * NUM
    assert rows[0].question == '5" or 6"? What color is the shape 0?'
    assert rows[1].question == 'Say "hi"\n\tor "bye"?'
    # The lines of a file are counted, not the rows.
    changed(table, edited(5, lambda line: line + "\tmore"))
    with pytest.raises(ValueError, match="line 5, row 3: must have as many cells"):
        load_mmbench(table)


CHANGES = {
    "a cell too many": (
        edited(4, lambda line: f"{line}\tx"),
        "line 4, row 3: must have",
    ),
    "a cell too few": (
        edited(4, lambda line: line.rpartition("\t")[0]),
        "line 4, row 3: must have as many cells as the header. Received: 11 cells",
    ),
    "an empty cell": (edited(4, lambda line: "\t"), "line 4, row 3: must have as many"),
    "half a line at the end": (
        edited(9, lambda line: line[:40]),
        "line 9, row 8: must have as many",
    ),
    "a carriage return": (
        edited(4, lambda line: line.replace("shape", "sh\rape")),
        "line 4, row 3: must have as many",
    ),
    "a column twice": (
        edited(1, lambda line: line.replace("hint", "question")),
        "line 1: the header has the column 'question' twice",
    ),
    "no index": (
        edited(1, lambda line: line.replace("index", "id")),
        "line 1: the header needs the column 'index'",
    ),
    "no header": (lambda lines: lines[1:], "line 1: the header needs the column"),
    "nothing": (lambda lines: [""], "line 1: the header needs the column"),
    "an index twice": (
        edited(4, lambda line: "01" + line[line.index("\t") :]),
        "line 4, row 3: the index '1' stands in a row above already",
    ),
    "the header twice": (
        lambda lines: [*lines, lines[0]],
        "line 10, row 9: .* integer",
    ),
    "two files in one": (
        edited(3, lambda line: "\ufeff" + line),
        "line 3: .* byte order mark",
    ),
    "a NUL byte": (
        edited(6, lambda line: line.replace("color", "col\0r")),
        "line 6: holds a NUL byte",
    ),
    "an answer that is no letter": (
        edited(4, lambda line: line.replace("\tleaf", "x\tleaf")),
        "line 4, row 3: The right answer must be one of",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_damaged_tables_are_refused_with_the_line(table, name):
    change, message = CHANGES[name]
    changed(table, change)
    with pytest.raises(ValueError, match=f"{TABLE}', {message}"):
        load_mmbench(table)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_other_encodings_are_refused(table, encoding):
    text = table.read_text(encoding="utf-8").replace("color", "colör")
    table.write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=TABLE):
        load_mmbench(table)


def test_ends_of_lines_and_byte_order_marks(table):
    expected = load_mmbench(table)
    data = table.read_bytes()
    for written in (
        b"\xef\xbb\xbf" + data,
        data.replace(b"\n", b"\r\n"),
        data.replace(b"\n", b"\n\n"),
        data.rstrip(b"\n"),
    ):
        table.write_bytes(written)
        assert load_mmbench(table) == expected


def test_places_of_rows(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('a\tb\n\n1\t"x\ny"\n2\tz\n')
    places = [(place, cells["a"]) for place, cells in read_tsv(path, ("a",))]
    name = repr(str(path))
    assert places == [(f"{name}, line 3, row 1", "1"), (f"{name}, line 5, row 2", "2")]


REPEATED = {
    "gqa": "llava_gqa_testdev_balanced.jsonl",
    "pope": "llava_pope_test.jsonl",
}


@pytest.mark.parametrize("name", REPEATED)
def test_an_id_that_stands_twice(name, tmp_path):
    folder = write_benchmark(name, tmp_path, NUM)
    path = folder / REPEATED[name]
    lines = read_jsonl(path)
    path.write_text("\n".join(json.dumps(line) for line in [*lines, lines[1]]))
    message = f"{path.name}', question {len(lines) + 1}: has the id .* of question 2"
    with pytest.raises(ValueError, match=message):
        BENCHMARKS[name].load(folder)


def test_an_annotation_that_stands_twice(tmp_path):
    folder = write_benchmark("textvqa", tmp_path, NUM)
    path = folder / "TextVQA_0.5.1_val.json"
    entries = json.loads(path.read_text())["data"]
    entries[2]["question_id"] = entries[0]["question_id"]
    path.write_text(json.dumps({"data": entries}))
    with pytest.raises(
        ValueError, match="entry 3: the question_id '34600' has an entry"
    ):
        BENCHMARKS["textvqa"].load(folder)


JSON_FILES = {
    "gqa": ["llava_gqa_testdev_balanced.jsonl", "testdev_balanced_questions.json"],
    "textvqa": ["llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json"],
    "pope": ["llava_pope_test.jsonl", "coco/coco_pope_random.json"],
    "scienceqa": ["problems.json", "pid_splits.json"],
}


@pytest.mark.parametrize(
    "name, file", [(name, file) for name, files in JSON_FILES.items() for file in files]
)
def test_a_key_that_stands_twice(name, file, tmp_path):
    """Of an image or answer that stood twice, the last one counted."""
    path = write_benchmark(name, tmp_path, NUM) / file
    text = path.read_text()
    place = max(text.find("{", 1), 0)  # of an inner object, if there is one
    path.write_text(f'{text[: place + 1]}"k": 1, "k": 2, {text[place + 1 :]}')
    with pytest.raises(ValueError, match=rf"{path.name}.*the key 'k' stands twice"):
        BENCHMARKS[name].load(tmp_path)


def test_damaged_text_files_of_mme(tmp_path):
    folder = write_benchmark("mme", tmp_path, 1)
    path = folder / "MME_Benchmark_release_version" / "OCR" / "0000.txt"
    text = path.read_text()
    for damaged in (text * 2, text.replace("\t", " "), text.replace("yes?", "y\0s?")):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="OCR/0000.txt' must hold two lines"):
            BENCHMARKS["mme"].load(folder)


def test_columns_that_stand_twice(tmp_path):
    with pytest.raises(ValueError, match=r"Row 1 has the columns \['a'\] twice"):
        expect_columns("Row 1", ["a", "b", "a"], ["a"])
    expect_columns("Row 1", ["a", "b", "b"], ["a"])
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    columns = [pyarrow.array(["x"]), pyarrow.array(["y"]), pyarrow.array(["z"])]
    table = pyarrow.Table.from_arrays(columns, names=["image", "question", "question"])
    parquet.write_table(table, path)
    with pytest.raises(ValueError, match=r"t.parquet' has the columns .* twice"):
        parquet_rows(path, ["image", "question"])
