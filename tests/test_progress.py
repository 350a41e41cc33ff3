"""What is shown while a step compiles and while a model answers."""

import keras
import pytest
from plain_models import linear_model, token_batch
from tiny_models import tiny_gemma_text

from keras_betakd import BetaKDDistiller, ForwardKLEnergy
from keras_betakd.data import EpochDataset
from keras_betakd.evaluation import generate_answers

WORD = "Compiling the first step on "


def distiller(**options):
    model = BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
    model.compile(optimizer="sgd", **options)
    return model


@pytest.mark.backends
@pytest.mark.traced
def test_a_word_before_a_step_compiles(capsys):
    """The first step took 10 to 40 s of silence on JAX and TensorFlow."""
    model = distiller()
    x, y, weight = token_batch()
    told = int(keras.backend.backend() != "torch")

    def words(method, *args, **options):
        method(*args, **options)
        return capsys.readouterr().out.count(WORD)

    options = {"sample_weight": weight, "validation_data": (x, y, weight)}
    assert words(model.fit, x, y, verbose=0, **options) == 0
    model = distiller()
    assert words(model.fit, x, y, verbose=2, **options) == told
    assert words(model.fit, x, y, verbose=2, **options) == 0
    assert words(distiller().evaluate, x, y) == told
    assert words(distiller().predict, x) == told
    assert words(distiller(run_eagerly=True).fit, x, y) == 0


class Pairs(EpochDataset):
    def __init__(self, records):
        super().__init__(records, seed=0)
        self.start_epoch(0)

    def cut(self, generator):
        return [[0, 1], [2]]

    def batch(self, records):
        return {"prompts": list(records)}


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"prompts": PROMPTS[2 * index : 2 * index + 2]}


PROMPTS = ["red", "what color?", "yes"]
PARTS = [{"prompts": ["red", "what color?"]}, {"ids": ["7"], "prompts": ["yes"]}]


@pytest.mark.parametrize(
    "batches, first",
    [
        (lambda: {"prompts": PROMPTS}, "0/3"),
        (lambda: PARTS, "0/3"),
        (lambda: Pairs(PROMPTS), "0/3"),
        (lambda: Batches(), "0/4"),  # the last batch may be full
        (lambda: iter(PARTS), "2/Unknown"),
    ],
    ids=["dict", "list", "dataset", "batches", "iterator"],
)
def test_answers_have_a_total_where_it_is_known(batches, first, capsys):
    """It was 1/Unknown."""
    model = tiny_gemma_text()
    model.compile(sampler="greedy")
    answers = generate_answers(model, batches(), batch_size=2, max_new_tokens=2)
    assert len(answers) == 3
    shown = capsys.readouterr().out
    assert first in shown
    assert "3/3" in shown
    assert ("Unknown" in shown) == (first == "2/Unknown")
