"""Questions, captions and files of benchmarks, as they are on disk and the hub."""

import json

import datasets
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from keras_betakd.data import (
    LlavaDataset,
    ScienceQADataset,
    load_captions,
    load_chat,
    load_gqa,
    load_llava,
    load_scienceqa,
    load_textvqa,
    load_vqa,
    load_vqav2,
)
from keras_betakd.data.llava_records import read_images

RED = (220, 30, 30)


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (6, 4), RED).save(tmp_path / "1.png")
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.png").read_bytes())
    return tmp_path


def is_red(record):
    (image,) = read_images(record)
    return tuple(image[0, 0].tolist()) == RED


# --- Questions in files ---

CSV = 'id,image,question,answer\n7,1.png,"What, exactly?",a cat\n8,,2 + 2?,4\n'
ROWS = [
    {"id": 7, "image": "1.png", "question": "What, exactly?", "answer": "a cat"},
    {"id": 8, "image": None, "question": "2 + 2?", "answer": 4},
]
FILES = {
    "rows.json": json.dumps(ROWS),
    "rows.jsonl": "\n".join(map(json.dumps, ROWS)),
    "rows.csv": "\ufeff" + CSV,
    "rows.tsv": CSV.replace('"What, exactly?"', "What; exactly?").replace(",", "\t"),
}


@pytest.mark.parametrize("name", FILES)
def test_rows_are_read_by_the_ending(name, folder):
    # Reported bug: the error spoke of the magic bytes of Parquet.
    (folder / name).write_text(FILES[name], "utf-8")
    first, second = load_vqa(folder / name, folder, id_column="id")
    assert (first.id, second.id) == ("7", "8")
    assert first.prompts[0].replace(";", ",") == "<image>\nWhat, exactly?"
    assert is_red(first) and second.images == ()
    assert (first.responses, second.responses) == (("a cat",), ("4",))
    with pytest.raises(ValueError, match=r"lacks the columns \['q'\]"):
        load_vqa(folder / name, folder, question_column="q")


@pytest.mark.parametrize(
    "text, message",
    [
        ("id,question,id\n", "column names, each once"),
        ("", "column names, each once"),
        ("question,answer\n?,a,b\n", "line 2: a row must have 2 fields.*Received: 3"),
        ('question,answer\n?,a\n"?,a\n?,a\n', "line 4: unexpected end of data"),
        ("question,answer\n?,\n", "Record '0'.*`responses` must not be empty"),
    ],
)
def test_a_damaged_csv_file(text, message, folder):
    # An open quote had swallowed the rows behind it.
    (folder / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_vqa(folder / "rows.csv")


def test_a_row_of_csv_is_skipped(folder):
    (folder / "rows.csv").write_text("question,answer\n?,a\n?,a,b\n?,c\n")
    with pytest.warns(UserWarning, match="1 of 3 .*'1'.*line 3"):
        records = load_vqa(folder / "rows.csv", on_error="skip")
    assert [record.id for record in records] == ["0", "2"]


def _vqav2(path):
    return load_vqav2(path, path)


@pytest.mark.parametrize(
    "name, text, load",
    [
        ("rows.json", "[]", load_vqa),
        ("rows.jsonl", "", load_chat),
        ("rows.jsonl", "\n \n", load_llava),
        ("rows.csv", "question,answer\n", load_vqa),
        ("rows.tsv", "file_name\ttext\n", load_captions),
        ("coco.json", '{"images": [], "annotations": []}', load_captions),
        ("gqa.json", "{}", load_gqa),
        ("textvqa.json", '{"data": []}', load_textvqa),
        ("vqav2.json", '{"questions": [], "annotations": []}', _vqav2),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_file_without_records_is_named(name, text, load, on_error, folder):
    """Training said that there were none, and not of which file."""
    path = folder / name
    path.write_text(text)
    options = {} if load is _vqav2 else {"on_error": on_error}
    with pytest.raises(ValueError, match=rf"{name}' holds no \w+: a download"):
        load(path, **options)


def test_a_table_of_parquet_without_rows_is_named(folder):
    columns = {"image": [], "question": [], "answer": []}
    parquet.write_table(pyarrow.table(columns), folder / "0.parquet")
    with pytest.raises(ValueError, match="0.parquet' holds no records"):
        load_vqa(folder / "0.parquet")


def test_a_split_of_scienceqa_without_questions_is_named(folder):
    (folder / "problems.json").write_text("{}")
    (folder / "pid_splits.json").write_text('{"train": []}')
    with pytest.raises(ValueError, match="pid_splits.json' holds no ids of the split"):
        load_scienceqa(folder)


# --- Answers ---


@pytest.mark.parametrize(
    "answer, text",
    [
        (4, "4"),
        (4.0, "4"),
        (2.5, "2.5"),
        (np.int64(3), "3"),
        ([1, "1", "one"], "1"),
        ([{"answer": "no"}, {"answer": "yes"}, {"answer": "yes"}], "yes"),
        ([{"answer": "a", "answer_confidence": "yes", "answer_id": 1}], "a"),
        ({"answer": ["no", "yes", "yes"], "answer_id": [1, 2, 3]}, "yes"),
        ({"text": ["Paris"], "answer_start": [4]}, "Paris"),
    ],
)
def test_answers_as_data_sets_have_them(answer, text):
    # Reported bug: "prompts and responses must be strings", or a dict's text.
    (record,) = load_vqa([{"image": None, "question": "?", "answer": answer}])
    assert record.responses == (text,)


@pytest.mark.parametrize("answer", [None, np.nan, True, [], [None], [{"a": 1}], {}])
def test_no_answer_is_no_text(answer):
    # "None" was trained as an answer.
    rows = [{"image": None, "question": "?", "answer": answer}]
    with pytest.raises(ValueError, match="Record '0': .*answer"):
        load_vqa(rows)
    with pytest.warns(UserWarning, match="1 of 1"):
        assert len(load_vqa(rows, on_error="skip")) == 0


@pytest.mark.parametrize("key", ["image_path", "img", "file_name", "video"])
def test_a_question_whose_image_is_elsewhere(key):
    rows = [{key: "a.png", "question": "What is it?", "answer": "a"}]
    with pytest.raises(ValueError, match=f"Record '0': .*{key}='a.png'"):
        load_vqa(rows)


def test_a_question_with_marks_of_its_own(folder):
    # Reported bug: a second mark was put in front, and the first became text.
    row = {"image": "1.png", "question": "Is <image> red?", "answer": "yes"}
    (record,) = load_vqa([row], folder)
    assert record.prompts == ("Is <image> red?",)
    two = {**row, "question": "<image> or <image>?"}
    with pytest.raises(ValueError, match="Record '0'.*2 marks, 1 images"):
        load_vqa([two], folder)
    with pytest.raises(ValueError, match="No record has an image, but 1"):
        load_vqa([{**row, "image": None}])


# --- Captions ---


def coco(folder, **changes):
    value = {
        "info": {},
        "images": [{"id": 9, "file_name": "1.png", "height": 4, "width": 6}],
        "annotations": [
            {"id": 70, "image_id": 9, "caption": "A red square."},
            {"id": 71, "image_id": 9, "caption": "Red."},
        ],
        **changes,
    }
    path = folder / "captions_train2017.json"
    path.write_text(json.dumps(value))
    return path


def test_captions_of_coco(folder):
    first, second = load_captions(coco(folder), folder)
    assert (first.id, first.prompts, first.responses) == (
        *("70", ("<image>",)),
        ("A red square.",),
    )
    assert is_red(first) and second.id == "71"
    (record, _) = load_captions(coco(folder), folder, prompt="Describe <b>.")
    assert record.prompts == ("<image>\nDescribe <b>.",)


def test_captions_without_their_image(folder):
    path = coco(folder, annotations=[{"id": 7, "image_id": 8, "caption": "A."}])
    with pytest.raises(ValueError, match="annotation 0 must have the `image_id`"):
        load_captions(path, folder)
    with pytest.warns(UserWarning, match="1 of 1"):
        load_captions(path, folder, on_error="skip")
    with pytest.raises(ValueError, match="Record '0': a caption needs one image"):
        load_captions([{"caption": "A."}])
    with pytest.raises(ValueError, match="Record '0': a row must have one caption"):
        load_captions([{"image": "1.png", "text": "A.", "caption": "B."}], folder)
    with pytest.raises(ValueError, match="a caption must be a text"):
        load_captions([{"image": "1.png", "caption": 7}], folder)
    with pytest.raises(ValueError, match="`prompt` must not hold the image mark"):
        load_captions([], prompt="<image>")
    coco(folder).write_text('{"images": [')
    with pytest.raises(ValueError, match="captions_train2017.json"):
        load_captions(folder / "captions_train2017.json", folder)


METADATA = {
    "metadata.jsonl": '{"file_name": "1.png", "text": "Red."}\n',
    "metadata.csv": "file_name,text\n1.png,Red.\n",
}


@pytest.mark.parametrize("name", METADATA)
def test_captions_of_an_image_folder(name, folder):
    (folder / name).write_text(METADATA[name])
    (record,) = load_captions(folder)
    assert record.responses == ("Red.",) and is_red(record)
    for other, text in METADATA.items():
        (folder / other).write_text(text)
    with pytest.raises(ValueError, match="must have one of"):
        load_captions(folder)


def test_captions_of_tables(folder):
    rows = [{"image": str(folder / "1.png"), "caption": ["Red.", "A square."]}]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    for source in (rows, table):
        records = load_captions(source)
        assert [r.responses[0] for r in records] == ["Red.", "A square."]
        assert [r.id for r in records] == ["0", "1"] and is_red(records[1])
    batch = LlavaDataset(load_captions(table, prompt="Describe it."), 2)[0]
    assert batch["prompts"] == ["<image>\nDescribe it."] * 2


# --- ScienceQA as a table ---


def problems(folder):
    image = {"bytes": (folder / "1.png").read_bytes(), "path": "image.png"}
    row = {"question": "A mammal?", "choices": ["cat", "trout"], "answer": 0}
    row |= {"hint": "Look.", "subject": "natural science", "grade": "grade2"}
    row |= {"task": "closed choice", "solution": "", "lecture": None}
    return [{**row, "image": image}, {**row, "image": None, "answer": 1}]


def test_scienceqa_as_a_table(folder):
    rows = problems(folder)
    files = folder / "data"
    files.mkdir()
    for split in ("train", "validation"):
        path = files / f"{split}-00000-of-00001-abc.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    for records in (
        load_scienceqa(rows),
        load_scienceqa(table),
        load_scienceqa(files, "val"),
        load_scienceqa(path),
    ):
        first, second = ScienceQADataset(records, 1)
        assert first["prompts"][0].startswith("<image>\nContext: Look.\nA m")
        assert first["responses"][0] == "A"
        assert tuple(first["images"][0][0][0, 0].tolist()) == RED
        assert (second["ids"][0], second["images"]) == ("1", [[]])
    assert len(load_scienceqa(table)[0].image) == 0, "the file is held"
    with pytest.raises(ValueError, match="`split` must be one of.*'validation'"):
        load_scienceqa(files)
    with pytest.raises(ValueError, match="`split` must be one of.*split='test'"):
        load_scienceqa(files, "test")


def test_tables_that_are_not_scienceqa(folder):
    rows = problems(folder)
    with pytest.raises(ValueError, match=r"lacks the columns \['choices'\]"):
        load_scienceqa([{k: v for k, v in rows[0].items() if k != "choices"}])
    with pytest.raises(ValueError, match="Record '1': `answer` must be the index"):
        load_scienceqa([rows[0], {**rows[1], "answer": "cat"}])
    with pytest.warns(UserWarning, match="1 of 2.*'1'"):
        load_scienceqa([rows[0], {**rows[1], "answer": 2}], on_error="skip")
    with pytest.raises(TypeError, match="without streaming"):
        load_scienceqa(iter(rows))


# --- Training files of benchmarks ---


def test_textvqa_and_gqa(folder):
    answers = ["nokia"] * 6 + ["nokia phone"] * 4
    entry = {"question_id": 0, "image_id": "1", "question": "what brand?"}
    entry |= {"answers": answers, "image_classes": ["Phone"], "set_name": "train"}
    textvqa = folder / "TextVQA_0.5.1_train.json"
    textvqa.write_text(json.dumps({"dataset_name": "textvqa", "data": [entry]}))
    gqa = folder / "train_balanced_questions.json"
    question = {"imageId": "1", "question": "Is it red?", "answer": "yes"}
    question |= {"fullAnswer": "Yes, it is red.", "isBalanced": True}
    gqa.write_text(json.dumps({"07333408": question}))
    (record,) = load_textvqa(textvqa, folder, prompt_suffix=" Now.")
    assert record.prompts == ("<image>\nwhat brand? Now.",)
    assert (record.id, record.responses, is_red(record)) == ("0", ("nokia",), True)
    (record,) = load_gqa(gqa, folder)
    assert (record.id, record.responses) == ("07333408", ("yes",))
    for load, other in ((load_textvqa, gqa), (load_gqa, textvqa)):
        with pytest.raises(ValueError, match="must hold an object with"):
            load(other, folder)
    del question["answer"]
    gqa.write_text(json.dumps({"07333408": question}))
    with pytest.raises(ValueError, match="Record '07333408': an entry must have"):
        load_gqa(gqa, folder)
    with pytest.warns(UserWarning, match="1 of 1"):
        load_gqa(gqa, folder, on_error="skip")
