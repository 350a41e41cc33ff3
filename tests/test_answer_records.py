"""A teacher answers the prompts of records, and a student is trained on its answers."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from marks import kept
from PIL import Image
from test_families import model_of
from test_families import records as family_records
from test_student_answers import (
    Fixed,
    Read,
    distiller,
    fitted,
    of_other_tokenizers,
    records,
)
from test_student_answers import K as TOKENS
from tiny_families import FAMILIES
from tiny_models import random_image, tiny_gemma3, tiny_pali_gemma

from keras_betakd import (
    BetaKDDistiller,
    CachedTeacher,
    ForwardKLEnergy,
    StudentAnswers,
    TaskBeta,
    answer_records,
    cache_teacher,
    fingerprints,
)
from keras_betakd.data import EpochParts, LlavaDataset, LlavaRecord
from keras_betakd.evaluation import generate_answers
from keras_betakd.files import read_jsonl
from keras_betakd.folders import FolderInUseError, FolderOwner
from keras_betakd.models.chat_generation import stop_tokens

pytestmark = pytest.mark.filterwarnings("ignore:Of .* answers, .* were cut")


def teacher(make=tiny_gemma3):
    """A teacher whose answers differ from record to record; some of them end."""
    keras.utils.set_random_seed(0)
    model = make()
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "norm" not in weight.path and weight.trainable:
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


def answered(path, model=None, data=None, **options):
    options = {"max_new_tokens": TOKENS, "batch_size": 3, "progress": False, **options}
    data = records() if data is None else data
    return answer_records(model or teacher(), data, path, **options)


def many(size=24):
    """Prompts of several lengths, in another order."""
    data = records(size)
    for i in range(size):
        data["prompts"][i] += " one two three four"[: 5 * (i % 4)]
    return data


def lines_of(path):
    return (path / "answers.jsonl").read_bytes()


def never(*args, **kwargs):
    raise AssertionError("The model was run.")


@pytest.mark.backends
@pytest.mark.parametrize("name", kept(["Gemma3", "PaliGemma", "Qwen3_5"], "Gemma3"))
def test_greedy_answers_are_those_of_generate_answers(name, tmp_path):
    model, data = model_of(name), family_records(name, (1, 1, 1))
    expected = generate_answers(model, data, 3, max_new_tokens=4, progress=False)
    found = answered(tmp_path, model, data, max_new_tokens=4)
    assert [text.strip() for text in found["responses"]] == [
        text.strip() for text in expected.values()
    ]
    assert found["ids"] == data["ids"] and found["images"] is data["images"]
    ends = stop_tokens(model.preprocessor, {})
    for key, ids in zip(found["ids"], found["response_tokens"], strict=True):
        assert found.answers[key].ended == (ids[-1] in ends)
        assert len(ids) == 4 or ids[-1] in ends


def test_fit_trains_on_exactly_these_ids(tmp_path):
    model = distiller(ForwardKLEnergy())
    found = answered(tmp_path, model.teacher)
    given = {k: v for k, v in records().items() if k != "responses"}
    assert fitted(model, found) == fitted(
        distiller(ForwardKLEnergy()),
        {
            **given,
            "response_tokens": [ids.tolist() for ids in found["response_tokens"]],
        },
    )
    x, y, weight = model.preprocessor(found)
    for row, ids in enumerate(found["response_tokens"]):
        assert y[row, weight[row] > 0].tolist() == ids.tolist()
    logs = fitted(model, found)
    assert logs["task_loss"][0] > 0


def changed_weight(model):
    variable = model.backbone.token_embedding.embeddings
    values = keras.ops.convert_to_numpy(variable).copy()
    values[0, 0] += 1e-3
    variable.assign(values)
    return model


def other_length(model):
    model.preprocessor.sequence_length += 1
    return model


@pytest.mark.parametrize(
    "change, options, message",
    [
        (changed_weight, {}, "made_by: model was"),
        (other_length, {}, "made_by: preprocessor was"),
        (None, {"prompt_template": "gemma3"}, "made_by: prompt_template was None"),
        (None, {"max_new_tokens": 5}, "max_new_tokens was 6 and is now 5"),
        (None, {"top_k": 2}, "top_k was 1 and is now 2"),
    ],
)
def test_another_run_is_refused(change, options, message, tmp_path):
    answered(tmp_path)
    before = lines_of(tmp_path)
    model = teacher() if change is None else change(teacher())
    with pytest.raises(ValueError, match=f"{message}.*Give another `path`"):
        answered(tmp_path, model, **options)
    assert lines_of(tmp_path) == before
    answered(tmp_path, batch_size=2, temperature=2.0, seed=7)  # change nothing


def test_another_version_is_refused(tmp_path, monkeypatch):
    answered(tmp_path)
    monkeypatch.setattr(fingerprints, "__version__", "0.0.1")
    with pytest.raises(ValueError, match="made_by: keras_betakd was"):
        answered(tmp_path)


def other_prompt(data):
    data["prompts"][2] = "<image> is it red?"


def other_image(data):
    data["images"][2] = [255 - data["images"][2][0]]


def other_system(data):
    data["system"] = [None, None, "Be brief.", *[None] * 5]


@pytest.mark.parametrize("change", [other_prompt, other_image, other_system])
def test_another_record_is_refused(change, tmp_path):
    options = {"prompt_template": "gemma3"} if change is other_system else {}
    answered(tmp_path, **options)
    data = records()
    change(data)
    with pytest.raises(ValueError, match="Record 'r2' is not the one that"):
        answered(tmp_path, data=data, **options)


def test_records_may_be_more_but_not_fewer(tmp_path):
    model = teacher()
    first = answered(tmp_path, model)
    more = answered(tmp_path, model, records(12))
    assert more["responses"][:8] == first["responses"]
    with pytest.raises(ValueError, match="answers to 4 records .* such as 'r8'"):
        answered(tmp_path, model)
    with pytest.raises(ValueError, match="answers to 4 records .* such as 'r8'"):
        answered(tmp_path, model, Fixed())


def test_a_complete_run_is_read_without_the_model(tmp_path):
    model = teacher()
    found, before = answered(tmp_path, model), lines_of(tmp_path)
    model.generate_step = model.call = never
    again = answered(tmp_path, model)
    assert again["responses"] == found["responses"]
    assert lines_of(tmp_path) == before


def killed(path, top_k, pali):
    """Runs in another process that is killed after its first answers."""
    code = (
        "import sys; from test_answer_records import *; "
        f"answered(sys.argv[1], teacher(*[tiny_pali_gemma] * {pali}), many(), "
        f"batch_size=2, top_k={top_k})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, path],
        stderr=subprocess.PIPE,
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
        cwd=pathlib.Path(__file__).parent,
    )
    journal = path / "answers.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    message = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, message


@pytest.mark.parametrize("top_k, pali", [(None, 1)])
def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(top_k, pali, tmp_path):
    """Sampled answers too; also where prompts of one length wait for each other."""
    model = teacher(*[tiny_pali_gemma] * pali)
    options = {"batch_size": 2, "top_k": top_k}
    whole = answered(tmp_path / "whole", model, many(), **options)
    killed(tmp_path / "broken", top_k, pali)
    done = lines_of(tmp_path / "broken").count(b"\n")
    assert 0 < done < 24
    again = answered(tmp_path / "broken", model, many(), **options)
    assert again["responses"] == whole["responses"]
    assert lines_of(tmp_path / "broken") == lines_of(tmp_path / "whole")


@pytest.mark.parametrize("make", [tiny_gemma3, tiny_pali_gemma])
def test_a_part_of_a_group_and_half_a_line(make, tmp_path):
    """What a full disk or a loss of power leaves of a group that was drawn together."""
    model, options = teacher(make), {"top_k": None, "data": many(8)}
    answered(tmp_path, model, **options)
    whole = lines_of(tmp_path)
    assert len({line["text"] for line in read_jsonl(tmp_path / "answers.jsonl")}) > 4
    for size in (len(whole) - 20, len(whole) // 2, 40):
        (tmp_path / "answers.jsonl").write_bytes(whole[:size])
        answered(tmp_path, model, **options)
        assert lines_of(tmp_path) == whole


def test_draws_depend_on_the_seed_and_are_refused_in_other_groups(tmp_path):
    model, options = teacher(), {"top_k": None}
    first = answered(tmp_path / "a", model, **options)
    again = answered(tmp_path / "b", model, **options)
    other = answered(tmp_path / "c", model, seed=1, **options)
    assert first["responses"] == again["responses"] != other["responses"]
    with pytest.raises(ValueError, match="batch_size was 3 and is now 2"):
        answered(tmp_path / "a", model, batch_size=2, **options)
    with pytest.raises(ValueError, match="seed was 0 and is now 1"):
        answered(tmp_path / "a", model, seed=1, **options)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda line: b"{" + line, "line 2: not JSON"),
        (lambda line: line.replace(b"response_tokens", b"tokens"), "Line 2 of .* none"),
        (lambda line: line.replace(b"r1", b"r0"), "Line 2 of .* answers record 'r0'"),
        (lambda line: line.replace(b'"run": "', b'"run": "0'), "Line 2 of .* settings"),
        (lambda line: line.replace(b'": [', b'": [-'), "Line 2 of .* is none"),
    ],
)
def test_damaged_lines_are_named(damage, message, tmp_path):
    model = teacher()
    answered(tmp_path, model)
    lines = lines_of(tmp_path).splitlines(keepends=True)
    lines[1] = damage(lines[1])
    (tmp_path / "answers.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=message):
        answered(tmp_path, model)


def test_one_process_answers(tmp_path):
    code = (
        "import sys; from test_answer_records import *; "
        "answered(pathlib.Path(sys.argv[1]))"
    )
    with FolderOwner(tmp_path, "a test"):
        other = subprocess.run(
            [sys.executable, "-c", code, tmp_path],
            stderr=subprocess.PIPE,
            env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
            cwd=pathlib.Path(__file__).parent,
        )
    assert FolderInUseError.__name__ in other.stderr.decode()
    assert f"in use by process {os.getpid()} " in other.stderr.decode()
    assert len(answered(tmp_path)["responses"]) == 8


def ends_sometimes():
    """A teacher of which some answers end and some are cut."""
    model = distiller()
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    fitted(model, records(), epochs=15)
    return model.student


def test_answers_that_were_cut(tmp_path):
    model = ends_sometimes()
    options = {"top_k": None, "data": records(12), "seed": 1}
    with pytest.warns(UserWarning, match="Of 12 answers, .* They have no end mark"):
        kept = answered(tmp_path, model, **options)
    ended = [name for name, answer in kept.answers.items() if answer.ended]
    assert 0 < len(ended) < 12 == len(kept["prompts"])
    with pytest.warns(UserWarning, match="They are left out"):
        found = answered(tmp_path, model, cut="drop", **options)
    assert found["ids"] == ended and set(found.answers) == set(kept["ids"])
    places = [f"number {name[1:]} of the data" for name in ended]
    assert found.places == places
    ends = stop_tokens(model.preprocessor, {})
    assert all(ids[-1] in ends for ids in found["response_tokens"])
    batches = Listed(records(12))
    dataset = answered(tmp_path / "b", model, batches, cut="drop", top_k=None)
    for index in range(4):
        batch = dataset[index]
        expected = [dataset.answers[name].ended for name in batch["ids"]]
        assert batch["sample_weight"].tolist() == [float(e) for e in expected]
    with pytest.raises(ValueError, match="Of 8 answers, 8 were cut .* None is left"):
        answered(tmp_path / "c", cut="drop", max_new_tokens=1)


class Listed(keras.utils.PyDataset):
    """Batches of three records, without epochs of their own."""

    def __init__(self, data):
        super().__init__()
        self.rows = data

    @property
    def num_batches(self):
        return -(-len(self.rows["ids"]) // 3)

    def __getitem__(self, index):
        return {k: v[3 * index : 3 * index + 3] for k, v in self.rows.items()}


def test_data_sets_get_the_answers_batch_by_batch(tmp_path):
    """Each record by its id, whatever epoch its batch is of."""
    model = distiller(ForwardKLEnergy())
    expected = answered(tmp_path / "a", model.teacher)
    by_id = dict(zip(expected["ids"], expected["responses"], strict=True))
    for name, data in {
        "listed": Listed(records()),
        "epochs": Fixed(),
        "parts": EpochParts(Fixed(), 2),
    }.items():
        found = answered(tmp_path / name, model.teacher, data)
        assert {k: a.text for k, a in found.answers.items()} == by_id
        logs = fitted(model, found, epochs=3)
        assert len(logs["task_loss"]) == 3
        batch = found[0]
        assert batch["responses"] == [by_id[key] for key in batch["ids"]]
        assert getattr(found, "epoch", None) == getattr(data, "epoch", None)
        assert hasattr(found, "start_epoch") == hasattr(data, "start_epoch")
    with pytest.raises(ValueError, match="id 'r8', which was not there"):
        found.data = Listed(records(12))
        found[2]


def test_images_are_read_when_they_are_needed(tmp_path, monkeypatch):
    """A result that held all images was as large as the data set."""
    paths = []
    for i in range(5):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(random_image(i)).save(paths[-1])
    rows = [
        LlavaRecord(str(i), ["<image> what?"], ["x"], [path])
        for i, path in enumerate(paths)
    ]
    columns = answered(tmp_path / "a", data=rows)
    assert columns["images"] == [[path] for path in paths]
    dataset = answered(tmp_path / "b", data=LlavaDataset(rows, 2, shuffle=True))
    assert dataset.data.records == tuple(rows)
    by_id = dict(zip(columns["ids"], columns["responses"], strict=True))
    for index in range(3):
        batch = dataset[index]
        assert batch["responses"] == [by_id[key] for key in batch["ids"]]


def test_a_table_of_hugging_face_becomes_batches(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = {k: v for k, v in records().items() if k != "images"}
    data["prompts"] = [f"Question: {i} what color?" for i in range(8)]
    model = teacher()
    expected = answered(tmp_path / "a", model, data)
    table = datasets.Dataset.from_dict({**data, "responses": ["x"] * 8})
    found = answered(tmp_path / "b", model, table)
    by_id = dict(zip(expected["ids"], expected["responses"], strict=True))
    read = [found[index] for index in range(3)]
    ids = list(itertools.chain(*(batch["ids"] for batch in read)))
    assert sorted(ids) == data["ids"] != ids  # shuffled
    texts = itertools.chain(*(batch["responses"] for batch in read))
    assert list(texts) == [by_id[key] for key in ids]


def test_of_a_conversation_the_last_turn_is_answered(tmp_path):
    data = {
        "ids": ["a", "b"],
        "prompts": [["<image>\nwhat?", "and then?"], "red?"],
        "responses": [["red", "unused"], "unused"],
        "images": [[random_image(0)], []],
    }
    found = answered(tmp_path, model_of("MobileVLM"), data)
    texts = [found.answers[key].text for key in "ab"]
    assert found["responses"] == [["red", texts[0]], texts[1]]
    assert "unused" not in str(found["responses"])
    other = {**data, "responses": [["red", "other"], None]}
    assert answered(tmp_path, model_of("MobileVLM"), other)["responses"][0][0] == "red"
    other = {**data, "responses": [["blue", "unused"], "unused"]}
    with pytest.raises(ValueError, match="Record 'a' .* its earlier turns"):
        answered(tmp_path, model_of("MobileVLM"), other)


def test_prompts_need_no_responses(tmp_path):
    data = {k: v for k, v in records().items() if k != "responses"}
    model = teacher()
    expected = answered(tmp_path / "a", model)
    assert answered(tmp_path / "b", model, data)["responses"] == expected["responses"]
    empty = {**records(), "responses": [""] * 8}
    assert answered(tmp_path / "b", model, empty)["responses"] == expected["responses"]


def test_a_student_answers_a_share_of_them(tmp_path):
    """The others stay the teacher's ids; their texts would get an end mark."""
    model = distiller(ForwardKLEnergy())
    found = answered(tmp_path, model.teacher)
    data = StudentAnswers(found, 0.5)
    read = Read(data)
    fitted(model, data, epochs=1, shuffle=False, callbacks=[read])
    for batch in read.batches:
        for row, key in enumerate(batch["ids"]):
            if batch["task_weight"][row]:
                ids = batch["response_tokens"][row]
                np.testing.assert_array_equal(ids, found.answers[key].tokens)
    assert sum(sum(batch["task_weight"]) for batch in read.batches) == 4


def test_a_cache_of_a_teacher_holds_its_answers(tmp_path):
    """And no others: answers of other ids had one digest."""
    model = distiller(ForwardKLEnergy())
    found = answered(tmp_path / "a", model.teacher)
    expected = fitted(model, found)
    fresh = distiller(ForwardKLEnergy())
    cache_teacher(fresh, found, tmp_path / "cache", verbose=0)
    cached = BetaKDDistiller(
        CachedTeacher(tmp_path / "cache"), fresh.student, ForwardKLEnergy(), TaskBeta()
    )
    cached.compile(optimizer=keras.optimizers.SGD(0.05))
    for key, values in fitted(cached, found).items():
        np.testing.assert_allclose(values, expected[key], rtol=1e-4, err_msg=key)
    other = {**found, "response_tokens": [[5, 6]] * 8}
    with pytest.raises(ValueError, match="r0"):
        fitted(cached, other, shuffle=False)


def test_two_tokenizers_take_texts(tmp_path):
    model = of_other_tokenizers()
    found = answered(tmp_path, model.teacher, max_new_tokens=3)
    with pytest.raises(ValueError, match="ids of one tokenizer"):
        fitted(model, found)
    texts = {k: v for k, v in found.items() if k != "response_tokens"}
    assert np.isfinite(fitted(model, texts)["loss"]).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": None}, "`max_new_tokens` must be a positive integer"),
        ({"batch_size": None}, "`batch_size` must be a positive integer"),
        ({"top_p": 2.0}, "top_p=2.0"),
        ({"temperature": 0}, "temperature=0"),
        ({"seed": 0.5}, "`seed` must be an integer. Received: seed=0.5"),
        ({"cut": "skip"}, '`cut` must be "keep" or "drop". Received: cut=\'skip\''),
        ({"data": iter([records()])}, "of which the number is known.*iterator"),
        ({"data": {"prompts": ["a"]}}, 'Give each record its own in "ids"'),
        ({"data": {**records(), "ids": ["a"] * 8}}, "Two records have the id 'a'"),
        ({"model": keras.Sequential()}, "must be a `keras_hub.models.CausalLM`"),
        ({"max_new_tokens": 90}, "'r0'.* answer of the model up to max_new_tokens=90"),
    ],
)
def test_what_cannot_be_answered_is_refused(options, message, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        answered(tmp_path, **options)


def test_models_with_an_encoder_are_refused(tmp_path):
    assert "BLIP2_FlanT5" in FAMILIES
    model, data = model_of("BLIP2_FlanT5"), family_records("BLIP2_FlanT5")
    with pytest.raises(ValueError, match="encoder for its prompts: train on its texts"):
        answered(tmp_path, model, data)
    assert not list(tmp_path.iterdir())


def test_the_models_own_sampler_is_given_back(tmp_path):
    model = teacher()
    model.compile(sampler="greedy")
    model.generate("what?", max_length=8)
    before = model.sampler, model.generate_function
    wrong = {**records(), "prompts": ["<image> <image> <image> what?"] * 8}
    with pytest.raises(ValueError, match="r0"):
        answered(tmp_path, model, wrong)
    assert (model.sampler, model.generate_function) == before
    answered(tmp_path, model)
    assert (model.sampler, model.generate_function) == before
