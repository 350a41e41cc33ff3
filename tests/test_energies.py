"""The energies as losses: known bugs of other libraries, masks, Keras' machinery."""

import json
import math

import keras
import numpy as np
import pytest
from gradients import value_and_grad
from keras import ops

from keras_betakd import energies as library
from keras_betakd.energies import (
    AdaptiveKLEnergy,
    CosineLogitsEnergy,
    CosineProbsEnergy,
    DKDEnergy,
    Energy,
    EntropyAwareKLEnergy,
    ForwardKLEnergy,
    JensenShannonEnergy,
    MSELogitsEnergy,
    MSEProbsEnergy,
    ReverseKLEnergy,
    SkewForwardKLEnergy,
    SkewReverseKLEnergy,
    TAIDEnergy,
    TotalVariationEnergy,
    select_supervised,
)

pytestmark = pytest.mark.backends

INF = math.inf
P, Q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.5, 0.3])
PROBABILITY_CLASSES = {
    "forward_kl": ForwardKLEnergy,
    "reverse_kl": ReverseKLEnergy,
    "jensen_shannon": JensenShannonEnergy,
    "total_variation": TotalVariationEnergy,
    "skew_forward_kl": SkewForwardKLEnergy,
    "skew_reverse_kl": SkewReverseKLEnergy,
    "cosine_probs": CosineProbsEnergy,
    "mse_probs": MSEProbsEnergy,
    "adaptive_kl": AdaptiveKLEnergy,
    "entropy_aware_kl": EntropyAwareKLEnergy,
}
LOGIT_CLASSES = {"cosine_logits": CosineLogitsEnergy, "mse_logits": MSELogitsEnergy}
CLASSES = {**PROBABILITY_CLASSES, **LOGIT_CLASSES}

every_energy = pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
every_probability_energy = pytest.mark.parametrize(
    "cls", PROBABILITY_CLASSES.values(), ids=PROBABILITY_CLASSES
)
every_logit_energy = pytest.mark.parametrize(
    "cls", LOGIT_CLASSES.values(), ids=LOGIT_CLASSES
)


def logits(*shape, seed=0, scale=2.0):
    draw = np.random.default_rng(seed).normal(size=shape) * scale
    return draw.astype("float32")


def per_position(energy, teacher, student):
    return ops.convert_to_numpy(energy.call(teacher, student))


def single(energy, teacher, student):
    """The energy of one position, given as two lists of class scores."""
    teacher, student = (np.asarray([x], "float32") for x in (teacher, student))
    return per_position(energy, teacher, student)[0]


def student_grad(energy, teacher, student, **kwargs):
    value, (grad,) = value_and_grad(lambda s: energy(teacher, s, **kwargs), student)
    return value, grad


class AttachMask(keras.layers.Layer):
    """Gives its input the Keras mask `mask`, as an embedding or masking layer would."""

    def __init__(self, mask):
        super().__init__()
        self.supports_masking = True
        self.mask = mask

    def call(self, x):
        return x + 0.0

    def compute_mask(self, inputs, mask=None):
        return ops.convert_to_tensor(self.mask, dtype="bool")


# --- right values where other libraries were wrong ----------------------------------


@pytest.mark.parametrize(
    "energy, expected",
    [
        (ForwardKLEnergy(), 0.583815),
        (ReverseKLEnergy(), 0.537176),
        # Elsewhere the mixture weighted the student, which swaps the ends.
        (JensenShannonEnergy(0.1), 0.050995),
        (JensenShannonEnergy(0.5), 0.132918),
        (JensenShannonEnergy(0.9), 0.047864),
        (TotalVariationEnergy(), 0.5),
        (CosineProbsEnergy(), 0.403960),
        (MSEProbsEnergy(), 0.38),
        (MSEProbsEnergy(mean_over_vocabulary=True), 0.126667),
    ],
    ids=lambda x: x.name if isinstance(x, Energy) else str(x),
)
def test_known_values(energy, expected):
    assert single(energy, np.log(P), np.log(Q)) == pytest.approx(expected, abs=1e-6)


@every_energy
def test_teacher_equal_to_student_is_exactly_zero(cls):
    """Rounding noise of either sign breaks a weight that divides by the energy."""
    x = logits(2, 4, 7, scale=10.0)
    value, grad = student_grad(cls(), x, x)
    assert value == 0.0
    assert np.abs(grad).max() < 1e-7


@pytest.mark.parametrize("distance", [1e-1, 1e-3, 1e-5, 1e-7])
@every_energy
def test_never_negative_near_agreement(cls, distance):
    teacher = logits(64, 50)
    values = per_position(cls(), teacher, teacher + distance * logits(64, 50, seed=1))
    assert (values >= 0.0).all() and np.isfinite(values).all()


@pytest.mark.parametrize(
    "cls", [ForwardKLEnergy, ReverseKLEnergy, SkewForwardKLEnergy, SkewReverseKLEnergy]
)
def test_swapping_teacher_and_student_changes_a_directed_divergence(cls):
    forward = single(cls(), np.log(P), np.log(Q))
    backward = single(cls(), np.log(Q), np.log(P))
    assert abs(forward - backward) > 0.01


def test_forward_and_reverse_are_each_other_swapped():
    teacher, student = logits(2, 4, 7), logits(2, 4, 7, seed=1)
    for one, other in [
        (ForwardKLEnergy(), ReverseKLEnergy()),
        (SkewForwardKLEnergy(skew=0.3), SkewReverseKLEnergy(skew=0.3)),
        (JensenShannonEnergy(0.2), JensenShannonEnergy(0.8)),
    ]:
        a, b = (
            per_position(one, teacher, student),
            per_position(other, student, teacher),
        )
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "cls, expected",
    [(ForwardKLEnergy, 40.0), (ReverseKLEnergy, 40.0), (JensenShannonEnergy, 0.693147)],
)
def test_low_temperature_keeps_the_gradient_finite(cls, expected, dtype):
    """Elsewhere the value is finite; the gradient goes through log(0) and is NaN."""
    teacher, student = [[2.0, 0.0, -2.0]], np.array([[0.0, 2.0, -2.0]], "float32")
    energy = cls(temperature=0.05)
    value, (grad,) = value_and_grad(
        lambda s: energy(ops.convert_to_tensor(teacher, dtype), ops.cast(s, dtype)),
        student,
    )
    assert value == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(grad).all()


def test_large_vocabulary_is_not_clipped():
    """Keras' own KL clips at 1e-7: 0.00230665, and no gradient on the whole tail."""
    width = 256_000
    teacher, student = np.full((1, width), 1e-9), np.full((1, width), 1e-8)
    for probabilities in (teacher, student):
        probabilities[0, 0] = 1.0 - probabilities[0, 1:].sum()
    teacher, student = (np.log(x).astype("float32") for x in (teacher, student))
    value, grad = student_grad(ForwardKLEnergy(), teacher, student)
    assert value == pytest.approx(0.00171719, rel=2e-4)
    np.testing.assert_allclose(grad[0, 1:], 9e-9, rtol=1e-3)


@pytest.mark.parametrize("end", [0, 1])
def test_jensen_shannon_refuses_the_ends(end):
    """With a weight of 0 or 1 the value is 0 for every input and trains nothing."""
    with pytest.raises(ValueError, match=f"ForwardKLEnergy.*teacher_weight={end}"):
        JensenShannonEnergy(teacher_weight=end)


def test_value_does_not_depend_on_batch_length_or_vocabulary():
    """A mean over the vocabulary (0.194605) was returned under the name batch mean."""
    energy = ForwardKLEnergy()
    teacher, student = (np.tile(np.log(x), (2, 3, 1)) for x in (P, Q))
    assert float(energy(teacher, student)) == pytest.approx(0.583815, abs=1e-6)
    wider = [np.pad(x, ((0, 0),) * 2 + ((0, 9),), constant_values=-80.0)
             for x in (teacher, student)]  # fmt: skip
    assert float(energy(*wider)) == pytest.approx(0.583815, abs=1e-6)


@pytest.mark.parametrize(
    "temperature, value, norm",
    [
        (1.0, 0.382650, 0.466886),
        (2.0, 0.093396, 0.111448),
        (4.0, 0.022569, 0.026927),
        (8.0, 0.005515, 0.006606),
    ],
)
def test_temperature_and_its_square(temperature, value, norm):
    """Without T^2 the balance with the hard-label loss changed with T."""
    teacher = np.array([[1.0, 0.0, -1.0, 0.0]], "float32")
    student = np.array([[0.0, 0.0, 0.0, 1.0]], "float32")
    for scale_by_t2, factor in [(False, 1.0), (True, temperature**2)]:
        energy = ForwardKLEnergy(temperature=temperature, scale_by_t2=scale_by_t2)
        result, grad = student_grad(energy, teacher, student)
        assert result / factor == pytest.approx(value, abs=1e-6)
        assert np.linalg.norm(grad) / factor == pytest.approx(norm, abs=1e-6)
    assert 0.42 < np.linalg.norm(grad) < 0.47


@every_probability_energy
def test_every_probability_energy_takes_temperature(cls):
    teacher, student = logits(2, 4, 7), logits(2, 4, 7, seed=1)
    tempered = per_position(cls(temperature=3.0), teacher, student)
    divided = per_position(cls(), teacher / 3.0, student / 3.0)
    np.testing.assert_allclose(tempered, divided, rtol=1e-5)
    scaled = per_position(cls(temperature=3.0, scale_by_t2=True), teacher, student)
    np.testing.assert_allclose(scaled, 9.0 * tempered, rtol=1e-6)


@every_energy
def test_different_widths_raise(cls):
    """Cropped probabilities give a negative KL; a padded student adds mass."""
    teacher = np.array([[2.0, 1.0, 0.0, -1.0, 0.5, 6.0, 6.0]], "float32")
    student = np.array([[1.0, 1.0, 0.0, 0.0, 0.0]], "float32")
    for run in (cls(), cls().call):
        with pytest.raises(ValueError, match=r"crop the logits.*\(1, 7\).*\(1, 5\)"):
            run(teacher, student)
    cropped = float(ForwardKLEnergy()(teacher[:, :5], student))
    assert cropped == pytest.approx(0.155941, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 8), (3, 4, 8), (2, 4, 1, 8), (4, 8)])
def test_different_positions_raise(shape):
    """The reference trimmed both to the shorter length and returned a loss."""
    with pytest.raises(ValueError, match="same shape"):
        ForwardKLEnergy()(logits(2, 4, 8), logits(*shape))


def test_probabilities_and_logits_are_not_confused():
    p, q = [0.9, 0.1], [0.1, 0.9]
    probabilities, softmax_twice = ForwardKLEnergy(from_logits=False), ForwardKLEnergy()
    assert single(probabilities, p, q) == pytest.approx(1.757780, abs=1e-6)
    assert single(softmax_twice, p, q) == pytest.approx(0.303959, abs=1e-6)
    # Taking p for log p gave -1.145083 for equal inputs.
    assert single(probabilities, q, q) == 0.0
    # Logits passed as probabilities must not look like a loss.
    assert math.isnan(single(probabilities, [2.0, -1.0], [0.5, 0.5]))


@every_probability_energy
def test_from_probabilities_agrees_with_from_logits(cls):
    teacher, student = logits(2, 4, 7), logits(2, 4, 7, seed=1)
    p, q = (ops.convert_to_numpy(ops.softmax(x)) for x in (teacher, student))
    given = per_position(cls(temperature=2.0, from_logits=False), p, q)
    expected = per_position(cls(temperature=2.0), teacher, student)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-7)


@every_probability_energy
def test_zero_probabilities_are_excluded_classes(cls):
    p, q = (
        np.array([[0.6, 0.4, 0.0]], "float32"),
        np.array([[0.3, 0.7, 0.0]], "float32"),
    )
    energy = cls(from_logits=False)
    value, grad = student_grad(energy, p, q)
    assert value == pytest.approx(float(energy(p[:, :2], q[:, :2])), rel=1e-6)
    assert np.isfinite(grad).all()


@every_energy
def test_softmax_runs_over_classes_only(cls):
    """3-D logits were normalised over time, so that one step changed all others."""
    teacher, student = logits(2, 4, 7), logits(2, 4, 7, seed=1)
    before = per_position(cls(), teacher, student)
    student[:, 2] = logits(2, 7, seed=2)
    after = per_position(cls(), teacher, student)
    others = [0, 1, 3]
    np.testing.assert_array_equal(after[:, others], before[:, others])
    assert (after[:, 2] != before[:, 2]).all()


# --- excluded classes and broken logits ---------------------------------------------


def test_a_token_banned_by_both_models_counts_for_nothing():
    teacher, student = [0.0, 0.0, -INF], [0.0, 1.0, -INF]
    assert single(ForwardKLEnergy(), teacher, student) == pytest.approx(0.120115, 1e-5)
    assert single(ReverseKLEnergy(), teacher, student) == pytest.approx(0.110944, 1e-5)


@pytest.mark.parametrize(
    "energy",
    [cls() for cls in CLASSES.values()]
    + [MSELogitsEnergy(standardize=False), CosineLogitsEnergy(standardize=False)],
    ids=lambda energy: f"{energy.name}-{getattr(energy, 'standardize', '')}",
)
def test_columns_excluded_by_both_equal_columns_removed(energy):
    """Replacing non-finite values afterwards leaves the gradient NaN."""
    teacher, student = logits(2, 4, 7), logits(2, 4, 7, seed=1)
    value, grad = student_grad(energy, teacher, student)
    wide = [np.insert(x, [2, 7], -INF, axis=-1) for x in (teacher, student)]
    wide_value, wide_grad = student_grad(energy, *wide)
    assert wide_value == pytest.approx(value, rel=1e-6)
    assert (wide_grad[..., [2, 8]] == 0.0).all()
    np.testing.assert_allclose(np.delete(wide_grad, [2, 8], -1), grad, atol=1e-7)


def test_exclusion_by_one_model_is_infinite_for_a_divergence_that_is():
    open_, banned = [0.0, 1.0, 2.0], [0.0, -INF, 2.0]
    assert single(ForwardKLEnergy(), open_, banned) == INF
    assert single(ReverseKLEnergy(), banned, open_) == INF
    # The teacher's probability, exp(-200), is 0 in float32: still allowed, still inf.
    assert single(ForwardKLEnergy(), [0.0, -200.0], [0.0, -INF]) == INF
    assert single(JensenShannonEnergy(), [0.0, -INF], [-INF, 0.0]) == pytest.approx(
        math.log(2.0), rel=1e-6
    )


@pytest.mark.parametrize("bad", [math.nan, INF])
@every_energy
def test_broken_logits_are_not_turned_into_a_number(cls, bad):
    """One NaN logit gave a loss of 0 for the batch, which raises a learned weight."""
    good, broken = [0.0, 1.0, 2.0], [0.0, bad, 2.0]
    assert not math.isfinite(single(cls(), good, broken))
    assert not math.isfinite(single(cls(), broken, good))


@every_logit_energy
def test_constant_logits_have_a_bounded_gradient(cls):
    """A head of zeros had a gradient of 1e7 (MSE) and 3e15 (cosine)."""
    value, grad = student_grad(cls(), logits(2, 4, 7), np.zeros((2, 4, 7), "float32"))
    assert math.isfinite(value)
    assert 0.0 < np.abs(grad).max() < 1e3


# --- identities ---------------------------------------------------------------------


@every_probability_energy
def test_softmax_gradients_sum_to_zero(cls):
    _, grad = student_grad(cls(), logits(2, 4, 7), logits(2, 4, 7, seed=1))
    assert np.abs(grad).max() > 1e-3
    np.testing.assert_allclose(grad.sum(-1), 0.0, atol=1e-6)


def test_pinsker_inequality():
    teacher, student = logits(64, 50), logits(64, 50, seed=1)
    kl = per_position(ForwardKLEnergy(), teacher, student)
    assert (
        2.0 * per_position(TotalVariationEnergy(), teacher, student) ** 2 < kl
    ).all()


@pytest.mark.parametrize("size", [7, 50])
def test_standardised_mse_is_a_multiple_of_the_cosine(size):
    teacher, student = logits(64, size), logits(64, size, seed=1)
    mse = per_position(MSELogitsEnergy(), teacher, student)
    cosine = per_position(CosineLogitsEnergy(), teacher, student)
    np.testing.assert_allclose(mse, 2.0 * (size - 1) / size * cosine, rtol=1e-5)


@pytest.mark.parametrize(
    "energy, ratio",
    [
        (ReverseKLEnergy(), 1.0),
        (JensenShannonEnergy(0.3), 0.21),
        (SkewForwardKLEnergy(skew=0.1), 0.81),
        (SkewReverseKLEnergy(skew=0.1), 0.81),
    ],
    ids=lambda x: x.name if isinstance(x, Energy) else str(x),
)
def test_ratio_to_forward_kl_near_equality(energy, ratio):
    teacher = logits(64, 50)
    student = teacher + 1e-3 * logits(64, 50, seed=1, scale=1.0)
    kl = per_position(ForwardKLEnergy(), teacher, student)
    result = per_position(energy, teacher, student)
    np.testing.assert_allclose(result.sum() / kl.sum(), ratio, rtol=1e-3)


@every_energy
def test_order_of_the_vocabulary_is_irrelevant(cls):
    teacher, student = logits(2, 4, 7), logits(2, 4, 7, seed=1)
    order = np.random.default_rng(2).permutation(7)
    before = per_position(cls(), teacher, student)
    after = per_position(cls(), teacher[..., order], student[..., order])
    np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize(
    "cls",
    # Its weight is a constant to the gradient, not to the difference quotient.
    [cls for cls in CLASSES.values() if cls is not AdaptiveKLEnergy],
)
def test_gradient_is_the_difference_quotient(cls):
    teacher, student = logits(2, 4, 7), logits(2, 4, 7, seed=1)
    direction = logits(2, 4, 7, seed=2, scale=1.0)
    _, grad = student_grad(cls(), teacher, student)
    ends = [float(cls()(teacher, student + h * direction)) for h in (1e-2, -1e-2)]
    slope = (ends[0] - ends[1]) / 2e-2
    assert (grad * direction).sum() == pytest.approx(slope, rel=5e-3, abs=5e-5)


# --- masks --------------------------------------------------------------------------


@every_energy
def test_mean_is_over_the_supervised_weight(cls):
    """Keras' default divides by every position: 0.375 times the energy here."""
    teacher, student = (np.tile(logits(7, seed=s), (2, 4, 1)) for s in (0, 1))
    weights = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], "float32")
    each = per_position(cls(), teacher, student)[0, 0]
    for factor in (1.0, 2.0):
        mean = float(cls()(teacher, student, sample_weight=factor * weights))
        assert mean == pytest.approx(each, rel=1e-6)


@every_energy
def test_row_without_supervision(cls):
    """Elsewhere a truncated sample had 0 answer tokens, and the loss was NaN."""
    teacher, student = logits(2, 4, 7), logits(2, 4, 7, seed=1)
    weights = np.array([[0, 0, 0, 0], [1, 1, 0, 0]], "float32")
    value, grad = student_grad(cls(), teacher, student, sample_weight=weights)
    alone = per_position(cls(), teacher, student)[1, :2].mean()
    assert value == pytest.approx(alone, rel=1e-6)
    assert np.isfinite(grad).all() and (grad[0] == 0.0).all()
    empty, grad = student_grad(cls(), teacher, student, sample_weight=0.0 * weights)
    assert empty == 0.0 and (grad == 0.0).all()


@pytest.mark.parametrize("cls", [ForwardKLEnergy, CosineProbsEnergy])
def test_padding_changes_nothing(cls):
    """With padding counted, one method looked better than another without being so."""
    teacher, student = logits(2, 4, 7), logits(2, 4, 7, seed=1)
    value, grad = student_grad(cls(), teacher, student)
    junk = [logits(2, 50, 7, seed=seed, scale=30.0) for seed in (2, 3)]
    teacher = np.concatenate([teacher, junk[0]], 1)
    student = np.concatenate([student, junk[1]], 1)
    weights = np.pad(np.ones((2, 4)), ((0, 0), (0, 50)))
    padded, wide = student_grad(cls(), teacher, student, sample_weight=weights)
    assert padded == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(wide[:, :4], grad, rtol=1e-5, atol=1e-8)
    assert (wide[:, 4:] == 0.0).all()


@pytest.mark.parametrize("from_mask", [False, True], ids=["weight", "keras_mask"])
@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
@every_energy
def test_masked_positions_may_hold_anything(cls, bad, from_mask):
    """NaN times a weight of zero is NaN, in the value and in the gradient."""
    teacher, student = logits(2, 4, 7), logits(2, 4, 7, seed=1)
    mask = np.array([[1, 1, 0, 1], [0, 1, 1, 0]], "float32")
    energy = cls()

    def loss(s):
        if from_mask:
            return energy(teacher, AttachMask(mask)(s))
        return energy(teacher, s, sample_weight=mask)

    expected, (expected_grad,) = value_and_grad(loss, student)
    teacher[mask == 0], student[mask == 0] = bad, bad
    teacher[0, 2, 3] = 1.0
    value, (grad,) = value_and_grad(loss, student)
    assert value == expected
    np.testing.assert_array_equal(grad, expected_grad)
    assert (grad[mask == 0] == 0.0).all()


@pytest.mark.parametrize("reduction", ["mean_with_sample_weight", "sum", "mean"])
def test_keras_mask_and_sample_weight_multiply(reduction):
    teacher, student = logits(2, 3, 7), logits(2, 3, 7, seed=1)
    mask = np.array([[1, 1, 0], [1, 0, 0]], "float32")
    weights = np.array([[0.5, 2.0, 9.0], [0.0, 4.0, 1.0]], "float32")
    energy = ForwardKLEnergy(reduction=reduction)
    result = float(energy(teacher, AttachMask(mask)(student), sample_weight=weights))
    values = per_position(energy, teacher, student) * mask * weights
    # Under a Keras mask "mean" divides by the valid positions, as everywhere in Keras.
    divisor = {"sum": 1.0, "mean": 3.0}.get(reduction, 2.5)
    assert result == pytest.approx(values.sum() / divisor, rel=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 3), (3, 3, 1)])
def test_weights_of_lower_rank_weigh_whole_examples(shape):
    """Keras weighs time steps by (B,) if B = T, and scales by T for (B, 1)."""
    teacher, student = logits(3, 3, 7), logits(3, 3, 7, seed=1)
    full = np.array([[1.0], [0.0], [3.0]]) * np.ones((3, 3))
    weights = full.reshape(3, 3, 1)[:, : math.prod(shape[1:])].reshape(shape)
    energy = ForwardKLEnergy()
    result = float(energy(teacher, student, sample_weight=weights))
    values = per_position(energy, teacher, student)
    assert result == pytest.approx((values * full).sum() / full.sum(), rel=1e-6)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (3, 4, 7), (1, 3, 4)])
def test_weights_that_fit_no_position_raise(shape):
    with pytest.raises(ValueError, match="sample_weight"):
        ForwardKLEnergy()(logits(3, 4, 7), logits(3, 4, 7), np.ones(shape))


def test_no_reduction_returns_one_value_per_position():
    teacher, student = logits(2, 4, 7), logits(2, 4, 7, seed=1)
    weights = np.array([[1, 0, 2, 1], [0, 1, 1, 0]], "float32")
    energy = ForwardKLEnergy(reduction=None)
    result = ops.convert_to_numpy(energy(teacher, student, sample_weight=weights))
    expected = per_position(energy, teacher, student) * weights
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_select_supervised():
    x = logits(2, 3, 5)
    weights = np.array([[0.0, 0.5, 0.0], [2.0, 0.0, 1.0]])
    x[0, 0] = math.nan
    kept = ops.convert_to_numpy(select_supervised(ops.convert_to_tensor(x), weights))
    np.testing.assert_array_equal(kept[weights > 0], x[weights > 0])
    assert (kept[weights == 0] == 1.0).all()


# --- configuration ------------------------------------------------------------------


@pytest.mark.parametrize("name, cls", CLASSES.items())
def test_default_name_and_reduction(name, cls):
    assert cls().name == name
    assert cls().reduction == "mean_with_sample_weight"
    assert cls(name="mine").name == "mine"


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"])
def test_float32_whatever_the_global_precision(floatx):
    keras.config.set_dtype_policy(f"mixed_{floatx}")
    keras.config.set_floatx(floatx)
    try:
        energy = ForwardKLEnergy()
        value = energy(np.log([P]).astype("float32"), np.log([Q]).astype("float32"))
        assert energy.dtype == "float32"
        assert keras.backend.standardize_dtype(value.dtype) == "float32"
        assert float(value) == pytest.approx(0.583815, abs=1e-6)
    finally:
        keras.config.set_floatx("float32")


@pytest.mark.pytorch
@pytest.mark.parametrize(
    "reduced, received",
    [
        (lambda gap: ops.mean(gap), r"shape \(\)"),
        (lambda gap: ops.mean(gap, axis=-1, keepdims=True), r"shape \(2, 4, 1\)"),
        (lambda gap: None, "NoneType"),
    ],
)
def test_an_own_energy_has_one_value_for_each_position(reduced, received):
    """A mean over all positions was taken for the value of each, whatever the mask."""

    class Own(Energy):
        def pointwise(self, teacher, student):
            return reduced(ops.abs(teacher - student))

    with pytest.raises(ValueError, match=f"Own.pointwise.*one value.*{received}"):
        Own()(logits(2, 4, 7), logits(2, 4, 7, seed=1))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ForwardKLEnergy(temperature=0), "temperature.*temperature=0"),
        (lambda: ReverseKLEnergy(temperature=-1.0), "temperature=-1.0"),
        (lambda: CosineProbsEnergy(temperature=INF), "temperature=inf"),
        (lambda: CosineProbsEnergy(temperature=math.nan), "temperature=nan"),
        (lambda: CosineProbsEnergy(temperature="2"), "temperature=2"),
        (lambda: CosineProbsEnergy(temperature=True), "temperature=True"),
        (lambda: SkewForwardKLEnergy(skew=0.0), "`skew`.*skew=0.0"),
        (lambda: SkewReverseKLEnergy(skew=1.0), "`skew`.*skew=1.0"),
        (lambda: MSELogitsEnergy(ddof=2), "`ddof`.*ddof=2"),
        (lambda: MSELogitsEnergy(epsilon=0.0), "`epsilon`.*epsilon=0.0"),
        (lambda: CosineLogitsEnergy(epsilon=-1.0), "`epsilon`.*epsilon=-1.0"),
        (lambda: AdaptiveKLEnergy(head_mass=1.0), "`head_mass`.*head_mass=1.0"),
        (lambda: AdaptiveKLEnergy(head_rule="top"), "nucleus.*head_rule='top'"),
        (lambda: EntropyAwareKLEnergy(full_entropy=0.0), "`full_entropy`.*=0.0"),
        (lambda: DKDEnergy(alpha=0.0), "`alpha`.*alpha=0.0"),
        (lambda: DKDEnergy(beta=-1.0), "`beta`.*beta=-1.0"),
        (lambda: ForwardKLEnergy(dtype="float16"), "`dtype`.*dtype=float16"),
        (lambda: ForwardKLEnergy(reduction="average"), "reduction=average"),
    ],
)
def test_invalid_arguments_raise_at_construction(make, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make()


@pytest.mark.parametrize(
    "cls, arguments",
    [(cls, {"temperature": 2.0, "scale_by_t2": True, "from_logits": False})
     for cls in (ForwardKLEnergy, ReverseKLEnergy, TotalVariationEnergy,
                 CosineProbsEnergy)]
    + [
        (JensenShannonEnergy, {"teacher_weight": 0.2, "temperature": 3.0}),
        (SkewForwardKLEnergy, {"skew": 0.3, "scale_by_t2": True}),
        (SkewReverseKLEnergy, {"skew": 0.3, "from_logits": False}),
        (MSEProbsEnergy, {"mean_over_vocabulary": True, "temperature": 2.0}),
        (MSELogitsEnergy, {"standardize": False, "ddof": 0, "epsilon": 0.1}),
        (CosineLogitsEnergy, {"standardize": False, "epsilon": 0.1}),
        (AdaptiveKLEnergy, {"head_mass": 0.7, "head_rule": "prefix"}),
        (EntropyAwareKLEnergy, {"full_entropy": 1.5, "temperature": 2.0}),
        (DKDEnergy, {"alpha": 2.0, "beta": 0.5, "temperature": 4.0}),
    ],
)  # fmt: skip
def test_configuration_survives_json(cls, arguments):
    arguments = {**arguments, "name": "x", "reduction": "sum", "dtype": "float64"}
    energy = cls(**arguments)
    assert energy.get_config() == {**cls().get_config(), **arguments}
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(energy)))
    assert saved["registered_name"] == f"keras_betakd>{cls.__name__}"
    restored = keras.saving.deserialize_keras_object(saved)
    assert type(restored) is cls
    assert restored.get_config() == energy.get_config()
    assert cls.from_config(energy.get_config()).get_config() == energy.get_config()


def test_every_public_energy_is_tested():
    public = {getattr(library, name) for name in library.__all__}
    concrete = {
        x
        for x in public
        if isinstance(x, type)
        and issubclass(x, Energy)
        and x not in (Energy, library.ProbabilityEnergy)
    }
    # One needs labels (tests/test_adaptive_energies.py), one the length of training
    # and is no function of its inputs alone (test_taid.py), some compare no logits
    # at the answer (tests/test_features.py, test_image_attention.py).
    features = {
        getattr(library, name)
        for name in (
            "AttentionEnergy",
            "FeatureCosineEnergy",
            "FeatureEnergy",
            "FeatureMSEEnergy",
            "FeatureRelationEnergy",
            "ImageAttentionEnergy",
            "ImageTokenEnergy",
        )
    }
    temperatures = {library.CTKDEnergy, library.CTKDMLPEnergy}  # tests/test_ctkd.py
    others = features | temperatures
    others |= {library.ULDEnergy}  # tests/test_pairs.py
    assert concrete - others == {*CLASSES.values(), DKDEnergy, TAIDEnergy}


# --- in a Keras project -------------------------------------------------------------


def small_student(width=6, mask_zero=False):
    return keras.Sequential(
        [
            keras.layers.Input((4,), dtype="int32"),
            keras.layers.Embedding(10, 8, mask_zero=mask_zero),
            keras.layers.Dense(width),
        ]
    )


def batch(width=6):
    tokens = np.random.default_rng(0).integers(1, 10, (8, 4))
    weights = np.ones((8, 4), "float32")
    weights[:, 2:] = 0.0
    teacher = logits(8, 4, width)
    teacher[:, 2:] = math.nan
    return tokens, teacher, weights


@pytest.mark.traced
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_fits_as_the_loss_of_a_keras_model(compiled):
    # torch has no jit that is worth its compile time in a test.
    jit = compiled and keras.config.backend() != "torch"
    model = small_student()
    model.compile(
        optimizer=keras.optimizers.SGD(0.5),
        loss=CosineProbsEnergy(),
        jit_compile=jit,
        run_eagerly=not compiled,
    )
    tokens, teacher, weights = batch()
    student = ops.convert_to_numpy(model(tokens))
    values = per_position(CosineProbsEnergy(), teacher, student)
    history = model.fit(tokens, teacher, sample_weight=weights, verbose=0)
    (before,) = history.history["loss"]
    assert before == pytest.approx(values[weights > 0].mean(), rel=1e-5)
    after = model.evaluate(tokens, teacher, sample_weight=weights, verbose=0)
    assert 0.0 < after < before
    for weight in model.get_weights():
        assert np.isfinite(weight).all()


@pytest.mark.traced
def test_mask_of_an_embedding_reaches_the_energy_under_jit():
    model = small_student(mask_zero=True)
    jit = keras.config.backend() != "torch"
    model.compile(loss=ForwardKLEnergy(), jit_compile=jit)
    tokens, teacher, weights = batch()
    tokens[weights == 0] = 0
    student = ops.convert_to_numpy(model(tokens))
    values = per_position(ForwardKLEnergy(), teacher, student)
    loss = model.evaluate(tokens, teacher, verbose=0)
    assert loss == pytest.approx(values[weights > 0].mean(), rel=1e-5)


def test_compiled_model_is_saved_and_loaded_with_its_energy(tmp_path):
    model = small_student()
    model.compile(loss=JensenShannonEnergy(0.2, temperature=2.0))
    tokens, teacher, weights = batch()
    expected = model.evaluate(tokens, teacher, sample_weight=weights, verbose=0)
    model.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    assert loaded.loss.get_config() == model.loss.get_config()
    result = loaded.evaluate(tokens, teacher, sample_weight=weights, verbose=0)
    assert result == pytest.approx(expected, rel=1e-6)
