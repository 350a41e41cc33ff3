"""Weights files, archives, presets: what they hold, and that training goes on."""

import functools
import os
import subprocess
import sys
import warnings

import h5py
import keras
import numpy as np
import pytest
from plain_models import linear_model, token_batch
from tiny_models import tiny_gemma3, vqa_records

from keras_betakd import (
    AnalyticBeta,
    BetaKDDistiller,
    CosineProbsEnergy,
    DistillationPreprocessor,
    ForwardKLEnergy,
    InstanceBeta,
    TaskBeta,
)
from keras_betakd.models import LogitsView, register_view

pytestmark = pytest.mark.backends

HERE = os.path.dirname(os.path.abspath(__file__))


def gemma_distiller(seed=0):
    """A pair with different widths, image sizes and lengths, enough for one file."""
    keras.utils.set_random_seed(seed)
    teacher = tiny_gemma3(width=16)
    student = tiny_gemma3(image_size=32, sequence_length=80)
    distiller = BetaKDDistiller(
        teacher,
        student,
        energies=[CosineProbsEnergy(), ForwardKLEnergy()],
        beta=[InstanceBeta(hidden_units=4), TaskBeta()],
        preprocessor=DistillationPreprocessor(
            teacher.preprocessor, student.preprocessor, 6
        ),
    )
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 20)
    distiller.compile(optimizer=keras.optimizers.AdamW(schedule))
    return distiller


def losses(distiller, steps):
    records = vqa_records(2)
    return [float(distiller.train_on_batch(records)[0]) for _ in range(steps)]


def plain_distiller(seed=1, **kwargs):
    distiller = BetaKDDistiller(
        linear_model(seed), linear_model(seed + 1), ForwardKLEnergy(), **kwargs
    )
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    distiller.compile(optimizer=keras.optimizers.Adam(schedule))
    return distiller


@pytest.mark.traced
@pytest.mark.one_of_two("tensorflow")
def test_archive_brings_everything_back(tmp_path):
    """The losses are the same afterwards, and the teacher is frozen: a model built from
    a config with `trainable=False` did not pass that on to its vision tower."""
    distiller = gemma_distiller()
    losses(distiller, 2)
    path = tmp_path / "distiller.keras"
    distiller.save(path)
    loaded = keras.saving.load_model(path)
    for was, now in zip(
        distiller.teacher.get_weights(), loaded.teacher.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(was, now)
    assert loaded.teacher.trainable_variables == []
    assert len(loaded.trainable_variables) == len(distiller.trainable_variables)
    assert loaded.teacher.preprocessor.tokenizer.vocabulary_size() == 160
    np.testing.assert_allclose(losses(loaded, 3), losses(distiller, 3), rtol=1e-5)


@pytest.mark.parametrize("shared", ["preprocessor", "tokenizer"])
@pytest.mark.pytorch
def test_archive_of_models_that_share_their_preprocessor(tmp_path, shared):
    teacher, student = tiny_gemma3(width=16), tiny_gemma3()
    if shared == "preprocessor":
        student.preprocessor = teacher.preprocessor
    else:
        student.preprocessor.tokenizer = teacher.preprocessor.tokenizer
    preprocessor = DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, 6
    )
    distiller = BetaKDDistiller(
        teacher, student, ForwardKLEnergy(), preprocessor=preprocessor
    )
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    records = vqa_records(2)
    np.testing.assert_array_equal(
        loaded.preprocessor(records)[1], preprocessor(records)[1]
    )


@pytest.mark.pytorch
def test_weights_file_holds_no_teacher_and_training_goes_on(tmp_path):
    """A new process with other initial weights loads a file and has the same losses."""
    distiller = gemma_distiller()
    losses(distiller, 2)
    path = tmp_path / "step2.weights.h5"
    distiller.save_weights(path)
    teacher = tmp_path / "teacher.weights.h5"
    distiller.teacher.save_weights(teacher)
    trained = sum(int(np.prod(v.shape)) for v in distiller.trainable_variables)
    frozen_tower = distiller.student.backbone.vision_encoder.count_params()
    assert saved_values(path) < 3 * trained + frozen_tower + 100
    code = f"""
import keras, numpy as np
from test_saving import gemma_distiller, losses
distiller = gemma_distiller(seed=5)
distiller.teacher.load_weights({str(teacher)!r})
distiller.load_weights({str(path)!r})
print("losses", *losses(distiller, 3))
"""
    output = run_python(code)
    resumed = [float(x) for x in output.split("losses")[1].split()]
    np.testing.assert_allclose(resumed, losses(distiller, 3), rtol=1e-5)


def saved_values(path):
    sizes = []
    with h5py.File(path) as file:
        file.visititems(lambda n, x: sizes.append((n, getattr(x, "size", 0))))
    others = ("random_state", "settings")
    return sum(size for name, size in sizes if not any(o in name for o in others))


def run_python(code):
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{os.path.dirname(HERE)}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.pytorch
def test_student_preset_loads_in_plain_keras_hub(tmp_path):
    distiller = gemma_distiller()
    losses(distiller, 1)
    folder = str(tmp_path / "student")
    distiller.student.save_to_preset(folder)
    prompt = {"prompts": "<start_of_image> red", "images": np.ones((32, 32, 3))}
    expected = distiller.student.generate(dict(prompt), max_length=30)
    code = f"""
import sys, numpy as np, keras_hub
model = keras_hub.models.CausalLM.from_preset({folder!r})
prompt = {{"prompts": "<start_of_image> red", "images": np.ones((32, 32, 3))}}
print(repr(model.generate(prompt, max_length=30)), "keras_betakd" in sys.modules)
"""
    assert run_python(code).strip().endswith(f"{expected!r} False")


@pytest.mark.pytorch
def test_config_round_trip_of_every_option():
    distiller = BetaKDDistiller(
        linear_model(1),
        linear_model(2),
        {"kl": ForwardKLEnergy(temperature=2.0)},
        {"kl": AnalyticBeta(dim=2.0)},
        task_beta=TaskBeta(dim=3.0),
        reduction="token",
        freeze=None,
        name="pair",
    )
    config = distiller.get_config()
    again = BetaKDDistiller.from_config(config).get_config()
    # The models have configs of their own, with names that Keras counts up.
    for name in set(config) - {"teacher", "student"}:
        assert again[name] == config[name], name


@pytest.mark.pytorch
def test_compile_arguments_come_back(tmp_path):
    distiller = plain_distiller()
    distiller.compile(
        optimizer=keras.optimizers.SGD(0.25),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=3
        ),
        weighted_metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2)],
    )
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert float(loaded.optimizer.learning_rate) == 0.25
    assert loaded.task_loss.ignore_class == 3
    before = distiller.test_on_batch(*token_batch(), return_dict=True)
    after = loaded.test_on_batch(*token_batch(), return_dict=True)
    assert {k: float(v) for k, v in before.items()} == pytest.approx(
        {k: float(v) for k, v in after.items()}
    )


def every_row(teacher, log_beta):
    return keras.ops.ones_like(teacher.weights)


def relu(layer):  # a name that Keras has, too
    return False


@pytest.mark.pytorch
def test_functions_that_loading_cannot_find_are_named_before_an_archive_is_written(
    tmp_path,
):
    """Nothing was said, and the archive failed to load, or took Keras' own `relu`."""
    path = tmp_path / "distiller.keras"
    beta = TaskBeta(row_weights=every_row)
    distiller = plain_distiller(beta=beta, freeze=relu)
    with pytest.warns(UserWarning, match="not registered") as told:
        distiller.save(path)
    (message,) = [str(w.message) for w in told if "not registered" in str(w.message)]
    assert "`freeze=relu`, `betas['forward_kl'].row_weights=every_row`." in message
    objects = {"every_row": every_row, "relu": relu}
    assert "`custom_objects={'every_row': every_row, 'relu': relu}`" in message
    loaded = keras.saving.load_model(path, custom_objects=objects)
    assert loaded.freeze is relu and loaded.betas["forward_kl"].row_weights is every_row
    with keras.saving.custom_object_scope(objects), warnings.catch_warnings():
        warnings.filterwarnings("error", "The archive names")
        distiller.save(path)  # found by their names


@pytest.mark.pytorch
@pytest.mark.parametrize(
    "make",
    [
        lambda: lambda teacher, log_beta: every_row(teacher, log_beta),
        lambda: functools.partial(every_row),
    ],
)
def test_weights_files_need_no_names_of_functions(tmp_path, make):
    """A `functools.partial` was an error at the end of an epoch, and a lambda, whose
    code has line numbers, another loss."""
    path = tmp_path / "pair.weights.h5"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The (object|weights)")
        plain_distiller(beta=TaskBeta(row_weights=make())).save_weights(path)
        plain_distiller(beta=TaskBeta(row_weights=make())).load_weights(path)
    with pytest.warns(UserWarning, match="trained by another loss"):
        plain_distiller(beta=TaskBeta()).load_weights(path)


@keras.saving.register_keras_serializable(package="test_saving")
class Seeing(keras.Model):
    """A model with a vision tower, which may be another's too."""

    def __init__(self, tower, head, **kwargs):
        super().__init__(**kwargs)
        self.tower, self.head = tower, head

    def build(self, shape):
        if not self.tower.built:
            self.tower.build(shape)
        self.head.build((*shape[:-1], self.tower.units))

    def call(self, x):
        return self.head(self.tower(x))

    def get_config(self):
        config = {"tower": self.tower.get_config(), "head": self.head.get_config()}
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config):
        parts = {
            k: keras.layers.Dense.from_config(config[k]) for k in ("tower", "head")
        }
        return cls(**{**config, **parts})


class SeeingView(LogitsView):
    def vision_tower(self):
        return [self.model.tower]


register_view("Seeing", SeeingView)


@pytest.mark.pytorch
def test_archive_of_a_pair_that_shares_its_vision_tower(tmp_path):
    """The archive has the tower once; the teacher's copy was left without values."""
    keras.utils.set_random_seed(0)
    tower = keras.layers.Dense(6)
    pair = [Seeing(tower, keras.layers.Dense(5)) for _ in range(2)]
    for model in pair:
        model.build((None, 3, 4))
    distiller = BetaKDDistiller(*pair, ForwardKLEnergy())
    distiller.compile(optimizer=keras.optimizers.Adam(1e-2))

    def steps(model):
        return [float(model.train_on_batch(*token_batch())[0]) for _ in range(2)]

    steps(distiller)
    distiller.save(tmp_path / "all.keras")
    distiller.save_weights(tmp_path / "some.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "all.keras")
    for was, now in zip(
        distiller.teacher.get_weights(), loaded.teacher.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(was, now)
    np.testing.assert_allclose(steps(loaded), steps(distiller), rtol=1e-6)
    loaded.load_weights(tmp_path / "some.weights.h5")
