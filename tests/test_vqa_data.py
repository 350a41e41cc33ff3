"""Questions out of lists, tables and the files of VQAv2 and LLaVA's ScienceQA."""

import base64
import csv
import dataclasses
import json
import pickle
import sys

import datasets
import numpy as np
import pyarrow
import pytest
from benchmark_folders import write_benchmark
from benchmark_golden import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from scienceqa_folder import edit_problem, write_folder

from keras_betakd.data import (
    LlavaDataset,
    load_scienceqa,
    scienceqa_prompt,
    scienceqa_response,
)
from keras_betakd.data.llava_records import read_images
from keras_betakd.data.scienceqa import FORMS
from keras_betakd.data.scienceqa_llava import load_scienceqa_llava
from keras_betakd.data.vqa import load_vqa, load_vqav2
from keras_betakd.evaluation.benchmarks.registry import BENCHMARKS

RED = np.full((4, 6, 3), (220, 30, 30), "uint8")


@pytest.fixture
def path(tmp_path):
    Image.fromarray(RED).save(tmp_path / "1.png")
    return tmp_path / "1.png"


def row(image=None, question="What is it?", answer="a cat", **more):
    return {"image": image, "question": question, "answer": answer, **more}


# --- Lists ---


def test_every_kind_of_image(path):
    pixels, data = Image.open(path), path.read_bytes()
    cells = [None, str(path), {"bytes": data, "path": None}, data, pixels, RED]
    cells += [{"bytes": None, "path": str(path)}, [str(path), RED]]
    records = load_vqa([row(cell) for cell in cells])
    assert [len(record.images) for record in records] == [0, 1, 1, 1, 1, 1, 1, 2]
    for record in records:
        marks = "<image>\n" * len(record.images)
        assert record.prompts == (f"{marks}What is it?",)
        for image in read_images(record):
            np.testing.assert_array_equal(image, RED)
    batch = LlavaDataset(records, batch_size=8)[0]
    assert batch["responses"] == ["a cat"] * 8
    assert batch["ids"] == list("01234567")


def test_names_of_columns_and_folders(path):
    rows = [{"picture": "1.png", "q": "A < image>?", "a": ["no", "yes", "yes"], "n": 7}]
    (record,) = load_vqa(
        rows,
        image_folder=path.parent,
        image_column="picture",
        question_column="q",
        answer_column="a",
        id_column="n",
        prompt_suffix="\nOne word.",
    )
    assert record.id == "7"
    assert record.prompts == ("<image>\nA < image>?\nOne word.",)
    assert record.responses == ("yes",)
    np.testing.assert_array_equal(read_images(record)[0], RED)
    # A list may leave the image out altogether.
    assert load_vqa([{"question": "?", "answer": "a"}])[0].images == ()


def test_missing_images(path):
    rows = [row(str(path)), row(str(path.parent / "2.png"))]
    with pytest.raises(FileNotFoundError, match="Record '1'"):
        load_vqa(rows)
    with pytest.warns(UserWarning, match="1 of 2"):
        records = load_vqa(rows, on_error="skip")
    assert [record.id for record in records] == ["0"]
    assert records.skipped[0][0] == "1"


def test_rows_that_cannot_be_used_are_skipped(path):
    rows = [
        row(str(path), n="a"),
        "?",
        row(question=7, n="b"),
        {"image": None, "question": "?", "n": "c"},
        row(answer=[], n="d"),
        row(answer=" ", n="e"),
        row(image=3.5, n="f"),
        row(n=1.5),
        row(n="a"),
    ]
    for invalid in rows[1:-1]:
        with pytest.raises(ValueError):
            load_vqa([rows[0], invalid], id_column="n")
    with pytest.warns(UserWarning, match="7 of 9") as caught:
        records = load_vqa(rows, id_column="n", on_error="skip")
    assert [caught[0].filename, len(caught)] == [__file__, 1]
    assert [record.id for record in records] == ["a", "a#2"]
    assert [name for name, _ in records.skipped] == ["1", *"bcdef", "7"]
    for name, reason in records.skipped:
        assert f"Record {name!r}" in reason


@pytest.mark.parametrize(
    "rows, error, message",
    [
        ([{"question": "?"}], ValueError, r"The list lacks the columns \['answer'\]"),
        (["?"], ValueError, "Record '0': a row must be a dict"),
        ([row(question=7)], ValueError, "Record '0': a question must be a string"),
        ([row(answer=True)], ValueError, "Record '0'.*string"),
        ([row(question=" ")], ValueError, "Record '0': a question must not be empty"),
        ([row(answer=[])], ValueError, "a list of answers must hold strings"),
        ([row(answer=["a", None])], ValueError, "a list of answers must hold strings"),
        ([row(answer=" ")], ValueError, "must not be empty"),
        ([row(image=3.5)], ValueError, "Record '0': an image must be"),
        ({"train": []}, TypeError, "one split of a `DatasetDict`"),
        (7, TypeError, "Received: int"),
    ],
)
def test_invalid_rows(rows, error, message):
    with pytest.raises(error, match=message):
        load_vqa(rows)


# --- Tables ---


class Feature:
    """Stands for `datasets.Image`."""

    def __init__(self, decode=True):
        self.decode = decode


class Table:
    """Stands for a `datasets.Dataset` with images; counts the rows that are read."""

    def __init__(self, rows, decode=True):
        self.rows = rows
        self.features = {"image": Feature(decode)}
        self.column_names = list(rows[0])
        self.read = 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.read += 1
        assert not self.features["image"].decode, "pixels were decoded"
        return self.rows[index]

    def cast_column(self, column, feature):
        assert column == "image"
        return Table(self.rows, feature.decode)


def test_images_of_a_dataset_are_read_when_needed(path):
    data = path.read_bytes()
    cells = [
        {"bytes": data, "path": "1.png"},
        data,
        None,
        {"bytes": None, "path": path},
    ]
    records = load_vqa(Table([row(cell) for cell in cells]))
    assert [len(record.images) for record in records] == [1, 1, 0, 1]
    table = records[0].images[0].place[0]
    before = table.read
    for copy in (records[0], pickle.loads(pickle.dumps(records[1]))):
        assert len(copy.images[0]) == 0, "the file is held"
        np.testing.assert_array_equal(read_images(copy)[0], RED)
    assert table.read == before + 1
    np.testing.assert_array_equal(read_images(records[3])[0], RED)


def test_a_table_without_the_column(path):
    with pytest.raises(ValueError, match=r"The table lacks the columns \['picture'\]"):
        load_vqa(Table([row(None)]), image_column="picture")


NAMES = {"image": "picture", "question": "q", "answer": "a", "id": "n"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("kind", ["list", "table", "parquet"])
def test_a_name_of_no_column_is_found_before_any_row_is_read(
    name, on_error, kind, tmp_path
):
    # Reported bug: with a wrong name of the images, a list was trained without them.
    # The row lacks an answer, and must not be what the error is about.
    rows = [{**{column: None for column in NAMES.values()}, "more": 1}]
    if kind == "parquet":
        write_parquet(tmp_path / "rows" / "a.parquet", rows)
    source = {"list": rows, "parquet": tmp_path / "rows"}.get(kind) or Table(rows)
    options = {f"{key}_column": column for key, column in NAMES.items()}
    options[f"{name}_column"] = "wrong"
    received = sorted(rows[0])
    message = rf"lacks the columns \['wrong'\].*`{name}_column`.* Received: \{received}"
    with pytest.raises(ValueError, match=message):
        load_vqa(source, on_error=on_error, **options)


def test_a_column_that_some_rows_of_a_list_lack(path):
    rows = [row(str(path)), {"question": "?"}, {"question": "?", "answer": "a"}]
    with pytest.raises(ValueError, match=r"Record '1' lacks the columns \['answer'\]"):
        load_vqa(rows)
    with pytest.warns(UserWarning, match="1 of 3"):
        records = load_vqa(rows, on_error="skip")
    assert [len(record.images) for record in records] == [1, 0]


def test_a_dataset_of_hugging_face(path):
    rows = [row(str(path)), row(None), row(str(path), answer="b")]
    columns = {key: [r[key] for r in rows] for key in rows[0]}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    records = load_vqa(dataset.select([2, 1, 0]))
    assert [record.responses for record in records] == [("b",), ("a cat",), ("a cat",)]
    assert [len(record.images) for record in records] == [1, 0, 1]
    np.testing.assert_array_equal(read_images(records[0])[0], RED)
    # The images that a format hides were lost.
    with pytest.raises(ValueError, match=r"hides columns.*\['image'\] hidden"):
        load_vqa(dataset.with_format(columns=["question", "answer"]))


def write_parquet(path, rows):
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_parquet_files_of_a_folder(path, tmp_path):
    cell = {"bytes": path.read_bytes(), "path": "1.png"}
    folder = tmp_path / "parquet"
    write_parquet(folder / "b.parquet", [row(None, answer="b", extra=1)])
    write_parquet(folder / "a.parquet", [row(cell, answer="a")])
    records = load_vqa(folder)
    assert [record.responses for record in records] == [("a",), ("b",)]
    np.testing.assert_array_equal(read_images(records[0])[0], RED)
    assert len(load_vqa(folder / "a.parquet")) == 1
    with pytest.raises(ValueError, match=r"a.parquet' lacks the columns \['q'\]"):
        load_vqa(folder, question_column="q")
    (folder / "c.parquet").write_bytes(b"broken")
    with pytest.raises(ValueError, match="Not a Parquet file: .*c.parquet"):
        load_vqa(folder)
    with pytest.raises(FileNotFoundError, match="no Parquet file"):
        load_vqa(tmp_path)


@pytest.mark.parametrize("ending", ["parquet", "tar"])
@pytest.mark.parametrize("other", ["test", "validation", "val", "dev"])
def test_a_folder_of_several_splits(ending, other, tmp_path):
    """All were trained, those of the test with them."""
    names = [f"train-00000-of-00001.{ending}", f"{other}-00000-of-00001.{ending}"]
    for name in names:
        if ending == "parquet":
            write_parquet(tmp_path / name, [row()])
        else:
            (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"of one split.*train.*{names[1]}"):
        load_vqa(tmp_path)
    if ending == "parquet":
        assert len(load_vqa(tmp_path / "train-*.parquet")) == 1
        write_parquet(tmp_path / "train-00001.parquet", [row()])
        (tmp_path / names[1]).unlink()
        assert len(load_vqa(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["list", "arrow", "table", "stream", "parquet"])
def test_numbers_of_few_bits(kind, tmp_path):
    """0.1 was trained as 0.10000000149011612."""
    few = pyarrow.float32()
    for answers, type_of_column, texts in (
        ([0.1, 2.0], few, ["0.1", "2"]),
        ([[0.1, 0.1], [3.5]], pyarrow.list_(few), ["0.1", "3.5"]),
    ):
        columns = {"image": [None, None], "question": ["?", "?"]}
        columns["answer"] = pyarrow.array(answers, type_of_column)
        source = pyarrow.table(columns)
        if kind == "list":
            source = [row(answer=np.array(answer, "float32")[()]) for answer in answers]
        elif kind == "parquet":
            parquet.write_table(source, tmp_path / "a.parquet")
            source = tmp_path / "a.parquet"
        elif kind in ("table", "stream"):
            source = datasets.Dataset(source)
            source = source.to_iterable_dataset() if kind == "stream" else source
        assert [record.responses[0] for record in load_vqa(source)] == texts


def test_csv_files_that_pandas_writes(path):
    """A long field was refused, and lists were trained with their brackets."""
    file, head = path.parent / "a.csv", "image,question,answer\n"
    address = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    limit = csv.field_size_limit()
    file.write_text(f'{head}"{address}",{"q" * 200_000},a\n')
    (record,) = load_vqa(file)
    assert len(record.prompts[0]) > 200_000 and csv.field_size_limit() == limit
    np.testing.assert_array_equal(read_images(record)[0], RED)
    file.write_text(f",{head}0,1.png,What?,a\n")
    with pytest.raises(ValueError, match="first column has no name.*index=False"):
        load_vqa(file, path.parent)
    for cell in ("['cat', 'dog']", '["cat", "dog"]', "['cat' 'dog']"):
        with open(file, "w", newline="") as stream:
            csv.writer(stream).writerows([head.strip().split(","), ["", "Hi", cell]])
        with pytest.raises(ValueError, match="Record '0': a list of answers is a text"):
            load_vqa(file)
        assert load_vqa([row(answer=cell)])[0].responses == (cell,)
    file.write_text(f"{head}1.png,,a\n1.png,Hi,a\n")
    with pytest.warns(UserWarning, match="question must not be empty"):
        assert len(load_vqa(file, path.parent, on_error="skip")) == 1


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        load_vqa(tmp_path)


# --- VQAv2 ---


def vqav2(folder, **annotation):
    questions = {
        "data_subtype": "train2014",
        "questions": [
            {"question_id": 42, "image_id": 9, "question": "Is it red?"},
            {"question_id": 41, "image_id": 9, "question": "Is it blue?"},
        ],
    }
    answers = [{"answer": text} for text in ("no", "yes", "yes")]
    annotations = [
        {"question_id": 41, "multiple_choice_answer": "no"},
        {"question_id": 42, "answers": answers} | annotation,
    ]
    paths = folder / "questions.json", folder / "annotations.json"
    paths[0].write_text(json.dumps(questions))
    paths[1].write_text(json.dumps({"annotations": annotations}))
    Image.fromarray(RED).save(folder / "COCO_train2014_000000000009.jpg")
    return paths


def test_vqav2(tmp_path):
    records = load_vqav2(*vqav2(tmp_path), tmp_path, prompt_suffix=" Now.")
    assert [record.id for record in records] == ["42", "41"]
    assert [record.responses for record in records] == [("yes",), ("no",)]
    assert records[0].prompts == ("<image>\nIs it red? Now.",)
    assert read_images(records[0])[0].shape == RED.shape


def test_invalid_vqav2(tmp_path):
    paths = vqav2(tmp_path, question_id=43)
    with pytest.raises(ValueError, match="Record '42': each question needs an annot"):
        load_vqav2(*paths, tmp_path)
    paths = vqav2(tmp_path)
    with pytest.raises(ValueError, match="Record '42': the name of its image"):
        load_vqav2(*paths, tmp_path, image_name="{image_id}_{split}.jpg")
    with pytest.raises(FileNotFoundError, match="Record '42'"):
        load_vqav2(*paths, tmp_path, image_name="{image_id}.jpg")
    with pytest.raises(ValueError, match="a list under 'questions'"):
        load_vqav2(paths[1], paths[0], tmp_path)
    with pytest.raises(FileNotFoundError):
        load_vqav2(tmp_path / "none.json", paths[1])
    paths[0].write_text("[")
    with pytest.raises(ValueError, match="Not a JSON file"):
        load_vqav2(*paths)


def test_questions_of_vqav2_that_cannot_be_used_are_skipped(tmp_path):
    paths = vqav2(tmp_path, question_id=43)
    value = json.loads(paths[0].read_text())
    value["questions"] += [
        {"question_id": True},
        {"question_id": 41, "image_id": 8, "question": "Is it there?"},
        {"question_id": 43, "question": "Which image?"},
        {"question_id": 41, "image_id": 9, "question": None},
    ]
    paths[0].write_text(json.dumps(value))
    with pytest.raises(ValueError, match="entry 2 of 'questions' must be"):
        load_vqav2(*paths, tmp_path)
    with pytest.warns(UserWarning, match="5 of 6") as caught:
        records = load_vqav2(*paths, tmp_path, on_error="skip")
    assert [caught[0].filename, len(caught)] == [__file__, 1]
    assert [record.id for record in records] == ["41"]
    skipped = dict(records.skipped)
    assert list(skipped) == ["42", "2", "41#2", "43", "41#3"]
    assert "needs an annotation" in skipped["42"]
    assert "COCO_train2014_000000000008.jpg" in skipped["41#2"]
    # An annotation that belongs to no question leaves its question without one.
    paths = vqav2(tmp_path, question_id=None)
    with pytest.raises(ValueError, match="entry 1 of 'annotations' must be"):
        load_vqav2(*paths, tmp_path)
    with pytest.warns(UserWarning, match="1 of 2"):
        records = load_vqav2(*paths, tmp_path, on_error="skip")
    assert [record.id for record in records] == ["41"]


# --- LLaVA's ScienceQA ---


def llava_entries(folder, form="llava-1.0"):
    """Entries of the test split, as LLaVA's converter writes them by default."""
    entries = []
    for record in load_scienceqa(folder, "test"):
        prompt = scienceqa_prompt(record, form=form).removeprefix("<image>\n")
        entry = {"id": record.id}
        if record.image is not None:
            prompt, entry["image"] = f"{prompt}\n<image>", f"{record.id}/image.png"
        answer = scienceqa_response(record, form=form)
        turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
        entries.append({**entry, "conversations": turns})
    return entries


def write_llava(folder, entries):
    path = folder / "llava_test_CQM-A.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture
def scienceqa(tmp_path):
    write_folder(tmp_path, num=6, split_sizes={"train": 2, "test": 4})
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_llavas_questions_are_those_of_the_official_files(scienceqa, form):
    """Its own file of LLaVA-1.5's form was refused at the first record."""
    entries = llava_entries(scienceqa, form)[::-1]
    records = load_scienceqa_llava(write_llava(scienceqa, entries), scienceqa)
    official = list(load_scienceqa(scienceqa, "test"))[::-1]
    assert [dataclasses.replace(r, prompt="") for r in records] == official
    asked = [scienceqa_prompt(r) for r in records]
    assert asked == [scienceqa_prompt(r, form=form) for r in official]


def test_published_entries(tmp_path):
    (golden,) = (c for c in GOLDEN["prompts"] if c["name"] == "scienceqa_cqm_a")
    problems = golden["inputs"]["problems"]
    entries = [expected["entry"] for expected in golden["expected"]]
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "images").mkdir()
    for entry in entries:
        split = problems[entry["id"]].setdefault("split", "test")
        folder = tmp_path / "images" / split / entry["id"]
        folder.mkdir(parents=True)
        Image.fromarray(RED).save(folder / "image.png")
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    path = write_llava(tmp_path, entries)
    splits = {problems[entry["id"]]["split"] for entry in entries}
    records = load_scienceqa_llava(path, tmp_path, *splits)
    assert [record.id for record in records] == [entry["id"] for entry in entries]


def test_llavas_file_of_other_questions(scienceqa):
    entries = llava_entries(scienceqa)
    edit_problem(scienceqa, entries[1]["id"], hint="Another.")
    path = write_llava(scienceqa, entries)
    with pytest.raises(
        ValueError, match=f"Record '{entries[1]['id']}'.*the hint 'Another.'"
    ):
        load_scienceqa_llava(path, scienceqa)
    path = write_llava(scienceqa, [{**entries[0], "id": "99"}])
    with pytest.raises(ValueError, match="Record '99': problems.json lacks"):
        load_scienceqa_llava(path, scienceqa)
    (scienceqa / "images" / "test" / entries[0]["image"]).rename(scienceqa / "x.png")
    path = write_llava(scienceqa, entries[:1])
    with pytest.raises(FileNotFoundError, match=f"Record '{entries[0]['id']}'"):
        load_scienceqa_llava(path, scienceqa)
    del entries[0]["image"]
    path = write_llava(scienceqa, entries[:1])
    with pytest.raises(ValueError, match=f"Record '{entries[0]['id']}'"):
        load_scienceqa_llava(path, scienceqa)


def test_llavas_questions_that_cannot_be_used_are_skipped(scienceqa):
    entries = llava_entries(scienceqa)
    edit_problem(scienceqa, entries[0]["id"], hint="Another.")
    (with_image,) = (e for e in entries[1:] if "image" in e)
    (scienceqa / "images" / "test" / with_image["image"]).unlink()
    unknown = {**entries[1], "id": "99", "image": None}
    # The index of an entry that is no record is left to the question of that id.
    path = write_llava(scienceqa, [unknown, 7, {"id": [1]}, "3", *entries])
    with pytest.warns(UserWarning, match="6 of 8") as caught:
        records = load_scienceqa_llava(path, scienceqa, on_error="skip")
    assert [caught[0].filename, len(caught)] == [__file__, 1]
    invalid = [entries[0]["id"], with_image["id"]]
    assert [name for name, _ in records.skipped] == ["99", "1", "2", "3", *invalid]
    kept = [entry["id"] for entry in entries if entry["id"] not in invalid]
    assert [record.id for record in records] == kept


# --- Damaged data of every kind ---

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
PIECES = st.sampled_from(["", "<image>", "../1.png", "yes", "A", "0", "\0", "\ud800"])
VALUES = st.recursive(
    SCALARS | PIECES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.just("bytes"), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def mutations(draw):
    """A change of one place in JSON: where (as fractions of the way), and to what."""
    return draw(st.lists(st.floats(0, 1, exclude_max=True), max_size=5)), draw(VALUES)


def mutated(value, way, new):
    """A copy with one place replaced, or taken out of its dict if `new` is None."""
    if not way or not isinstance(value, (dict, list)) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = keys[int(way[0] * len(keys))]
    copy = value.copy()
    if len(way) == 1 and new is None and isinstance(value, dict):
        del copy[key]
    else:
        copy[key] = mutated(value[key], way[1:], new)
    return copy


ROWS = [row(), row("1.png", id=3), row([RED.tolist()], answer=["a", "b"])]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of each loader: the files to damage, and how to load them."""
    root = tmp_path_factory.mktemp("damaged")
    found = {name: write_benchmark(name, root / name, 2) for name in BENCHMARKS}
    (root / "vqav2").mkdir()
    vqav2(root / "vqav2")
    write_llava(found["scienceqa"], llava_entries(found["scienceqa"]))
    return root


def load_files(name, root):
    folder = root / name
    if name == "vqav2":
        return load_vqav2(
            folder / "questions.json", folder / "annotations.json", folder
        )
    if name == "scienceqa_llava":
        folder = root / "scienceqa"
        return load_scienceqa_llava(folder / "llava_test_CQM-A.json", folder)
    return BENCHMARKS[name].load(folder)


DAMAGED = {
    "vqav2": ["vqav2/questions.json", "vqav2/annotations.json"],
    "scienceqa": ["scienceqa/problems.json", "scienceqa/pid_splits.json"],
    "scienceqa_llava": ["scienceqa/llava_test_CQM-A.json", "scienceqa/problems.json"],
    "gqa": [
        "gqa/llava_gqa_testdev_balanced.jsonl",
        "gqa/testdev_balanced_questions.json",
    ],
    "textvqa": [
        "textvqa/llava_textvqa_val_v051_ocr.jsonl",
        "textvqa/TextVQA_0.5.1_val.json",
    ],
    "pope": ["pope/llava_pope_test.jsonl", "pope/coco/coco_pope_popular.json"],
}
few = settings(max_examples=150)


@pytest.mark.parametrize("name", DAMAGED)
@few
@given(which=st.sampled_from([0, 1]), mutation=mutations())
def test_damaged_files(folders, name, which, mutation):
    """Damaged files give records or a documented error."""
    path = folders / DAMAGED[name][which]
    intact = path.read_text()
    way, new = mutation
    if path.suffix == ".jsonl" or "coco_pope" in path.name:
        lines = [json.loads(line) for line in intact.splitlines()]
        damaged = mutated(lines, [0.0, *way], new)
        text = "\n".join(map(json.dumps, damaged))
    else:
        text = json.dumps(mutated(json.loads(intact), way, new))
    path.write_text(text)
    try:
        load_files(name, folders)
    except (FileNotFoundError, ValueError) as error:
        assert str(error)
    finally:
        path.write_text(intact)


@few
@given(mutation=mutations())
def test_damaged_rows(mutation):
    rows = mutated(ROWS, *mutation)
    try:
        load_vqa(rows, id_column="id" if mutation[1] == "A" else None)
    except (FileNotFoundError, TypeError, ValueError) as error:
        assert str(error)


@few
@given(text=st.text(max_size=30) | st.text("\t\nyesno. ", max_size=30))
def test_damaged_lines_of_mme_and_mmbench(folders, text):
    for name, file in (
        ("mme", "MME_Benchmark_release_version/OCR/0000.txt"),
        ("mmbench", "mmbench_dev_20230712.tsv"),
    ):
        path = folders / name / file
        intact = path.read_bytes()
        damaged = intact[: len(intact) // 2] + text.encode("utf-8", "surrogatepass")
        path.write_bytes(damaged)
        try:
            BENCHMARKS[name].load(folders / name)
        except (FileNotFoundError, ValueError) as error:
            assert str(error)
        finally:
            path.write_bytes(intact)
