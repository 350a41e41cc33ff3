"""The ScienceQA loader and its batches."""

import json
import multiprocessing
import os
import pickle

import keras
import numpy as np
import pyarrow
import pytest
from PIL import Image
from scienceqa_folder import edit_problem, write_folder

from keras_betakd.data import (
    LETTER_PROMPT_SUFFIX,
    ScienceQADataset,
    ScienceQARecord,
    load_scienceqa,
    scienceqa_prompt,
    scienceqa_response,
)
from keras_betakd.data.scienceqa_records import ScienceQARecords

GOLDEN = os.path.join(os.path.dirname(__file__), "golden", "scienceqa.json")


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path, num=12, split_sizes={"train": 8, "test": 4})


def record(id="7", image=None, **fields):
    fields = {"question": "?", "choices": ("x", "y"), "answer": 0, **fields}
    return ScienceQARecord(id=id, image=image, **fields)


def image_path(folder, pid, split="train"):
    return os.path.join(folder, "images", split, pid, "image.png")


def test_prompts_and_targets_are_the_published_ones():
    with open(GOLDEN) as file:
        case = json.load(file)["prompts"][0]
    assert len(case["expected"]) == 4
    for expected in case["expected"]:
        pid = expected["entry"]["id"]
        problem = case["inputs"]["problems"][pid]
        item = ScienceQARecord(id=pid, **problem)
        prompt = scienceqa_prompt(item, LETTER_PROMPT_SUFFIX, form="llava-1.0")
        assert prompt == expected["model_question"]
        target = expected["entry"]["conversations"][1]["value"]
        assert scienceqa_response(item, form="llava-1.0") == target


def test_the_form_is_that_of_the_published_numbers():
    """Every question was asked in LLaVA-1.0's form, which no later number used.

    The first is problem 11 of the test split as LLaVA-1.5's released log has it.
    """
    colonies = ("Maryland", "New Hampshire", "Rhode Island", "Vermont")
    question = "What is the name of the colony shown?"
    item = record("11", "image.png", question=question, choices=colonies, answer=1)
    published = (
        "<image>\nWhat is the name of the colony shown?\nA. Maryland\n"
        "B. New Hampshire\nC. Rhode Island\nD. Vermont\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert scienceqa_prompt(item, LETTER_PROMPT_SUFFIX) == published
    assert scienceqa_response(item) == "B"
    hinted = record(hint="Read.", question="Which?")
    assert scienceqa_prompt(hinted) == "Context: Read.\nWhich?\nA. x\nB. y"
    with pytest.raises(ValueError, match="`form` must be one of"):
        scienceqa_prompt(item, form="llava")


def test_a_question_file_s_own_text_is_asked_unless_a_form_is_named():
    item = record(prompt="Which one is it, x or y?")
    assert scienceqa_prompt(item) == "Which one is it, x or y?"
    assert scienceqa_prompt(item, form="llava-1.5") == "?\nA. x\nB. y"


def test_instruction_and_target_go_together(folder):
    records = load_scienceqa(folder)
    letters = ScienceQADataset(records, 8)[0]
    assert all(p.endswith(LETTER_PROMPT_SUFFIX) for p in letters["prompts"])
    for options in ({"answer_format": "text"}, {"form": "llava-1.0"}):
        batch = ScienceQADataset(records, 8, **options)[0]
        assert not any(p.endswith("directly.") for p in batch["prompts"])


def test_four_spaces_become_two_as_published():
    item = record(question="a    b   c  d")
    assert "Question: a  b  c d\n" in scienceqa_prompt(item, form="llava-1.0")


def test_image_marks_in_every_user_text_are_neutralized():
    # Reported bug: literal marks in user text counted as images.
    item = record(
        question="What is <image>?",
        choices=("<start_of_image>", "<|image_pad|>"),
        hint="see <img>",
        image="a.png",
    )
    assert scienceqa_prompt(item, form="llava-1.0") == (
        "<image>\nContext: see < img>\nQuestion: What is < image>?\n"
        "Options: (A) < start_of_image> (B) < |image_pad|>"
    )
    assert scienceqa_prompt(item) == (
        "<image>\nContext: see < img>\nWhat is < image>?\n"
        "A. < start_of_image>\nB. < |image_pad|>"
    )
    assert scienceqa_response(item, "text") == "< start_of_image>"


def test_load_keeps_the_order_and_the_fields(folder):
    records = load_scienceqa(folder, "train")
    assert [r.id for r in records] == [str(i) for i in range(1, 9)]
    assert records.skipped == ()
    assert [len(r.choices) for r in records] == [2, 3, 4, 5, 2, 3, 4, 5]
    assert records[0].image == image_path(folder, "1")
    assert records[1].image is None
    assert records[1].hint == f"The color is {records[1].choices[records[1].answer]}."
    assert (records[1].grade, records[1].subject) == ("grade2", "social science")


def test_image_lies_under_the_split_of_the_problem(folder):
    # `minival` and `trainval` are lists only; they have no image folder.
    path = os.path.join(folder, "pid_splits.json")
    with open(path) as file:
        splits = json.load(file)
    with open(path, "w") as file:
        json.dump({**splits, "minitrain": ["3"]}, file)
    (only,) = load_scienceqa(folder, "minitrain")
    assert only.image == image_path(folder, "3")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"answer": 2}, "answer=2"),
        ({"answer": -1}, "answer=-1"),
        ({"answer": True}, "answer=True"),
        ({"answer": "A"}, "answer='A'"),
        ({"choices": ["only"], "answer": 0}, "two to 5"),
        ({"choices": list("uvwxyz"), "answer": 0}, "two to 5"),
        ({"choices": ["x", None], "answer": 0}, "None"),
        ({"question": None}, "question=None"),
        ({"image": "../1/image.png"}, "plain name"),
        ({"image": ["image.png"]}, "plain name"),
    ],
)
def test_invalid_record_is_named_or_skipped(folder, changes, message):
    edit_problem(folder, "5", **changes)
    with pytest.raises(ValueError, match=f"Record '5'.*{message}"):
        load_scienceqa(folder, "train")
    with pytest.warns(UserWarning, match="1 of 8"):
        records = load_scienceqa(folder, "train", on_error="skip")
    assert len(records) == 7
    assert [pid for pid, _ in records.skipped] == ["5"]
    assert message in records.skipped[0][1]


def test_rows_as_pandas_has_them():
    """The arrays and integers that pandas reads out of Parquet were refused."""
    row = {"image": None, "question": "A mammal?", "hint": ""}
    row |= {"choices": np.array(["cat", "trout"], object), "answer": np.int64(1)}
    table = [{**row, "choices": ["cat", "trout"], "answer": 1}]
    (expected,) = load_scienceqa(table)
    for source in ([row], pyarrow.Table.from_pylist(table)):
        assert list(load_scienceqa(source)) == [expected]
    assert isinstance(load_scienceqa([row] * 3)[1:], ScienceQARecords)
    with pytest.raises(ValueError, match=r"lacks.*\['hint'\]. Rename") as caught:
        load_scienceqa([{k: v for k, v in row.items() if k != "hint"}])
    assert "_column" not in str(caught.value), "the loader has no such arguments"


def test_missing_key_and_missing_problem_are_named(folder):
    path = os.path.join(folder, "problems.json")
    with open(path) as file:
        problems = json.load(file)
    del problems["2"]["hint"], problems["3"]
    with open(path, "w") as file:
        json.dump(problems, file)
    with pytest.raises(ValueError, match="Record '2'.*'hint'"):
        load_scienceqa(folder, "train")
    with pytest.warns(UserWarning, match="2 of 8"):
        records = load_scienceqa(folder, "train", on_error="skip")
    assert dict(records.skipped)["3"].startswith("Record '3': problems.json lacks")


def test_missing_image_is_found_at_load(folder):
    # Reported bug: a missing file was found only in the middle of the run.
    os.remove(image_path(folder, "3"))
    with pytest.raises(FileNotFoundError, match="Record '3'"):
        load_scienceqa(folder, "train")
    with pytest.warns(UserWarning, match="1 of 8"):
        records = load_scienceqa(folder, "train", on_error="skip")
    assert [pid for pid, _ in records.skipped] == ["3"]


def test_invalid_files_and_arguments(folder, tmp_path):
    with pytest.raises(ValueError, match="'dev'"):
        load_scienceqa(folder, "dev")
    with pytest.raises(ValueError, match="on_error='ignore'"):
        load_scienceqa(folder, "train", on_error="ignore")
    with pytest.raises(FileNotFoundError, match="problems.json"):
        load_scienceqa(tmp_path / "images", "train")
    with open(os.path.join(folder, "pid_splits.json"), "w") as file:
        file.write("{")
    with pytest.raises(ValueError, match="Not a JSON file.*pid_splits.json"):
        load_scienceqa(folder, "train")


def test_batches(folder):
    dataset = ScienceQADataset(load_scienceqa(folder), batch_size=3)
    batches = list(dataset)
    assert [len(batch["ids"]) for batch in batches] == [3, 3, 2]
    first = batches[0]
    assert first["ids"].tolist() == ["1", "2", "3"]
    assert [len(images) for images in first["images"]] == [1, 0, 1]
    image = first["images"][0][0]
    expected = np.asarray(Image.open(image_path(folder, "1")))
    np.testing.assert_array_equal(image, expected)
    starts = [prompt.startswith("<image>\n") for prompt in first["prompts"]]
    assert starts == [True, False, True]
    letter = "AB"[dataset.records[0].answer]
    assert first["responses"][0] == letter
    with pytest.raises(IndexError, match="index=3"):
        dataset[3]


def test_options_of_the_dataset(folder):
    records = load_scienceqa(folder)
    dataset = ScienceQADataset(
        records,
        batch_size=3,
        answer_format="text",
        prompt_suffix=" Say it.",
        drop_remainder=True,
        limit=5,
    )
    assert len(dataset) == 1
    assert len(dataset.records) == 5
    batch = dataset[0]
    assert batch["responses"][1] == records[1].choices[records[1].answer]
    assert all(prompt.endswith(" Say it.") for prompt in batch["prompts"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"limit": 0}, "limit=0"),
        ({"answer_format": "number"}, "'number'"),
        ({"prompt_suffix": "\n<image>"}, "prompt_suffix="),
        ({"batch_size": 9, "drop_remainder": True}, "at least one batch"),
    ],
)
def test_impossible_options(folder, options, message):
    with pytest.raises(ValueError, match=message):
        ScienceQADataset(load_scienceqa(folder), **{"batch_size": 2, **options})


def ids_of_epochs(dataset, epochs):
    result = []
    for _ in range(epochs):
        result.append([str(pid) for batch in dataset for pid in batch["ids"]])
        dataset.on_epoch_end()
    return result


def test_shuffle_depends_on_seed_and_epoch_only(folder):
    records = load_scienceqa(folder)
    first = ids_of_epochs(ScienceQADataset(records, 3, shuffle=True, seed=1), 3)
    again = ids_of_epochs(ScienceQADataset(records, 2, shuffle=True, seed=1), 3)
    other = ids_of_epochs(ScienceQADataset(records, 3, shuffle=True, seed=2), 3)
    assert first == again
    assert first != other
    assert len({tuple(ids) for ids in first}) == 3
    assert all(sorted(ids) == sorted(first[0]) for ids in first)


def test_pickled_copy_goes_on_where_the_original_was(folder):
    dataset = ScienceQADataset(load_scienceqa(folder), 3, shuffle=True, seed=1)
    dataset.on_epoch_end()
    copy = pickle.loads(pickle.dumps(dataset))
    assert ids_of_epochs(copy, 2) == ids_of_epochs(dataset, 2)


def test_every_kind_of_image_field(folder, tmp_path):
    # Reported bug: a loader that expected an image got None, a dict or a path.
    path = image_path(folder, "1")
    with open(path, "rb") as file:
        data = file.read()
    sources = [None, {"bytes": data, "path": None}, path, Image.open(path)]
    records = [record(str(i), source) for i, source in enumerate(sources)]
    records.append(record("gone", str(tmp_path / "gone.png")))
    with pytest.raises(FileNotFoundError, match="Record 'gone'"):
        ScienceQADataset(records, batch_size=5)
    with pytest.warns(UserWarning, match="1 of 5"):
        dataset = ScienceQADataset(records, batch_size=5, on_error="skip")
    assert [pid for pid, _ in dataset.skipped] == ["gone"]
    assert [len(images) for images in dataset[0]["images"]] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    "image, error, message",
    [
        ({"bytes": None, "path": "gone.png"}, FileNotFoundError, "gone.png"),
        ({"bytes": None, "path": None}, ValueError, "not None"),
        (7, ValueError, "Received: int"),
    ],
)
def test_impossible_image_fields_are_found_at_construction(image, error, message):
    # They were found when their batch came; only a path by itself was looked up.
    with pytest.raises(error, match=f"Record '9'.*{message}"):
        ScienceQADataset([record("1"), record("9", image)], batch_size=1)


def test_image_that_breaks_later_raises_and_never_thins_the_batch(folder):
    path = image_path(folder, "3")
    dataset = ScienceQADataset(load_scienceqa(folder), batch_size=4)
    with open(path, "r+b") as file:
        file.truncate(40)
    with pytest.raises(ValueError, match="Record '3'.*image.png"):
        dataset[0]
    with pytest.raises(ValueError, match="Record '3'"):
        ScienceQADataset(dataset.records, batch_size=4, verify_images=True)
    with pytest.warns(UserWarning, match="1 of 8"):
        readable = ScienceQADataset(dataset.records, batch_size=4, on_error="skip")
    assert readable[0]["ids"].tolist() == ["1", "2", "4", "5"]


class Numbers(keras.utils.PyDataset):
    """Any batch as numbers, so that `fit` can run over it: x = the ids."""

    def __init__(self, dataset, **kwargs):
        super().__init__(**kwargs)
        self.dataset = dataset
        self.on_epoch_end = dataset.on_epoch_end

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        batch = self.dataset[index]
        x = batch["ids"].astype("float32")[:, None]
        return x, np.ones_like(x)


class Recorder(keras.losses.Loss):
    """The sum of the ids in a batch: 18 on average, if all of 1..8 come in two."""

    def call(self, y_true, y_pred):
        return y_pred[:, 0]


def fit(dataset, **kwargs):
    model = keras.Sequential([keras.layers.Rescaling(1.0)])
    model.compile(optimizer="sgd", loss=Recorder(reduction="sum"), run_eagerly=True)
    # A model that is not built yet makes Keras read ahead, and then serve what it had
    # read first in the next epoch.
    model.train_on_batch(np.ones((4, 1)), np.ones((4, 1)))
    history = model.fit(Numbers(dataset, **kwargs), epochs=3, verbose=0)
    return history.history["loss"]


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_finish_three_epochs_and_hand_on_errors(
    folder, workers, processes, monkeypatch
):
    # Reported bug: more than one worker hung at the end of the first epoch, and
    # process workers never started.
    monkeypatch.setenv("KERAS_BACKEND", "numpy")  # Of the spawned: quick to import.
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    options = {"workers": workers, "use_multiprocessing": processes}
    try:
        dataset = ScienceQADataset(load_scienceqa(folder), 4, shuffle=True)
        assert fit(dataset, **options) == [18, 18, 18]
        with open(image_path(folder, "3"), "wb") as file:
            file.write(b"broken")
        with pytest.raises(ValueError, match="Record '3'"):
            fit(dataset, **options)
    finally:
        multiprocessing.set_start_method(method, force=True)
