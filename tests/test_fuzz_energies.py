"""Every energy on random scores: values, gradients and masks, against float64 numbers.

A few examples with the suite. A long run, which ends by saying how many it was:

    KERAS_BACKEND=jax python -m pytest --hypothesis-profile=nightly tests/test_fuzz_*.py
"""

import dataclasses
import functools
from collections.abc import Callable

import exact_energies as exact
import numpy as np
import pytest
from exact_energies import kl, log_softmax
from fuzz_cases import EXAMPLES, NIGHTLY, TOGETHER, Cases, cases
from gradients import value_and_grad
from hypothesis import given, settings
from keras import ops

import keras_betakd as kd

pytestmark = pytest.mark.backends

EPS = float(np.finfo("float32").eps)
PAIR = ("teacher", "student")
HALF = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11}
LARGEST = {"float16": 6.5e4}
TEMPERATURES = (1.0, 0.05, 4.0) if NIGHTLY else (4.0,)


@dataclasses.dataclass
class Subject:
    """An energy, and what it should be.

    Attributes:
        make: takes `reduction`, gives the energy.
        value: teacher, student and fixed scores (N, V), labels (N,) to (N,).
        temperature: of the softmax, `None` where there is none.
        linear: whether it grows like the distance and not like its square.
        size: what the value is multiplied by.
        standardized: whether only differences within a row count.
        features: whether it compares features, of which none is infinite.
        smallest: the spread or length of a row below which a row counts as having it.
    """

    name: str
    make: Callable
    value: Callable
    temperature: float | None = 1.0
    linear: bool = False
    size: float = 1.0
    standardized: bool = True
    features: bool = False
    smallest: float = 1e-3


def of_log_probabilities(function, temperature=1.0, factor=1.0):
    """`function(log_p, log_q, log_fixed, labels)` as a function of scores."""

    def value(teacher, student, fixed, labels):
        logs = (log_softmax(x, temperature) for x in (teacher, student, fixed))
        return factor * function(*logs, labels)

    return value


PROBABILITY = {
    "forward_kl": (kd.ForwardKLEnergy, lambda p, q, *_: kl(p, q)),
    "reverse_kl": (kd.ReverseKLEnergy, lambda p, q, *_: kl(q, p)),
    "cross_entropy": (
        functools.partial(kd.ForwardKLEnergy, form="cross_entropy"),
        lambda p, q, *_: kl(p, q) + exact.entropy(p),
    ),
    "jensen_shannon": (
        functools.partial(kd.JensenShannonEnergy, teacher_weight=0.3),
        lambda p, q, *_: exact.jensen_shannon(p, q, 0.3),
    ),
    "total_variation": (
        kd.TotalVariationEnergy,
        lambda p, q, *_: 0.5 * np.abs(np.exp(p) - np.exp(q)).sum(-1),
    ),
    "skew_forward_kl": (
        kd.SkewForwardKLEnergy,
        lambda p, q, *_: kl(p, exact.mixed(q, p, 0.1)),
    ),
    "skew_reverse_kl": (
        kd.SkewReverseKLEnergy,
        lambda p, q, *_: kl(q, exact.mixed(p, q, 0.1)),
    ),
    "cosine_probs": (
        kd.CosineProbsEnergy,
        lambda p, q, *_: exact.cosine(np.exp(p), np.exp(q)),
    ),
    "mse_probs": (
        functools.partial(kd.MSEProbsEnergy, mean_over_vocabulary=True),
        lambda p, q, *_: ((np.exp(p) - np.exp(q)) ** 2).mean(-1),
    ),
    "adaptive_kl": (
        kd.AdaptiveKLEnergy,
        lambda p, q, fixed, _: exact.adaptive_kl(p, q, fixed),
    ),
    "entropy_aware_kl": (
        functools.partial(kd.EntropyAwareKLEnergy, full_entropy=0.9),
        lambda p, q, *_: exact.entropy_aware_kl(p, q, 0.9),
    ),
    "dkd": (kd.DKDEnergy, lambda p, q, _, labels: exact.decoupled(p, q, labels)),
    "taid": (
        functools.partial(kd.TAIDEnergy, 10, start=0.3),
        lambda p, q, fixed, _: exact.taid(p, q, fixed, np.float32(0.3)),
    ),
    "uld": (
        kd.ULDEnergy,
        lambda p, q, *_: exact.sorted_distance(np.exp(p), np.exp(q)),
    ),
}
SUBJECTS = {
    f"{name}_T{t:g}": Subject(
        name,
        functools.partial(make, temperature=t, scale_by_t2=t != 1.0),
        of_log_probabilities(value, t, t**2),
        t,
        linear=name in ("total_variation", "uld", "cross_entropy"),
        size=t**2,
    )
    for name, (make, value) in PROBABILITY.items()
    for t in TEMPERATURES
}
SUBJECTS |= {
    "ctkd": Subject(
        "ctkd",
        functools.partial(kd.CTKDEnergy, 10, initial_temperature=3.0),
        of_log_probabilities(lambda p, q, *_: kl(p, q), 3.0, 9.0),
        3.0,
        size=9.0,
    ),
    "mse_logits": Subject(
        "mse_logits",
        kd.MSELogitsEnergy,
        lambda t, s, *_: exact.mse_logits(t, s, ddof=1),
        None,
    ),
    "mse_raw_logits": Subject(
        "mse_raw_logits",
        functools.partial(kd.MSELogitsEnergy, standardize=False),
        lambda t, s, *_: exact.mse_logits(t, s),
        None,
        standardized=False,
    ),
    "cosine_logits": Subject(
        "cosine_logits",
        kd.CosineLogitsEnergy,
        lambda t, s, *_: exact.cosine_logits(t, s),
        None,
    ),
    "cosine_raw_logits": Subject(
        "cosine_raw_logits",
        functools.partial(kd.CosineLogitsEnergy, standardize=False),
        lambda t, s, *_: exact.cosine_logits(t, s, standardize=False),
        None,
        standardized=False,
    ),
}


FEATURES = {
    "feature_mse": (kd.FeatureMSEEnergy, exact.mse_logits),
    "feature_cosine": (kd.FeatureCosineEnergy, exact.feature_cosine),
    "attention": (kd.AttentionEnergy, lambda t, s: ((t - s) ** 2).sum(-1)),
    "image_attention": (
        functools.partial(kd.ImageAttentionEnergy, [0], [0]),
        lambda t, s: exact.feature_cosine(of_any_scale(t), of_any_scale(s)),
    ),
}


def of_any_scale(x):
    largest = np.abs(x).max(-1, keepdims=True)
    return x / np.where(largest == 0, 1, largest)


def of_features(function):
    return lambda t, s, *_: function(t.astype(exact.WIDE), s.astype(exact.WIDE))


SUBJECTS |= {
    name: Subject(
        name, make, of_features(value), None, standardized=False, features=True
    )
    for name, (make, value) in FEATURES.items()
}
SUBJECTS["feature_cosine"].smallest = 1e-6
SUBJECTS["image_attention"].smallest = 1e-30
SUBJECTS["image_token"] = Subject(
    "image_token",
    functools.partial(kd.ImageTokenEnergy, kd.ForwardKLEnergy()),
    of_log_probabilities(lambda p, q, *_: kl(p, q)),
)


def check(subject, case: Cases):
    if subject.features:
        scores = (case.teacher, case.student)
        scores = (np.where(x == -np.inf, np.float32(0), x) for x in scores)
        case = dataclasses.replace(case, **dict(zip(PAIR, scores, strict=True)))
    energy = subject.make(reduction=None)
    teacher, student = (
        ops.cast(ops.convert_to_tensor(x), case.dtype)
        for x in (case.teacher, case.student)
    )
    labels = ops.convert_to_tensor(case.labels.astype("int32"))
    target = energy.target(teacher, labels)
    values = ops.convert_to_numpy(energy(target, student, sample_weight=case.weights))
    mean_energy = subject.make()
    mean, (gradient,) = value_and_grad(
        lambda s: mean_energy(
            target, ops.cast(s, case.dtype), sample_weight=case.weights
        ),
        case.student,
    )
    empty = case.weights == 0
    assert (values[empty] == 0).all() and (gradient[empty] == 0).all()
    if empty.all():
        assert mean == 0
        return
    weights = case.weights[~empty].astype("float64")
    compare(subject, case, values[~empty] / weights, gradient[~empty], weights)


def compare(subject, case, values, gradient, weights):
    teacher, student, labels = case.supervised(case.teacher, case.student, case.labels)
    with np.errstate(all="ignore"):
        expected = subject.value(teacher, student, student, labels)
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(np.isfinite(values), finite)
        np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
        assert (values[finite] >= 0).all()
        if subject.name != "cross_entropy":
            assert (values[finite & (teacher == student).all(-1)] == 0).all()
        unit, rounding = scale_and_rounding(subject, teacher, student)
        unclear = undecided(subject, teacher, student, 1e-5 * unit)
        limit = unclear[0] + allowed_error(subject, expected, rounding)
        off = np.abs(values - expected)
        assert (off <= limit)[finite].all(), (values, expected, limit)
        assert not np.isnan(gradient[~np.isnan(values)]).any()
        numeric = exact.gradients(subject.value, teacher, student, labels, 1e-5 * unit)
        shares = weights / weights.sum()
        largest = np.abs(numeric).max(-1)
        limit = (1e-3 + HALF[case.dtype]) * largest + 8 * subject.size / unit * rounding
        limit = limit + kinks(subject, teacher, student) / unit + unclear[1]
        off = np.abs(gradient - shares[:, None] * numeric).max(-1)
        # A gradient that float16 cannot hold is infinite, and the step is left out.
        held = finite & (shares * largest < LARGEST.get(case.dtype, np.inf))
        assert (off <= shares * limit + 1e-7)[held].all(), (gradient, numeric, limit)


def scale_and_rounding(subject, teacher, student):
    """The scale of a noticeable change of the scores, and their rounding error."""
    x = np.stack([teacher, student]).astype("float64")
    if subject.temperature is not None:
        t = subject.temperature
        largest = np.abs(x.max(-1)).max(0) * (t != 1)  # division by 1 is exact
        return np.full(len(teacher), t), EPS * (1 + largest / t)
    x = np.where(np.isfinite(x), x, np.nan)
    size = np.nanmax(np.abs(x), -1)
    if not subject.standardized:
        spread = size
    else:
        spread = np.nanstd(x, -1)
    spread = np.maximum(spread, subject.smallest)
    return spread[1], EPS * (1 + (size / spread).max(0))


def allowed_error(subject, expected, rounding):
    value = np.abs(expected / subject.size)
    root = 1 if subject.linear else np.sqrt(value)
    return subject.size * (1e-5 * value + 64 * rounding * (root + value + rounding))


def kinks(subject, teacher, student):
    """How much of a gradient depends on the sign of a gap that is nearly 0."""
    if not subject.linear or "cross_entropy" in subject.name:
        return 0.0
    p, q = (np.exp(log_softmax(x, subject.temperature)) for x in (teacher, student))
    close = 1e-4 * q.max(-1, keepdims=True)
    tied = np.zeros_like(q, bool)
    if "uld" in subject.name:
        p, q = np.sort(p, -1), np.sort(q, -1)
        tied[:, 1:] = np.diff(q) < close
        tied[:, :-1] |= tied[:, 1:]
    unclear = tied | (np.abs(p - q) < close)
    return 2 * subject.size * (q * unclear).sum(-1)


def undecided(subject, teacher, student, step):
    """Largest error of the adaptive KL and of its gradient. Its halves are weighed by a
    ratio of gaps, decided by rounding where they are small and arbitrary at ties."""
    if "adaptive" not in subject.name:
        return 0.0, 0.0
    p, q = (np.exp(log_softmax(x, subject.temperature)) for x in (teacher, student))
    ordered = -np.sort(-p, -1)
    toss = (np.abs(np.cumsum(ordered, -1) - 0.5) < 1e-4).any(-1)
    # The class that fills the head, and another one as likely.
    last = (np.cumsum(ordered, -1) < 0.5).sum(-1)
    at = np.take_along_axis(ordered, last[:, None], -1)
    toss |= (np.abs(ordered - at) < 1e-4 * at).sum(-1) > 1
    gaps = np.abs(p - q).sum(-1)
    share = np.where(toss, 1.0, np.minimum(1.0, 8 * EPS / np.maximum(gaps, EPS)))
    between = of_log_probabilities(
        lambda p, q, *_: kl(p, q) - kl(q, p), subject.temperature, subject.size
    )
    rows = (teacher, student, np.zeros(len(teacher), int))
    change = np.abs(exact.gradients(between, *rows, step)).max(-1)
    return share * np.abs(between(teacher, student, student, rows[-1])), share * change


@pytest.mark.parametrize("name", SUBJECTS)
@settings(max_examples=max(1, settings.default.max_examples // 4))
@given(case=cases())
def test_value_gradient_and_masks(name, case):
    check(SUBJECTS[name], case)
    EXAMPLES["energies"] += TOGETHER
