"""What is given to `fit` in another form is taken, or refused by what it is."""

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from plain_models import linear_model, token_batch
from tiny_models import tiny_gemma_text

from keras_betakd import BetaKDDistiller, ForwardKLEnergy, ProcessShare, TaskBeta
from keras_betakd.data import EpochParts
from keras_betakd.head_loss import fused_head_loss
from keras_betakd.models.heads import HeadMatrix

ROWS = [
    {"prompts": "which color?", "responses": color, "ids": str(i)}
    for i, color in enumerate(("red", "blue", "green", "teal"))
]
COLUMNS = {key: [row[key] for row in ROWS] for key in ROWS[0]}
TABLE = datasets.Dataset.from_list(ROWS)


@pytest.fixture(scope="module")
def text():
    model = BetaKDDistiller(tiny_gemma_text(), tiny_gemma_text(), ForwardKLEnergy())
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    return model


def plain(*energies, **options):
    energies = list(energies) or ForwardKLEnergy()
    model = BetaKDDistiller(linear_model(1), linear_model(2), energies, **options)
    model.compile()
    return model


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(ROWS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ROWS,
        lambda: TABLE,
        lambda: TABLE[:],
        lambda: torch.utils.data.DataLoader(Stream(), batch_size=2),
        lambda: torch.utils.data.DataLoader(TABLE, batch_size=2),
        lambda: torch.utils.data.DataLoader(ROWS, 2, collate_fn=list),
        lambda: (dict(batch) for batch in (TABLE[:2], TABLE[2:])),
    ],
    ids=["rows", "table", "slice", "stream", "loader", "row_lists", "generator"],
)
def test_all_forms_of_records_are_the_same_records(text, make):
    expected = text.evaluate(COLUMNS, batch_size=2, verbose=0)
    received = text.evaluate(make(), batch_size=2, verbose=0)
    np.testing.assert_allclose(received, expected, rtol=1e-6)


def test_a_split_of_a_table_and_weights_beside_records(text):
    history = text.fit(TABLE, validation_split=0.5, verbose=0).history
    assert "val_loss" in history
    weight = np.array([1, 0, 0, 2], "float32")
    options = {"batch_size": 2, "verbose": 0}
    inside = text.evaluate({**COLUMNS, "sample_weight": weight}, **options)
    for records in (COLUMNS, ROWS):
        beside = text.evaluate(records, sample_weight=weight, **options)
        np.testing.assert_array_equal(beside, inside)


def endless():
    while True:
        yield dict(COLUMNS)


def endless_tf():
    return tf.data.Dataset.from_tensor_slices(COLUMNS).batch(2).repeat()


@pytest.mark.parametrize("make", [endless, endless_tf])
def test_endless_data_needs_steps(text, make):
    """It was once read to its end, to be counted."""
    text.fit(make(), steps_per_epoch=2, epochs=2, verbose=0)
    text.evaluate(make(), steps=2, verbose=0)
    if make is endless_tf:
        with pytest.raises(ValueError, match="never ends.*`steps_per_epoch`"):
            text.fit(make(), verbose=0)


class TorchRows(torch.utils.data.Dataset):
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return ROWS[index]


@pytest.mark.parametrize(
    "x, message",
    [
        (datasets.DatasetDict(train=TABLE), r"several tables.*dataset\['train'\]"),
        (TABLE.to_iterable_dataset(), "streaming table.*DataLoader"),
        (TABLE.rename_column("prompts", "question"), "needs the columns.*question"),
        ({"question": ["a"], "answer": ["b"]}, '"prompts" and "responses".*question'),
        ({"messages": [[{"role": "user"}]]}, '"prompts" and "responses".*messages'),
        ([{"messages": []}], '"prompts" and "responses".*number 0.*messages'),
        ([*ROWS, {"prompts": "a"}], r"number 4 with \['prompts'\]"),
        ({"prompts": "a", "responses": ["b"]}, '"prompts" must be a list'),
        ({"prompts": ["a", "b"], "responses": ["c"]}, "one length"),
        ({"prompts": ["a"]}, "responses"),
        ({"prompts": [], "responses": []}, "no batch"),
        (tf.data.Dataset.from_tensor_slices(COLUMNS), "come in batches"),
        (torch.utils.data.DataLoader(ROWS, batch_size=None), "come in batches"),
        (TorchRows(), "in a `torch.utils.data.DataLoader`"),
        ("records.json", "Load a file first"),
        (None, "must be raw records"),
    ],
)
def test_what_is_no_data_is_refused_by_what_it_is(text, x, message):
    with pytest.raises(ValueError, match=message):
        text.fit(x, verbose=0)


X, Y, WEIGHT = token_batch()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: d.fit(X, verbose=0), "no labels: pass `y`"),
        (lambda d: d.fit(X[:0], Y[:0], verbose=0), "no examples"),
        (lambda d: d.evaluate(X[:0], Y[:0], verbose=0), "no examples"),
        (
            lambda d: d.fit(tf.data.Dataset.from_tensor_slices((X, Y)), verbose=0),
            "Data sets yield batches",
        ),
        (lambda d: d.fit(X, Y, class_weight={0: 1.0}), "batches .*take a weight for"),
        (
            lambda d: d.fit(tf_batches(), sample_weight=WEIGHT),
            r"yield `\(x, y, sample_weight\)`.*Received: `sample_weight`",
        ),
        (lambda d: d.fit(X, Y, sample_weight=WEIGHT * np.nan), r"Received: nan at \("),
        (lambda d: d.fit(X, Y, sample_weight=-WEIGHT), r"Received: -1.0 at \(0, 0\)"),
        (
            lambda d: d.fit({"student": X, "teach": X}, Y),
            "no key 'teach'; did you mean 'teacher'",
        ),
        (lambda d: d.fit({"student": X}, Y), r"Received: keys=\['student'\]"),
        (lambda d: d.fit(tf_batches(), steps_per_epoch=0), "positive integer"),
    ],
)
def test_bad_arrays_and_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(plain())


def tf_batches():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)


@pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch"])
def test_compile_comes_first(method):
    model = BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
    with pytest.raises(ValueError, match=f"`compile` before `{method}`"):
        getattr(model, method)(X, Y)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"energies": {1: ForwardKLEnergy()}}, r"must be strings.*\[1\]"),
        ({"energies": {"": ForwardKLEnergy()}}, r"must be strings.*\[''\]"),
        ({"fused": 1}, "fused=1"),
        ({"task_beta": False}, "task_beta=False"),
        ({"vocabulary_size": 3.0}, "vocabulary_size=3.0"),
        ({"vocabulary_size": True}, "vocabulary_size=True"),
        ({"vocabulary_size": 9}, r"no more than the models have.*\[5, 5\]"),
        ({"on_too_long": "skip"}, "models' own"),
    ],
)
def test_bad_arguments_of_the_distiller_are_refused(options, message):
    options = {"energies": ForwardKLEnergy(), "beta": TaskBeta(), **options}
    with pytest.raises(ValueError, match=message):
        BetaKDDistiller(linear_model(1), linear_model(2), **options)


def test_a_name_that_was_given_is_kept_or_refused():
    """In a list it was once renamed in silence, to `forward_kl_1_1`."""
    kl = ForwardKLEnergy
    assert [*plain(kl(), kl(), kl(name="x")).energies] == [
        "forward_kl",
        "forward_kl_1",
        "x",
    ]
    for energies in (
        [kl(name="x"), kl(name="x")],
        [kl(), kl(), kl(name="forward_kl_1")],
    ):
        with pytest.raises(ValueError, match="Two energies are named"):
            plain(*energies)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EpochParts(COLUMNS, 2), "must be an `EpochDataset`.*dict"),
        (
            lambda: EpochParts(ProcessShare(COLUMNS, 2, 0, 2), 2),
            r"`ProcessShare\(EpochParts\(dataset, parts\)\)`",
        ),
        (lambda: ProcessShare(COLUMNS, 0), "batch_size=0"),
        (lambda: ProcessShare(COLUMNS, -1), "batch_size=-1"),
    ],
)
def test_bad_data_sets_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.backends
def test_a_head_of_numpy_arrays_is_a_head():
    rows, kernel = np.ones((3, 4), "float32"), np.eye(5, 4, dtype="float32")
    arguments = rows, kernel, np.array([0, 1, 2]), np.ones((1, 3), "float32"), {}
    expected = fused_head_loss(rows, kernel, *arguments).total
    received = fused_head_loss(rows, HeadMatrix(kernel), *arguments).total
    assert float(received) == float(expected)


def test_a_batch_may_hold_bytes_and_conversations_of_any_number_of_turns():
    """Their number of axes was asked of NumPy, which decoded bytes as ASCII and refused
    lists of different length."""
    from keras_betakd.preprocessing.batches import BatchFormatter

    seen = []

    def preprocessor(records):
        seen.append(records["prompts"])
        return {"student": {}, "teacher": {}}, np.zeros((2, 1), int), np.ones((2, 1))

    for prompts in (["é".encode(), "a"], [["a", "b"], ["c"]]):
        records = {"prompts": prompts, "responses": ["x", "y"]}
        BatchFormatter(preprocessor)(records)
        assert seen[-1] == prompts
