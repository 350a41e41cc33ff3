"""`memory_plan`: what a training step takes, from shapes, and what would help."""

import math

import keras
import numpy as np
import pytest
from keras import ops
from test_families import K, model_of
from test_remat import distiller_of

import keras_betakd as kd
from keras_betakd.memory.out_of_memory import NOTE, is_out_of_memory

BATCH = 4


def pair(optimizer=None, student=None, **kwargs):
    """A teacher and a student of one tiny family, compiled."""
    kwargs = {"remat": False, "freeze": None, **kwargs}
    student = student or model_of("Llama", 2)
    distiller = distiller_of(student, **kwargs)
    distiller.compile(optimizer=optimizer or keras.optimizers.Adam(1e-3))
    return distiller


def deep():
    return model_of("Llama", 2, num_layers=4)


def records(count=BATCH):
    return {
        "ids": [f"record {i}" for i in range(count)],
        "prompts": ["what color is it?"] * count,
        "responses": ["red"] * count,
    }


def shapes(distiller, batch=BATCH, length=None):
    """A batch as shapes, of any size: nothing of it exists."""

    def resized(x, length=None):
        if x is None:
            return None
        rest = x.shape[1:] if length is None else (length,)
        return keras.KerasTensor((batch, *rest), dtype=str(x.dtype))

    x, y, weight = keras.tree.map_structure(resized, distiller.preprocessor(records(2)))
    for role in ("student", "teacher"):
        x[role] = {k: resized(v, length) for k, v in x[role].items()}
    return x, y, weight


def about(size):
    """Python may look for garbage a little earlier or later."""
    return pytest.approx(size, rel=0.05)


def float_bytes(variables):
    return sum(4 * math.prod(v.shape) for v in variables)


@pytest.mark.traced
@pytest.mark.backends
def test_held_parts_equal_counts_of_their_own_and_nothing_changes():
    distiller = pair()
    every = [distiller, distiller.teacher, distiller.optimizer]
    every = [*(v for part in every for v in part.variables)]
    every += distiller.metrics_variables
    before = [np.array(ops.convert_to_numpy(v)) for v in every]
    state, batch = random_state(), distiller.preprocessor(records())
    plan = distiller.memory_plan(batch, savings=False)
    assert plan.weights["teacher"] == float_bytes(distiller.teacher.variables)
    student = distiller.student.variables
    assert plan.weights["student"] == float_bytes(student)
    trained = distiller.trainable_variables
    assert plan.gradients == float_bytes(trained) == float_bytes(student)
    # Adam's two moments; and two numbers of eight bytes or less, with the wrapper's.
    assert 0 < plan.optimizer - 2 * plan.gradients <= 64
    # And the weights of the labels, which the distiller adds.
    sizes = [x.nbytes for x in keras.tree.flatten(batch)]
    assert plan.batch == sum(sizes) + 4 * BATCH * K
    assert plan.peak > plan.held + plan.gradients and plan.activations > 0
    assert plan.savings == () and plan.devices == 1
    for v, value in zip(every, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(v), value)
    assert random_state() == state
    losses = [distiller.train_on_batch(*batch, return_dict=True)["loss"]]
    losses.append(pair().train_on_batch(*batch, return_dict=True)["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-6)


def random_state():
    if keras.backend.backend() != "torch":
        return None
    import torch

    return torch.get_rng_state().tolist()


def test_the_optimizer_of_the_betas_is_counted_apart():
    student = model_of("Llama", 2)
    distiller = kd.BetaKDDistiller(
        model_of("Llama", 1), student, kd.ForwardKLEnergy(), kd.InstanceBeta()
    )
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    plan = distiller.memory_plan(distiller.preprocessor(records()), savings=False)
    beta = float_bytes(distiller.betas["forward_kl"].trainable_variables)
    assert plan.weights["beta of forward_kl"] == beta > 0
    assert 0 <= plan.beta_optimizer - 2 * beta <= 64
    assert plan.optimizer < 64  # SGD without momentum has no slots


def test_frozen_weights_have_neither_gradient_nor_slots():
    student = model_of("Llama", 2)
    student.backbone.token_embedding.trainable = False
    plan = pair(student=student).memory_plan(records(), savings=False)
    trained = float_bytes(student.trainable_variables)
    assert plan.gradients == trained < plan.weights["student"]
    assert 0 < plan.optimizer - 2 * trained <= 64


def test_activations_fall_with_the_batch_and_the_sequence():
    distiller = pair()
    whole, short, small = (
        distiller.memory_plan(shapes(distiller, *size), savings=False)
        for size in ((64, 256), (64, 128), (32, 256))
    )
    assert whole.activations > 2 * short.activations > short.activations
    assert whole.activations == pytest.approx(2 * small.activations, rel=0.02)
    assert whole.held - whole.batch == short.held - short.batch


def test_activations_and_the_peak_fall_with_remat():
    """Of several blocks: one alone is all there again as its gradient is computed."""
    whole, plan = (
        distiller.memory_plan(shapes(distiller, 64, 256), savings=False)
        for distiller in (pair(student=deep()), pair(student=deep(), remat=True))
    )
    assert plan.activations < 0.5 * whole.activations
    assert plan.peak < 0.7 * whole.peak


def test_a_batch_that_would_not_fit_into_any_memory_is_planned():
    distiller = pair()
    plan = distiller.memory_plan(shapes(distiller, 2**16, 2**12), savings=False)
    assert plan.peak > 2**42


def test_savings_are_those_of_the_changed_distillers():
    distiller = pair()
    plan = distiller.memory_plan(shapes(distiller, 64, 256))
    saved = {saving.option: saving.bytes for saving in plan.savings}
    assert len(saved) == 3 and list(saved.values()) == sorted(saved.values())[::-1]
    assert all(size > 0 for size in saved.values())
    half = distiller.memory_plan(shapes(distiller, 64, 128), savings=False)
    assert plan.peak - saved["sequence_length=128"] == about(half.peak)
    small = distiller.memory_plan(shapes(distiller, 32, 256), savings=False)
    option = "batches of 32, gradient_accumulation_steps=2"
    assert plan.peak - saved[option] == about(small.peak + plan.gradients)


def test_remat_saves_what_it_is_said_to():
    distiller, again = pair(student=deep()), pair(student=deep(), remat=True)
    long = shapes(distiller, 1, 2048)  # a batch of one cannot be halved
    plan, found = distiller.memory_plan(long), again.memory_plan(long, savings=False)
    saved = {saving.option: saving.bytes for saving in plan.savings}
    assert plan.peak - saved["remat=True"] == about(found.peak)
    assert distiller.memory_plan(long, savings=False).peak == about(plan.peak)


def test_what_is_on_already_is_not_named():
    student = model_of("Llama", 2)
    student.backbone.enable_lora(2)
    distiller = pair(student=student, remat=True)
    plan = distiller.memory_plan(shapes(distiller, 1, 16))
    options = " ".join(saving.option for saving in plan.savings)
    assert options  # a batch of one cannot be halved, 16 positions hold the answers
    for other in ("remat", "enable_lora", "batches", "fused", "sequence_length"):
        assert other not in options


def test_lora_saves_about_what_it_is_said_to():
    optimizer = keras.optimizers.Adam(1e-3)
    distiller = pair(optimizer)
    plan = distiller.memory_plan(shapes(distiller, 1, 16))
    saved = {saving.option: saving.bytes for saving in plan.savings}
    student = model_of("Llama", 2)
    student.backbone.enable_lora(1)
    found = pair(student=student).memory_plan(shapes(distiller, 1, 16), savings=False)
    option = "student.backbone.enable_lora(rank)"
    assert saved[option] == pytest.approx(plan.peak - found.peak, rel=0.25)


def test_the_fused_head_is_named_where_it_is_off():
    distiller = pair(fused=False)
    plan = distiller.memory_plan(shapes(distiller, 64, 16))
    fused = pair().memory_plan(shapes(distiller, 64, 16), savings=False)
    saved = {saving.option: saving.bytes for saving in plan.savings}
    assert plan.peak - saved['fused="auto"'] == about(fused.peak)
    assert distiller.fused is False


def test_the_table_has_all_parts():
    plan = kd.MemoryPlan(
        weights={"teacher": 8_000_000, "student": 2_000_000},
        optimizer=4_000_000,
        beta_optimizer=0,
        batch=1_000_000,
        gradients=2_000_000,
        activations=30_000_000,
        head=3_000_000,
        peak=50_000_000,
        savings=(kd.MemorySaving("remat=True", 20_000_000),),
    )
    rows = [line.rsplit(maxsplit=1) for line in str(plan).splitlines()]
    found = {row[0].strip(): row[1] for row in rows if len(row) == 2}
    assert found["held between steps"] == "15.0" and plan.held == 15_000_000
    assert found["teacher"] == "8.0" and found["peak, all in all"] == "50.0"
    assert found["remat=True"] == "20.0"


def test_what_cannot_be_planned_is_refused():
    distiller = distiller_of(model_of("Llama", 2), remat=False)
    distiller.compiled = False
    with pytest.raises(ValueError, match="Call `compile` before `memory_plan`"):
        distiller.memory_plan(records())
    distiller = pair()
    x, y, _ = shapes(distiller)
    for labels in (None, keras.KerasTensor((None, K), dtype="int32")):
        with pytest.raises(ValueError, match="needs the shapes of a batch and of its"):
            distiller.memory_plan((x, labels))


def test_with_a_cache_none_is_named(tmp_path):
    distiller = pair()
    cached = kd.cache_teacher(distiller, records(), tmp_path / "cache", verbose=0)
    found = kd.BetaKDDistiller(
        *(cached, distiller.student, kd.ForwardKLEnergy()), max_response_length=K
    )
    found.compile()
    plan = found.memory_plan(records())
    assert plan.weights["teacher"] < float_bytes(distiller.teacher.variables)
    assert plan.savings and "cache" not in str(plan.savings)


@pytest.mark.backends
@pytest.mark.pytorch
def test_only_errors_of_memory_are_known():
    import torch

    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))


class Full(keras.layers.Layer):
    """A layer for which there is never memory."""

    def call(self, x):
        raise errors()[keras.backend.backend()]()


def errors():
    def torch():
        import torch

        return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def jax():
        import jax

        return jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    def tensorflow():
        import tensorflow as tf

        return tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    return {"torch": torch, "jax": jax, "tensorflow": tensorflow}


def plain(layer):
    inputs = keras.Input((3, 4))
    return keras.Model(inputs, layer(keras.layers.Dense(5)(inputs)))


@pytest.mark.backends
@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_an_error_of_memory_points_to_the_plan(method):
    class Sometimes(Full):
        full = False

        def call(self, x):
            return super().call(x) if self.full else x

    layer = Sometimes()
    student = plain(layer)
    teacher = plain(keras.layers.Identity())
    distiller = kd.BetaKDDistiller(teacher, student, kd.ForwardKLEnergy())
    distiller.compile()
    x, y = np.zeros((2, 3, 4), "float32"), np.zeros((2, 3), "int32")
    layer.full = True
    options = {"verbose": 0} if method == "fit" else {}
    with pytest.raises(Exception) as raised:
        getattr(distiller, method)(x, y, **options)
    assert raised.value.__notes__.count(NOTE) == 1
    kind = type(errors()[keras.backend.backend()]())
    # Keras itself raises TensorFlow's anew as this, within a layer.
    rewrapped = keras.backend.backend() == "tensorflow"
    assert isinstance(raised.value, (kind, RuntimeError) if rewrapped else kind)


def test_other_errors_have_no_note():
    distiller = pair()
    with pytest.raises(ValueError) as raised:
        distiller.fit(records(), callbacks=[Fails()], verbose=0)
    assert not getattr(raised.value, "__notes__", [])


class Fails(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise ValueError("something else")
