"""Models that agree up to rounding: no energy has a gradient, compiled or not."""

import numpy as np
import pytest
from gradients import compiled_value_and_grads
from keras import ops
from marks import kept

import keras_betakd as kb
from keras_betakd.head_loss import fused_head_loss

pytestmark = [pytest.mark.backends, pytest.mark.traced]

ROWS, CLASSES = 3, 3001
LABELS = np.arange(ROWS)
ENERGIES = [
    kb.TotalVariationEnergy(),
    kb.TotalVariationEnergy(temperature=4.0),
    kb.ULDEnergy(temperature=0.7),
    kb.ForwardKLEnergy(),
    kb.ReverseKLEnergy(temperature=0.7),
    kb.JensenShannonEnergy(),
    kb.CosineProbsEnergy(),
    kb.MSEProbsEnergy(),
    kb.SkewForwardKLEnergy(),
    kb.SkewReverseKLEnergy(),
    kb.AdaptiveKLEnergy(),
    kb.EntropyAwareKLEnergy(),
    kb.TAIDEnergy(total_steps=5),
    kb.CTKDEnergy(total_steps=5),
    kb.DKDEnergy(),
    kb.MSELogitsEnergy(),
    kb.CosineLogitsEnergy(),
]


def check(value, grads):
    assert abs(value) < 1e-9
    assert np.abs(grads[0]).max() < 2e-6


@pytest.mark.parametrize("energy", ENERGIES, ids=lambda energy: energy.name)
def test_equal_logits_have_no_gradient(energy):
    """Total variation had one of 0.02: two softmaxes of the same logits rounded apart.
    A constant on all logits rounds them, too, and changes no probability."""
    labels = ops.convert_to_tensor(LABELS)

    def total(student, teacher):
        logits = {"logits": teacher, "labels": labels}
        y_true = logits if energy.needs_labels else teacher
        return ops.mean(energy.call(y_true, student)), student

    run = compiled_value_and_grads(total, 1)
    rng = np.random.default_rng(0)
    for scale, shift in ((1.0, 0.0), (5.0, 0.0), (3.0, 2.0), (3.0, -30.0)):
        student = rng.normal(size=(ROWS, CLASSES), scale=scale).astype("float32")
        value, _, grads = run(student, student + np.float32(shift))
        check(value, grads)


@pytest.mark.parametrize("dtype", kept(["float32", "bfloat16"], "float32"))
def test_equal_heads_have_no_gradient(dtype):
    """Closed forms, in the fused head."""
    energies = {e.name: e for e in ENERGIES[2:] if e.fuses and e.parameter is None}
    energies |= {"tvd": ENERGIES[0], "tvd_4": ENERGIES[1]}
    zero, one = np.zeros((1, ROWS)), np.ones((len(energies), ROWS)) / ROWS
    weights = np.concatenate([zero, one]).astype("float32")

    def total(rows, kernel):
        kernel, rows = ops.cast(kernel, dtype), ops.cast(rows, dtype)
        logits = ops.cast(ops.matmul(rows, ops.transpose(kernel)), "float32")
        loss = fused_head_loss(
            rows, kernel, logits + 2.0, lambda x: x, LABELS, weights, energies
        )
        return loss.total, rows

    rng = np.random.default_rng(0)
    rows, kernel = (
        rng.normal(size=(n, 8), scale=0.5).astype("float32") for n in (ROWS, CLASSES)
    )
    value, _, grads = compiled_value_and_grads(total, 1)(rows, kernel)
    check(value, grads)


def test_gaps_above_rounding_count():
    """A tenth of a per mille is one."""
    teacher = np.zeros((1, 4), "float32")
    student = np.array([[1e-4, 0.0, 0.0, 0.0]], "float32")
    for energy, size in ((kb.TotalVariationEnergy(), 1), (kb.ULDEnergy(), 2)):
        received = float(energy(teacher, student))
        assert received == pytest.approx(size * 1e-4 * 0.25 * 0.75, rel=0.02)
