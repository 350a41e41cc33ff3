"""What must hold in every loader and benchmark: marks, images, end marks."""

import functools
import inspect
import json
import shutil

import numpy as np
import pytest
from benchmark_folders import RIGHT, write_benchmark
from PIL import Image
from tiny_families import FAMILIES
from tiny_models import tiny_gemma3

from keras_betakd import data
from keras_betakd.data import (
    load_llava,
    load_scienceqa,
    load_vqa,
    load_vqav2,
    neutralize_image_marks,
)
from keras_betakd.evaluation import run
from keras_betakd.evaluation.benchmarks.registry import BENCHMARKS
from keras_betakd.evaluation.run import answer_lines
from keras_betakd.preprocessing.model_inputs import model_inputs

MARKS = "<image><start_of_image><|image_pad|>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    return {name: write_benchmark(name, root / name, 3) for name in BENCHMARKS}


@pytest.fixture
def copied(folders, tmp_path):
    def copy(name):
        return shutil.copytree(folders[name], tmp_path / name)

    return copy


# --- Marks in the text of users ---

# Questions, a hint and choices: what is replaced, and by what.
MARKED = {
    "scienceqa": [("color", f"color {MARKS}"), ('"blue"', f'"blue {MARKS}"')],
    "gqa": [("color", f"color {MARKS}")],
    "textvqa": [("color", f"color {MARKS}"), ("RED", f"RED {MARKS}")],
    "pope": [("a cat", f"a cat {MARKS}")],
    "mme": [("Is it", f"Is {MARKS} it")],
    "mmbench": [
        ("What color", f"What color {MARKS}"),
        ("Look.", f"Look {MARKS}."),
        ("\tblue\t", f"\tblue {MARKS}\t"),
    ],
}


def with_marks(name, folder):
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".tsv", ".txt"):
            text = path.read_text()
            for old, new in MARKED[name]:
                text = text.replace(old, new)
            path.write_text(text)
    return folder


@pytest.mark.parametrize("name", BENCHMARKS)
def test_marks_in_questions_choices_and_hints(name, copied):
    # Reported bug: literal marks in user text counted as images. Neutralized ones
    # also kept answer files of this library from being matched with their questions.
    benchmark = BENCHMARKS[name]
    questions = benchmark.load(with_marks(name, copied(name)))
    prompts = [benchmark.prompt(question) for question in questions]
    for question, prompt in zip(questions, prompts, strict=True):
        own = prompt.removeprefix("<image>\n") if question.image else prompt
        assert own == neutralize_image_marks(own)
        assert prompt.startswith("<image>\n") == (question.image is not None)
    assert "< start_of_image>" in "".join(prompts)
    image = np.zeros((4, 4, 3), "uint8")
    images = [[image] if q.image is not None else [] for q in questions]
    preprocessor = tiny_gemma3(sequence_length=320).preprocessor
    model_inputs(preprocessor, {"prompts": prompts, "images": images})
    lines = [benchmark.line(q, RIGHT[name](q)) for q in questions]
    expected = {question.id: RIGHT[name](question) for question in questions}
    assert benchmark.answers(questions, lines) == expected
    run.check_questions(benchmark, questions)


def test_marks_behind_the_questions():
    row = {"image": None, "question": "?", "answer": "a"}
    with pytest.raises(
        ValueError, match="`prompt_suffix` must not hold the image mark"
    ):
        load_vqa([row], prompt_suffix="\n<image>")
    with pytest.raises(
        ValueError, match="`prompt_suffix` must not hold the image mark"
    ):
        load_vqav2("questions.json", "annotations.json", prompt_suffix="\n<image>")


FAMILY_MARKS = {
    "Gemma3": "<start_of_image>",
    "Gemma3n": "<start_of_image>",
    "Gemma4": "<|image|>",
    "Qwen3_5": "<|image_pad|>",
    "MobileVLM": "<image>",
    "Qwen3VL": "<|image_pad|>",
}


@pytest.mark.parametrize("family", FAMILY_MARKS)
def test_a_mark_in_a_response(family):
    # It became the place of an image that is not there, and was trained as an answer.
    record = {
        "ids": ["7"],
        "prompts": ["<image>\nHi"],
        "responses": [f"See {FAMILY_MARKS[family]}."],
        "images": [[np.zeros((4, 4, 3), "uint8")]],
    }
    preprocessor = FAMILIES[family]().preprocessor
    with pytest.raises(ValueError, match="Record '7' has the image mark.*response"):
        model_inputs(preprocessor, record)
    record["responses"] = [neutralize_image_marks(record["responses"][0])]
    model_inputs(preprocessor, record)


def test_two_marks_of_one_image_that_has_a_fixed_place():
    # Both were dropped, and a record whose second image was lost went on.
    record = {
        "prompts": ["<image>\nHi"],
        "images": [[np.zeros((4, 4, 3), "uint8")]],
    }
    preprocessor = FAMILIES["PaliGemma"]().preprocessor
    assert model_inputs(preprocessor, record)["prompts"] == ["Hi"]
    record["prompts"] = ["<image>\n<image>\nHi"]
    with pytest.raises(ValueError, match="1 image and 2 image marks"):
        model_inputs(preprocessor, record)


# --- Images ---

IMAGE_FILES = {
    "gqa": ("images/n1.jpg", "Record '201'"),
    "textvqa": ("train_images/a1.jpg", "Record '34602'"),
    "pope": ("val2014/COCO_1.jpg", "Record '1'"),
    "mme": ("MME_Benchmark_release_version/OCR/0001.png", "OCR/0001.txt"),
    "scienceqa": ("images/test/3/image.png", "Record '3'"),
}


@pytest.mark.parametrize("name", IMAGE_FILES)
def test_a_missing_image_is_named_before_any_is_read(name, copied):
    # Reported bug: it was found in the middle of the run.
    folder, (image, message) = copied(name), IMAGE_FILES[name]
    (folder / image).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        benchmark = BENCHMARKS[name]
        run.check_questions(benchmark, run.load_questions(benchmark, folder))


@pytest.mark.parametrize(
    "cell, message",
    [
        ("", "Record '1': it is asked about an image, but has none"),
        ("1234", "row 2: `image` must be base64, or the index of a row"),
        ("%", "Question '1': its image is not in base64"),
    ],
)
def test_an_image_that_a_table_lacks(copied, cell, message):
    # The index of a row that is not there is valid base64, too.
    folder = copied("mmbench")
    path = folder / "mmbench_dev_20230712.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    rows[2][rows[0].index("image")] = cell
    path.write_text("\n".join(map("\t".join, rows)))
    with pytest.raises(ValueError, match=message):
        benchmark = BENCHMARKS["mmbench"]
        run.check_questions(benchmark, benchmark.load(folder))


WHITES = {"1": 1, "L": 255, "LA": (255, 255), "P": 0, "RGB": (255,) * 3}
WHITES |= {"RGBA": (0, 0, 0, 0), "CMYK": (0,) * 4, "I;16": 65535}


def test_images_of_every_mode_get_the_same_answer(copied):
    # Reported bug: a rare CMYK file broke a run after hours. All of these are white,
    # and all questions the same, so are the answers.
    folder = copied("gqa")
    first = BENCHMARKS["gqa"].load(folder)[0]
    questions = []
    for number, (mode, color) in enumerate(WHITES.items()):
        image = Image.new(mode, (5, 4), color)
        if mode == "P":
            image.putpalette([255] * 3)
        path = folder / "images" / f"{number}.jpg"
        image.save(path, "TIFF" if mode == "CMYK" else "PNG")
        fields = {"id": str(number), "image": str(path)}
        questions.append(type(first)(**{**vars(first), **fields}))
    model = tiny_gemma3(sequence_length=160)
    (lines,) = answer_lines(model, BENCHMARKS["gqa"], questions, len(questions), 4)
    assert len(lines) == len(WHITES)
    assert len({line["text"] for line in lines}) == 1


# --- Records that cannot be used ---

LOADERS = [name for name in dir(data) if name.startswith("load_")]
LOADERS = sorted({*LOADERS, "ScienceQADataset"} - {"load_image"})
ON_ERROR = (
    'on_error: "raise", or "skip" to leave out the records that cannot be used: one'
    " warning counts them, and `skipped` holds the id and the reason of each. "
)


@pytest.mark.parametrize("name", LOADERS)
def test_on_error_is_the_same_argument_everywhere(name):
    loader = getattr(data, name)
    assert inspect.signature(loader).parameters["on_error"].default == "raise"
    assert ON_ERROR in " ".join(loader.__doc__.split())
    # It is checked before any file is read.
    with pytest.raises(ValueError, match="'raise' or 'skip'.*on_error='ignore'"):
        loader("no file", "no folder", on_error="ignore")


HALF = "color \ud800"  # JSON may hold half of a character


def half_records(name, field, folder):
    """Calls a loader on a record "7" with half a character in a field."""
    ok = {"id": "7", "prompt": "Hi", "response": "red"}
    fields = {**ok, field: HALF}
    if name == "load_llava":
        turns = [("human", fields["prompt"]), ("gpt", fields["response"])]
        turns = [{"from": who, "value": text} for who, text in turns]
        path = folder / "records.json"
        path.write_text(json.dumps([{"id": fields["id"], "conversations": turns}]))
        return functools.partial(load_llava, path)
    if name == "load_vqa":
        row = {"id": fields["id"], "question": fields["prompt"]}
        row |= {"answer": fields["response"], "image": None}
        return functools.partial(load_vqa, [row], id_column="id")
    problem = {"question": fields["prompt"], "choices": [fields["response"], "b"]}
    problem |= {"answer": 0, "hint": "", "image": None, "split": "test"}
    problem |= {"subject": "", "grade": ""}
    problems = {fields["id"]: problem}
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": [fields["id"]]}))
    return functools.partial(load_scienceqa, folder, "test")


@pytest.mark.parametrize("field", ["id", "prompt", "response"])
@pytest.mark.parametrize("name", ["load_llava", "load_vqa", "load_scienceqa"])
def test_half_a_character_is_refused_by_the_loader(name, field, tmp_path):
    # It ended the training in a UnicodeEncodeError that named no record.
    load = half_records(name, field, tmp_path)
    with pytest.raises(ValueError, match="^Record '.*UTF-8") as found:
        load()
    str(found.value).encode()  # it can be printed
    assert ("'7'" in str(found.value)) == (field != "id")
    with pytest.warns(UserWarning, match="Left out 1 of 1") as warned:
        assert len(load(on_error="skip")) == 0
    str(warned[0].message).encode()


# --- End marks in answers ---


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>", "<end_of_turn>\nNo yes C"])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_end_marks_that_a_generator_left(name, folders, end):
    # Reported bug: "2011<|im_end|>" against "2011" scored nothing, and "No</s>" was
    # read as yes.
    benchmark = BENCHMARKS[name]
    questions = benchmark.load(folders[name])
    plain = {question.id: RIGHT[name](question).title() for question in questions}
    marked = {question: text + end for question, text in plain.items()}
    assert benchmark.scores(questions, marked) == benchmark.scores(questions, plain)
    assert benchmark.outcomes(questions, marked) == benchmark.outcomes(questions, plain)
    assert all(found.right for found in benchmark.outcomes(questions, marked).values())
