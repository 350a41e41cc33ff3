"""A LoRA student goes on training from every kind of file, with the same losses.

Keras saves kernel + a b and zeroes a and b when it loads that. Every gradient of the
two factors was zero from then on: the student never learnt again.
"""

import h5py
import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from plain_models import linear_model, token_batch
from tiny_models import tiny_gemma3, tiny_gemma_text, vqa_records

from keras_betakd import (
    BetaKDDistiller,
    CosineProbsEnergy,
    ForwardKLEnergy,
    TrainingBackup,
    load_student_weights,
)
from keras_betakd.models import save_preset
from keras_betakd.models.layers import sublayers

RECORDS = {"prompts": ["which color?"] * 2, "responses": ["red", "blue"]}


def student_of(kind):
    """A student with LoRA, as its user would set it up."""
    dtype = "mixed_bfloat16" if kind == "mixed" else None
    student = tiny_gemma_text(dtype=dtype)
    if kind in ("int8", "int4"):
        student.backbone.quantize(kind)
    if kind == "head":  # the embedding is the LM head too
        student.backbone.enable_lora(2, ["token_embedding"])
    elif kind == "mlp":
        student.backbone.enable_lora(2, ["ffw_gating", "ffw_linear"])
    else:
        student.backbone.enable_lora(2)
    return student


def distiller(kind, seed=0):
    keras.utils.set_random_seed(seed)
    student = student_of(kind)
    model = BetaKDDistiller(tiny_gemma_text(width=16), student, CosineProbsEnergy())
    # The teacher is not in weights files.
    rng = np.random.default_rng(0)
    model.teacher.set_weights(
        [rng.normal(size=w.shape) / 4 for w in model.teacher.get_weights()]
    )
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    return model


def losses(model, steps=2):
    return [float(model.train_on_batch(RECORDS)[0]) for _ in range(steps)]


def state_of(model):
    return [ops.convert_to_numpy(ops.cast(v, "float32")) for v in model.variables]


KINDS = ["plain", "head", "mlp", "mixed", "int8", "int4"]


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.backends) if k == "plain" else k for k in KINDS],
)
def test_weights_file_brings_base_and_factors_back(tmp_path, kind):
    model = distiller(kind)
    losses(model)
    model.save_weights(tmp_path / "a.weights.h5")
    expected, weights = losses(model), model.student.get_weights()
    again = distiller(kind, seed=7)
    again.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(losses(again), expected)
    for was, now in zip(weights, again.student.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    assert len(set(expected)) > 1


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.backends) if k == "plain" else k for k in KINDS],
)
def test_archive_brings_rank_layers_and_optimizer_back(tmp_path, kind):
    """It once came back as a full fine-tuning, its optimizer's state dropped."""
    model = distiller(kind)
    losses(model)
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    trained = [v.path for v in model.student.trainable_variables]
    assert [v.path for v in again.student.trainable_variables] == trained
    np.testing.assert_array_equal(losses(again), losses(model))


def test_archive_of_a_teacher_with_lora(tmp_path):
    model = distiller("plain")
    teacher = student_of("mlp")
    for layer in sublayers(teacher):
        if getattr(layer, "lora_enabled", False):
            layer.lora_kernel_b.assign(ops.full(layer.lora_kernel_b.shape, 0.2))
    model = BetaKDDistiller(teacher, model.student, CosineProbsEnergy())
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    assert again.teacher.trainable_variables == []
    np.testing.assert_array_equal(losses(again), losses(model))


def test_the_file_holds_each_number_once(tmp_path):
    model = distiller("plain")
    model.save_weights(tmp_path / "a.weights.h5")
    found = []
    with h5py.File(tmp_path / "a.weights.h5") as file:
        file.visititems(lambda n, x: found.append((n, getattr(x, "size", 0))))
    held = sum(n for name, n in found if name.startswith("student/layers"))
    alphas = sum("lora_alpha" in name for name, _ in found)
    sizes = [np.prod(w.shape) for w in model.student.weights]
    assert held == sum(sizes) + alphas


def test_a_training_of_a_plain_model_goes_on(tmp_path):
    """A plain Keras model with LoRA in Dense, EinsumDense, Embedding and Conv1D."""
    x = np.random.default_rng(0).integers(0, 9, (8, 6))

    def model():
        keras.utils.set_random_seed(3)
        layers = [
            keras.layers.Embedding(9, 4, name="tokens"),
            keras.layers.EinsumDense("btf,fg->btg", (6, 5), name="einsum"),
            keras.layers.Conv1D(4, 2, name="conv"),
            keras.layers.Dense(3, name="dense"),
        ]
        net = keras.Sequential([keras.Input((6,)), *layers])
        for layer in layers:
            layer.enable_lora(2)
        net.compile(keras.optimizers.Adam(0.05), "mse")
        return net

    def fit(net, backup, first, last):
        return net.fit(
            *(x, np.ones((8, 5, 3))),
            epochs=last,
            initial_epoch=first,
            shuffle=False,
            callbacks=[backup],
            verbose=0,
        ).history["loss"]

    expected = fit(model(), TrainingBackup(tmp_path / "whole"), 0, 6)
    fit(model(), TrainingBackup(tmp_path / "cut"), 0, 3)
    again, backup = model(), TrainingBackup(tmp_path / "cut")
    assert backup.restore(again) == 3
    np.testing.assert_array_equal(fit(again, backup, 3, 6), expected[3:])


@pytest.mark.parametrize("way", ["BackupAndRestore", "ModelCheckpoint"])
def test_the_callbacks_of_keras(tmp_path, way):
    """Both save the distiller through its own methods."""
    options = {"batch_size": 2, "shuffle": False, "verbose": 0}
    whole = distiller("plain").fit(RECORDS, epochs=4, **options).history["loss"]

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    if way == "BackupAndRestore":
        keeper = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    else:
        keeper = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    with pytest.raises(KeyboardInterrupt):
        distiller("plain").fit(RECORDS, epochs=4, callbacks=[keeper, Stop()], **options)
    if way == "BackupAndRestore":
        model, options["callbacks"] = distiller("plain", seed=5), [keeper]
    else:
        model = keras.saving.load_model(tmp_path / "2.keras")
        options["initial_epoch"] = 2
    resumed = model.fit(RECORDS, epochs=4, **options).history["loss"]
    np.testing.assert_allclose(resumed, whole[2:], rtol=1e-6)


def with_rank(rank, **options):
    keras.utils.set_random_seed(0)
    student = tiny_gemma_text(**options)
    if rank:
        student.backbone.enable_lora(rank)
    return BetaKDDistiller(tiny_gemma_text(width=16), student, CosineProbsEnergy())


@pytest.mark.parametrize(
    "rank, message",
    [(4, r"rank 2.*has rank 4.*enable_lora\(2\)"), (None, r"enable_lora\(2\)` first")],
)
def test_another_rank_or_none_is_an_error_that_changes_nothing(tmp_path, rank, message):
    with_rank(2).save_weights(tmp_path / "a.weights.h5")
    model = with_rank(rank)
    before = state_of(model)
    with pytest.raises(ValueError, match=f"(?s)a.weights.h5'.*{message}") as error:
        model.load_weights(tmp_path / "a.weights.h5")
    assert len(str(error.value)) < 800  # Keras adds the numbers of all layers
    for was, now in zip(before, state_of(model), strict=True):
        np.testing.assert_array_equal(was, now)


def test_a_file_without_lora_is_a_base_to_learn_from(tmp_path):
    plain = with_rank(None)
    for weight in plain.student.weights:
        weight.assign(weight + 0.5)
    plain.save_weights(tmp_path / "a.weights.h5")
    model = with_rank(2)
    factors = [v for v in model.student.weights if "lora" in v.path]
    before = [ops.convert_to_numpy(v) for v in factors]
    for variable in factors:
        if variable.name.endswith("_b"):
            variable.assign(ops.ones(variable.shape))
    model.load_weights(tmp_path / "a.weights.h5")
    for was, now in zip(before, factors, strict=True):
        np.testing.assert_array_equal(was, ops.convert_to_numpy(now))
    base = [v for v in model.student.weights if "lora" not in v.path]
    for theirs, ours in zip(plain.student.weights, base, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(theirs), ops.convert_to_numpy(ours)
        )


def test_keras_alone_refuses_the_file(tmp_path):
    """Its base alone would be a student that has learnt nothing."""
    model = with_rank(2)
    model.save_weights(tmp_path / "a.weights.h5")
    holder = keras.Model()
    holder.student, holder.built = model.student, True
    with pytest.raises(ValueError, match="could not be loaded"):
        holder.load_weights(tmp_path / "a.weights.h5")


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
def test_the_student_of_a_killed_training_is_published(tmp_path, ending):
    """Without a teacher in memory; LoRA is enabled as the file has it."""
    model = distiller("plain")
    losses(model)
    if ending == ".keras":
        path = tmp_path / "a.keras"
        model.save(path)
    else:
        backup = TrainingBackup(tmp_path / "backup")
        backup.set_model(model)
        backup.on_epoch_end(0)
        path = tmp_path / "backup" / "epoch_1.weights.h5"
    student = tiny_gemma_text()
    load_student_weights(student, path)
    for was, now in zip(
        model.student.get_weights(), student.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(was, now)
    save_preset(student, tmp_path / "student")
    loaded = keras_hub.models.CausalLM.from_preset(str(tmp_path / "student"))
    answers = [m.generate("which color?", max_length=20) for m in (loaded, student)]
    assert answers[0] == answers[1]
    other = tiny_gemma_text(width=16)
    with pytest.raises(ValueError, match="cannot be loaded, and nothing of it was"):
        load_student_weights(other, path)
    assert not [w.path for w in other.weights if "lora" in w.path]


def test_a_larger_student_is_not_read_in_part(tmp_path):
    """Keras ignores the layers of a file that a model does not have."""
    keras.utils.set_random_seed(0)
    deep = tiny_gemma3(num_layers=2)
    model = BetaKDDistiller(tiny_gemma3(), deep, ForwardKLEnergy())
    model.save_weights(tmp_path / "a.weights.h5")
    shallow = BetaKDDistiller(tiny_gemma3(), tiny_gemma3(), ForwardKLEnergy())
    with pytest.raises(ValueError, match="holds a larger student"):
        shallow.load_weights(tmp_path / "a.weights.h5")


def test_layers_frozen_by_hand_stay_frozen(tmp_path):
    """By layer, by variable, and where an inner layer trains in a frozen one."""
    keras.utils.set_random_seed(0)
    student = tiny_gemma3()
    backbone = student.backbone
    backbone.get_layer("decoder_block_0").trainable = False
    backbone.get_layer("decoder_block_0").attention.query_dense.trainable = True
    backbone.token_embedding.variables[0].trainable = False
    model = BetaKDDistiller(tiny_gemma3(width=16), student, CosineProbsEnergy())
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    records = vqa_records(2)
    model.train_on_batch(records)
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    for ours, theirs in zip(student.variables, again.student.variables, strict=True):
        assert ours.trainable == theirs.trainable, ours.path
    expected = [float(model.train_on_batch(records)[0]) for _ in range(2)]
    found = [float(again.train_on_batch(records)[0]) for _ in range(2)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_archive_of_quantised_models_with_vision(tmp_path, mode):
    """keras-hub builds the vision tower of such an archive unquantised."""
    keras.utils.set_random_seed(0)
    teacher, student = tiny_gemma3(width=16), tiny_gemma3()
    teacher.backbone.quantize(mode)
    if mode == "int8":
        student.backbone.quantize(mode)
        student.backbone.enable_lora(2)
    model = BetaKDDistiller(teacher, student, ForwardKLEnergy())
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    records = vqa_records(2)
    model.train_on_batch(records)
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    for was, now in zip(teacher.weights, again.teacher.weights, strict=True):
        assert was.dtype == now.dtype
    assert float(again.train_on_batch(records)[0]) == float(
        model.train_on_batch(records)[0]
    )


def test_a_plain_pair_with_lora_in_its_config(tmp_path):
    """Keras itself enables LoRA in a Dense layer whose config names a rank."""
    student = linear_model(2)
    student.layers[-1].enable_lora(2)
    model = BetaKDDistiller(linear_model(1), student, ForwardKLEnergy())
    model.compile(optimizer=keras.optimizers.Adam(0.1))
    batch = token_batch()
    model.train_on_batch(*batch)
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    assert float(again.train_on_batch(*batch)[0]) == float(
        model.train_on_batch(*batch)[0]
    )
