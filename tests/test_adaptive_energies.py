"""The adaptive KL's head, and the energy that is built around the label (DKD)."""

import math

import keras
import numpy as np
import pytest
from keras import ops
from plain_models import as_array, log_softmax64
from tiny_models import tiny_gemma3, vqa_records

from keras_betakd import (
    AdaptiveKLEnergy,
    BetaKDDistiller,
    DKDEnergy,
    EntropyAwareKLEnergy,
    ForwardKLEnergy,
    ReverseKLEnergy,
    TaskBeta,
)
from keras_betakd.energies.adaptive_kl import head_of

pytestmark = pytest.mark.backends

P = np.array([0.1, 0.4, 0.05, 0.3, 0.15], "float32")


@pytest.mark.parametrize(
    "mass, rule, head",
    [
        (0.5, "nucleus", [0, 1, 0, 1, 0]),
        (0.5, "prefix", [0, 1, 0, 0, 0]),
        (0.35, "nucleus", [0, 1, 0, 0, 0]),
        (0.35, "prefix", [0, 1, 0, 0, 0]),  # never empty
        (0.8, "nucleus", [0, 1, 0, 1, 1]),
        (0.8, "prefix", [0, 1, 0, 1, 0]),
    ],
)
def test_the_head_is_the_largest_classes_in_their_own_places(mass, rule, head):
    """The paper's code read positions in ascending order as classes."""
    rows = np.stack([P, P[::-1]])
    got = as_array(head_of(ops.convert_to_tensor(rows), mass, rule))
    np.testing.assert_array_equal(got, [head, head[::-1]])


def test_adaptive_kl_by_hand():
    """c is the head's share of the gap: here (0.2 + 0.1) / 0.6 by nucleus."""
    q = np.array([0.2, 0.2, 0.15, 0.2, 0.25], "float32")
    log_p, log_q = np.log(P.astype("f8")), np.log(q.astype("f8"))
    forward = (P * (log_p - log_q)).sum()
    reverse = (q * (log_q - log_p)).sum()
    weight = (0.2 + 0.1) / (0.1 + 0.2 + 0.1 + 0.1 + 0.1)
    got = AdaptiveKLEnergy(from_logits=False)(P[None], q[None])
    assert float(got) == pytest.approx(weight * forward + (1 - weight) * reverse, 1e-5)


def test_adaptive_kl_is_infinite_also_where_that_has_no_weight():
    """The infinite direction has weight 0 in float32; the energy was once NaN there."""
    teacher = np.array([[*np.log([0.4, 0.3, 0.3]), -math.inf]], "float32")
    student = np.array([[*np.log([0.5, 0.2, 0.3]), -60.0]], "float32")
    assert float(AdaptiveKLEnergy()(teacher, student)) == math.inf


def logits(seed, *shape):
    return np.random.default_rng(seed).normal(scale=2.0, size=shape).astype("float32")


def decoupled64(teacher, student, labels):
    """The two parts of DKD in float64, from their definition."""
    p, q = (np.exp(log_softmax64(x.astype("f8"))) for x in (teacher, student))
    rows = np.arange(len(labels))
    p_y, q_y = p[rows, labels], q[rows, labels]
    binary = p_y * np.log(p_y / q_y)
    binary = binary + (1 - p_y) * np.log((1 - p_y) / (1 - q_y))
    keep = np.ones_like(p, bool)
    keep[rows, labels] = False
    rest_p, rest_q = (x[keep].reshape(len(labels), -1) for x in (p, q))
    rest_p, rest_q = (x / x.sum(-1, keepdims=True) for x in (rest_p, rest_q))
    return binary, (rest_p * np.log(rest_p / rest_q)).sum(-1), p_y


def test_dkd_is_its_definition_and_binds_to_the_forward_kl():
    """KL = tckd + (1 - p_y) nckd."""
    teacher, student, labels = logits(0, 6, 9), logits(1, 6, 9), np.arange(6)
    binary, rest, p_y = decoupled64(teacher, student, labels)
    target = {"logits": teacher, "labels": labels}
    got = as_array(DKDEnergy(alpha=2.0, beta=3.0).call(target, student))
    np.testing.assert_allclose(got, 2 * binary + 3 * rest, rtol=2e-6)
    kl = as_array(ForwardKLEnergy().call(teacher, student))
    np.testing.assert_allclose(kl, binary + (1 - p_y) * rest, rtol=2e-6)


def test_dkd_without_other_classes():
    """If the teacher allows the label alone, only the first part of DKD is left."""
    teacher = np.array([[0.0, -math.inf, -math.inf]], "float32")
    student = np.array([[math.log(0.5), math.log(0.3), math.log(0.2)]], "float32")
    target = {"logits": teacher, "labels": np.array([0])}
    got = float(DKDEnergy()(target, student))
    assert got == pytest.approx(math.log(2), rel=1e-6)


def test_labels_of_masked_positions_may_be_anything():
    teacher, student = logits(0, 2, 3, 9), logits(1, 2, 3, 9)
    labels, weights = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[1, 1, 0], [1, 0, 0]])
    clean = float(DKDEnergy()({"logits": teacher, "labels": labels}, student, weights))
    teacher[weights == 0] = math.nan
    labels[weights == 0] = -100
    target = {"logits": teacher, "labels": labels}
    assert float(DKDEnergy()(target, student, weights)) == clean


def test_dkd_without_labels_raises():
    with pytest.raises(ValueError, match='DKDEnergy.*"labels".*Received'):
        DKDEnergy()(logits(0, 2, 9), logits(1, 2, 9))


@pytest.mark.pytorch
def test_a_distiller_hands_on_the_labels_fused_or_not():
    histories = []
    for fused in (True, False):
        keras.utils.set_random_seed(3)
        teacher, student = tiny_gemma3(width=12), tiny_gemma3()
        model = BetaKDDistiller(
            teacher,
            student,
            [DKDEnergy(), AdaptiveKLEnergy()],
            [TaskBeta(), TaskBeta()],
            fused=fused,
        )
        model.compile(optimizer=keras.optimizers.Adam(1e-2))
        history = model.fit(
            vqa_records(), batch_size=2, epochs=2, shuffle=False, verbose=0
        )
        histories.append(history.history)
    assert {"dkd", "dkd_beta", "adaptive_kl"} <= set(histories[0])
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=2e-4, atol=1e-6)


def test_entropy_aware_kl_by_hand():
    """Reverse KL where the teacher is sure, forward KL where it is in doubt."""
    sure, doubt = np.array([[0.0, -60.0, -60.0]]), np.log([[0.4, 0.4, 0.2]])
    student = np.log([[0.5, 0.2, 0.3]])
    forward, reverse = (
        float(energy(doubt, student))
        for energy in (ForwardKLEnergy(), ReverseKLEnergy())
    )
    energy = EntropyAwareKLEnergy()  # H = 1.05 of the one in doubt: no more than 1
    assert float(energy(doubt, student)) == pytest.approx(forward)
    assert float(energy(sure, student)) == pytest.approx(
        float(ReverseKLEnergy()(sure, student))
    )
    h = (0.8 * math.log(2.5) + 0.2 * math.log(5)) / 1.5
    half = EntropyAwareKLEnergy(full_entropy=1.5)
    expected = h * forward + (1 - h) * reverse
    assert float(half(doubt, student)) == pytest.approx(expected, rel=1e-6)


def test_entropy_aware_kl_is_infinite_also_where_that_has_no_weight():
    """A teacher that excludes classes and is sure: 0 * inf would be NaN."""
    teacher = np.array([[0.0, -math.inf, -math.inf]], "float32")
    student = np.zeros((1, 3), "float32")
    assert float(EntropyAwareKLEnergy()(teacher, student)) == math.inf
