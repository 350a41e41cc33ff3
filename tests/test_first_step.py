"""How often steps are compiled, and where JAX keeps what it has compiled."""

import os

import keras
import numpy as np
import pytest
from plain_models import linear_model, token_batch
from tiny_models import tiny_gemma_text

from keras_betakd import BetaKDDistiller, ForwardKLEnergy, InstanceBeta
from keras_betakd.backends import keep_compiled_programs
from keras_betakd.data import LlavaDataset, LlavaRecord
from keras_betakd.distillation.training_data import formatter_of
from keras_betakd.preprocessing.batches import BatchFormatter, formatted

RECORDS = {
    "ids": [str(i) for i in range(5)],
    "prompts": ["what color is it?", "red or blue?", "what?", "is it?", "color?"],
    "responses": ["red", "blue", "it is teal", "yes", "green"],
}


def distiller(**options):
    keras.utils.set_random_seed(0)
    model = BetaKDDistiller(
        tiny_gemma_text(12, 24),
        tiny_gemma_text(8, 24),
        ForwardKLEnergy(),
        InstanceBeta(features="hidden_states", hidden_units=4, shrinkage=2.0),
        max_response_length=8,
    )
    model.compile(optimizer=keras.optimizers.SGD(0.5), **options)
    return model


def counted(step):
    """`step`, and a list of the calls of it: one for each time that it is traced."""
    calls = []

    def run(*args):
        calls.append(args)
        return step(*args)

    return run, calls


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="runs eagerly there")
def test_a_step_is_traced_once_for_all_batches_epochs_and_trainings():
    """A last batch of another size was compiled anew on JAX, and so in validation."""
    model = distiller()
    model.train_step, trained = counted(model.train_step)
    model.test_step, validated = counted(model.test_step)
    options = {"batch_size": 2, "validation_data": RECORDS, "verbose": 0}
    model.fit(RECORDS, epochs=2, **options)
    assert (len(trained), len(validated)) == (1, 1)
    model.fit(RECORDS, **options)
    assert (len(trained), len(validated)) == (1, 1)


def test_what_a_batch_is_filled_up_with_changes_nothing():
    """Numbers of three records, as three and filled up to eight."""
    found = []
    few = {key: values[:3] for key, values in RECORDS.items()}
    for size in (None, 8):
        model = distiller()
        form = BatchFormatter(model.preprocessor)
        form.full_size = size
        x, y, weight = form(few)
        assert len(y) == (size or 3)
        assert (weight[3:] == 0).all()
        steps = [model.train_on_batch(x, y, weight, return_dict=True) for _ in range(2)]
        steps.append(model.test_on_batch(x, y, weight, return_dict=True))
        parts = model.student, *model.betas.values()
        found.append((steps, [w for part in parts for w in part.get_weights()]))
    (one, first), (other, second) = found
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_allclose(left[name], right[name], 2e-5, 1e-6, name)
    for left, right in zip(first, second, strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-4, atol=2e-6)


class Pairs(keras.utils.PyDataset):
    """Batches of a user, whose `batch_size` is something else."""

    batch_size = 8

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = (slice(3), slice(3, 5))[index]
        return {key: values[rows] for key, values in RECORDS.items()}


def sizes(data, batch_size=2, fills=True):
    """Of each batch: how many records it has, and how many of them count."""
    form = BatchFormatter(distiller().preprocessor, fills=fills)
    data, _, _ = formatted(data, batch_size=batch_size, formatter=form)
    batches = [(len(y), int(w.any(axis=1).sum())) for _, y, w in data]
    return sorted(batches, reverse=True)


def test_which_batches_are_filled_up():
    records = [LlavaRecord(str(i), ["what?"], ["red"]) for i in range(3)]
    assert sizes(RECORDS) == [(2, 2), (2, 2), (2, 1)]
    assert sizes(RECORDS, fills=False) == [(2, 2), (2, 2), (1, 1)]
    assert sizes(RECORDS, 32) == [(5, 5)]  # alone, it is of one size anyway
    assert sizes(LlavaDataset(records, 2)) == [(2, 2), (2, 1)]
    batches = [{k: v[:n] for k, v in RECORDS.items()} for n in (3, 2)]
    assert sizes(iter(batches)) == [(3, 3), (2, 2)]  # the user's own sizes
    assert sizes(Pairs()) == [(3, 3), (2, 2)]


@pytest.mark.backends
def test_batches_are_filled_up_where_a_compiler_needs_it():
    """Not for batch normalization, whose means would count the copies."""
    compiles = keras.backend.backend() == "jax"
    assert formatter_of(distiller()).fills == compiles
    assert not formatter_of(distiller(), labelled=False).fills
    assert not formatter_of(distiller(run_eagerly=True)).fills
    student = linear_model(1)
    student = keras.Sequential([*student.layers, keras.layers.BatchNormalization()])
    student.build((None, 3, 4))
    model = BetaKDDistiller(linear_model(2), student, ForwardKLEnergy())
    model.compile()
    assert not formatter_of(model).fills


# The folder of compiled programs

only_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="JAX alone keeps compiled programs"
)
FOLDER, THRESHOLD = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """JAX's configuration as where nobody has set anything; restored afterwards."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    names = FOLDER, THRESHOLD, "jax_enable_compilation_cache"
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(FOLDER, None)
    jax.config.update(THRESHOLD, 1.0)
    monkeypatch.delenv(THRESHOLD.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.reset_cache()  # opened when the first program was compiled
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.backends
@only_jax
def test_the_users_own_settings_stay(unset, tmp_path, monkeypatch):
    for own in ("", str(tmp_path / "own")):  # "" turns the cache off
        unset.update(FOLDER, own)
        keep_compiled_programs()
        assert getattr(unset, FOLDER) == own
    unset.update(FOLDER, None)
    unset.update("jax_enable_compilation_cache", False)
    keep_compiled_programs()
    assert getattr(unset, FOLDER) is None
    unset.update("jax_enable_compilation_cache", True)
    unset.update(THRESHOLD, 3.0)
    keep_compiled_programs()
    assert getattr(unset, THRESHOLD) == 3.0
    assert getattr(unset, FOLDER) == str(tmp_path / "keras_betakd" / "jax")


@pytest.mark.backends
@only_jax
def test_a_folder_that_cannot_be_made_does_no_harm(unset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        keep_compiled_programs()
        assert getattr(unset, FOLDER) is None
        assert getattr(unset, THRESHOLD) == 1.0


@pytest.mark.backends
@only_jax
def test_compiled_steps_are_kept_in_the_folder_of_the_users_caches(unset, tmp_path):
    model = BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
    model.compile()
    x, y, weight = token_batch()
    model.fit(x, y, sample_weight=weight, verbose=0)
    # It compiles in less than JAX's own threshold of a second.
    kept = os.listdir(tmp_path / "keras_betakd" / "jax")
    assert any("train_step" in name for name in kept)
