"""Habits of Keras users through the distiller: LoRA, quantisation, precision, EMA."""

import keras
import numpy as np
import pytest
from keras import ops
from marks import kept
from tiny_models import tiny_gemma3, tiny_gemma_text, vqa_records

from keras_betakd import (
    BetaKDDistiller,
    DistillationPreprocessor,
    ForwardKLEnergy,
    NonFiniteError,
    TaskBeta,
)
from keras_betakd.distillation.freezing import all_layers

RECORDS = vqa_records(4)


TEXT_RECORDS = {
    "prompts": ["what color?"] * 4,
    "responses": RECORDS["responses"],
}


def text_pair(**kwargs):
    keras.utils.set_random_seed(3)
    return pair(teacher=tiny_gemma_text(12), student=tiny_gemma_text(**kwargs))


def pair(teacher=None, student=None, **kwargs):
    keras.utils.set_random_seed(3)
    teacher, student = teacher or tiny_gemma3(width=12), student or tiny_gemma3()
    preprocessor = DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, max_response_length=4
    )
    return BetaKDDistiller(
        teacher,
        student,
        ForwardKLEnergy(),
        TaskBeta(),
        preprocessor=preprocessor,
        **kwargs,
    )


def values(weights):
    return {w.path: ops.convert_to_numpy(ops.cast(w, "float32")) for w in weights}


def moved(distiller, optimizer, steps=2, records=RECORDS):
    """Paths of the student's weights that training changed."""
    weights = distiller.student.weights
    before = values(weights)
    distiller.compile(optimizer=optimizer)
    history = distiller.fit(records, batch_size=4, epochs=steps, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    after = values(weights)
    return {path for path in before if (before[path] != after[path]).any()}


@pytest.mark.parametrize("layers", [None, ["query"]])
def test_lora_moves_its_own_weights_and_no_vision_layer(layers):
    """The vision tower has layers of the same names; frozen, they do not train."""
    distiller = pair()
    distiller.student.backbone.enable_lora(2, layers)
    paths = moved(distiller, keras.optimizers.SGD(0.1))
    tower = distiller.student_view.vision_tower()[0]
    assert paths
    assert all("lora" in path for path in paths)
    assert not paths & {w.path for w in tower.weights}
    if layers:
        assert all("query" in path for path in paths)
    slots = len(distiller.optimizer.variables)
    assert slots < len(distiller.student.weights)


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.parametrize("policy", kept(["bfloat16", "mixed_bfloat16"], "bfloat16"))
def test_adam_moves_lora_and_beta_in_half_precision(policy):
    """A user reported the same loss in every epoch: 1 + 1e-4 is 1 in bfloat16."""
    distiller = text_pair(dtype=policy)
    distiller.student.backbone.enable_lora(2)
    beta = distiller.betas["forward_kl"]
    before = values(beta.variables)
    paths = moved(distiller, keras.optimizers.Adam(1e-4), 20, TEXT_RECORDS)
    assert {path for path in paths if "lora" in path}
    if policy == "mixed_bfloat16":  # weights in float32: every one of them moves
        assert paths == {w.path for w in distiller.student.trainable_weights}
    after = values(beta.variables)
    assert any((before[k] != after[k]).any() for k in before)


def test_int4_teacher_with_lora_student():
    """`test_families.py` tests int8."""
    teacher = tiny_gemma3(width=16)
    teacher.backbone.quantize("int4")
    distiller = pair(teacher=teacher)
    distiller.student.backbone.enable_lora(2)
    assert any("int4" in str(layer.dtype_policy) for layer in all_layers(teacher))
    paths = moved(distiller, keras.optimizers.SGD(0.1))
    assert paths
    assert all("lora" in path for path in paths)


@pytest.mark.backends
@pytest.mark.traced
def test_accumulated_steps_equal_one_large_batch():
    """Weight decay is applied once, too."""

    def trained(batch_size, steps):
        distiller = text_pair()
        optimizer = keras.optimizers.SGD(
            0.1, gradient_accumulation_steps=steps, weight_decay=0.01
        )
        distiller.compile(optimizer=optimizer)
        distiller.fit(TEXT_RECORDS, batch_size=batch_size, shuffle=False, verbose=0)
        return distiller

    once, twice = trained(4, None), trained(2, 2)
    weights = [d.student.weights + d.betas["forward_kl"].weights for d in (once, twice)]
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(one), ops.convert_to_numpy(two), rtol=1e-5, atol=1e-6
        )


@pytest.mark.backends
def test_clipping_by_global_norm_covers_the_student():
    """The betas move at their own speed."""
    distiller = text_pair()
    distiller.compile(optimizer=keras.optimizers.SGD(1.0, global_clipnorm=1e-3))
    before = values(distiller.student.trainable_weights)
    distiller.fit(TEXT_RECORDS, batch_size=4, verbose=0)
    after = values(distiller.student.trainable_weights)
    step = sum(((after[k] - before[k]) ** 2).sum() for k in before)
    np.testing.assert_allclose(np.sqrt(step), 1e-3, rtol=1e-2)


@pytest.mark.backends
def test_moving_average_of_weights():
    """Keras replaces the weights by their average when training ends."""

    def run(**kwargs):
        distiller = text_pair()
        distiller.compile(optimizer=keras.optimizers.SGD(0.5, **kwargs))
        snapshots = [values(distiller.student.weights)]
        for _ in range(2 if not kwargs else 1):
            epochs = 1 if not kwargs else 2
            distiller.fit(TEXT_RECORDS, batch_size=4, epochs=epochs, verbose=0)
            snapshots.append(values(distiller.student.weights))
        return snapshots

    start, first, second = run()
    averaged = run(use_ema=True, ema_momentum=0.75)[-1]
    for path, value in averaged.items():
        # Keras starts the average at the weights after the first step.
        expected = 0.75 * first[path] + 0.25 * second[path]
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.backends
@pytest.mark.float16
@pytest.mark.traced
def test_a_batch_that_overflows_is_skipped_for_student_and_beta():
    distiller = text_pair(dtype="mixed_float16")
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    scaled = distiller.optimizer.inner_optimizer
    assert isinstance(scaled, keras.optimizers.LossScaleOptimizer)
    embedding = distiller.student.backbone.token_embedding.embeddings
    kept = ops.convert_to_numpy(embedding)
    embedding.assign(np.full_like(kept, 3e5))  # infinite in float16
    before = values(distiller.trainable_weights)
    with pytest.raises(NonFiniteError, match="All 1 batches"):
        distiller.fit(TEXT_RECORDS, batch_size=4, verbose=0)
    after = values(distiller.trainable_weights)
    for path in before:
        np.testing.assert_array_equal(before[path], after[path])
