"""Every energy against golden numbers (see golden/README.md), on any backend."""

import contextlib
import functools
import math
import pathlib

import keras
import numpy as np
import pytest
from exact_energies import jensen_shannon, kl, log_softmax
from gradients import value_and_grad
from keras import ops

from keras_betakd.energies import (
    AdaptiveKLEnergy,
    CosineLogitsEnergy,
    CosineProbsEnergy,
    DKDEnergy,
    ForwardKLEnergy,
    JensenShannonEnergy,
    MSELogitsEnergy,
    MSEProbsEnergy,
    ReverseKLEnergy,
    SkewForwardKLEnergy,
    SkewReverseKLEnergy,
    TAIDEnergy,
    TotalVariationEnergy,
)
from keras_betakd.energies.logit_rows import LogitRows

pytestmark = pytest.mark.backends

GOLDEN = dict(np.load(pathlib.Path(__file__).parent / "golden" / "energies.npz"))
CASES = sorted({key.split("/")[0] for key in GOLDEN})
MSEProbsMean = functools.partial(MSEProbsEnergy, mean_over_vocabulary=True)

PROBABILITY_ENERGIES = {
    "fkl": ForwardKLEnergy,
    "rkl": ReverseKLEnergy,
    "js_w0.1": functools.partial(JensenShannonEnergy, teacher_weight=0.1),
    "js_w0.5": JensenShannonEnergy,
    "js_w0.9": functools.partial(JensenShannonEnergy, teacher_weight=0.9),
    "tvd": TotalVariationEnergy,
    "mse_probs": MSEProbsMean,
    "cosine_probs": CosineProbsEnergy,
    "skew_fkl_a0.1": SkewForwardKLEnergy,
    "skew_fkl_a0.5": functools.partial(SkewForwardKLEnergy, skew=0.5),
    "skew_rkl_a0.1": SkewReverseKLEnergy,
    "skew_rkl_a0.5": functools.partial(SkewReverseKLEnergy, skew=0.5),
    "ce": functools.partial(ForwardKLEnergy, form="cross_entropy"),
    "ce_T2": functools.partial(ForwardKLEnergy, form="cross_entropy", temperature=2.0),
    "skew_fkl_ce_a0.1": functools.partial(SkewForwardKLEnergy, form="cross_entropy"),
    **{
        f"taid_{short}t{t}": functools.partial(
            TAIDEnergy, total_steps=1, start=t, form=form
        )
        for short, form in (("", "divergence"), ("ce_", "cross_entropy"))
        for t in (0.4, 0.7)
    },
    "fkl_T2": functools.partial(ForwardKLEnergy, temperature=2.0),
    "rkl_T2": functools.partial(ReverseKLEnergy, temperature=2.0),
    "js_w0.5_T2": functools.partial(JensenShannonEnergy, temperature=2.0),
    "tvd_T2": functools.partial(TotalVariationEnergy, temperature=2.0),
    "mse_probs_T2": functools.partial(MSEProbsMean, temperature=2.0),
    "akl_nucleus_mu0.5": AdaptiveKLEnergy,
    "akl_prefix_mu0.5": functools.partial(AdaptiveKLEnergy, head_rule="prefix"),
    "cosine_probs_T2": functools.partial(CosineProbsEnergy, temperature=2.0),
}
LABEL_ENERGIES = {
    "dkd_a1_b0.5_T1": functools.partial(DKDEnergy, beta=0.5),
    "dkd_a1_b8_T4": functools.partial(DKDEnergy, temperature=4.0, scale_by_t2=True),
}
PROBABILITY_ENERGIES |= LABEL_ENERGIES
LOGIT_ENERGIES = {
    "mse_logits_raw": functools.partial(MSELogitsEnergy, standardize=False),
    "mse_logits_std": MSELogitsEnergy,
    "mse_logits_std_ddof0": functools.partial(MSELogitsEnergy, ddof=0),
    "cosine_logits_raw": functools.partial(CosineLogitsEnergy, standardize=False),
    "cosine_logits_std": CosineLogitsEnergy,
}
ENERGIES = {**PROBABILITY_ENERGIES, **LOGIT_ENERGIES}
NEGINF_ONE_SIDED = ("g_neginf_student", "h_neginf_teacher")


def inputs(case):
    names = ("teacher_logits", "student_logits", "mask")
    return [GOLDEN[f"{case}/in/{name}"] for name in names]


def targets(case):
    return GOLDEN[f"{case}/in/targets"].astype("int32")


def golden_key(case, name):
    """The golden entry of a case: over the common columns where both exclude one."""
    if case == "c_neginf_both" and name == "mse_logits_std":
        return "mse_logits_std_finitecols"
    return name


def has_golden(case, name):
    if name in PROBABILITY_ENERGIES:
        return True
    if case == "c_neginf_both":
        return name == "mse_logits_std"
    return case not in NEGINF_ONE_SIDED


def values_and_grads(energy, teacher, student, labels):
    """Per-position values, and their gradients towards the student's own position."""
    target = energy.target(teacher, labels)
    values = ops.convert_to_numpy(energy.call(target, student))
    _, (grads,) = value_and_grad(lambda s: ops.sum(energy.call(target, s)), student)
    return values, grads


# Energies whose definition multiplies rounding: by beta T of DKD, and, of the adaptive
# KL, where its weight is a ratio of gaps that float32 can hardly tell from 0.
ROUNDING = {"dkd_a1_b8_T4": 32, "akl_nucleus_mu0.5": 4, "akl_prefix_mu0.5": 4}


def value_tolerance(case, name):
    rounding = ROUNDING.get(name, 1)
    # With the teacher's entropy in it, a value is not near 0 there.
    if case == "j_near_identical" and "ce" not in name:
        return {"rtol": 0, "atol": 2e-7 * rounding}
    rtol = 1e-5 if case == "k_extreme" else 2e-6
    return {"rtol": rtol, "atol": 3e-7 * rounding}


def grad_tolerance(case, name):
    rounding = ROUNDING.get(name, 1)
    if case == "k_extreme":
        return {"rtol": 1e-5, "atol": 2e-5 * rounding}
    return {"rtol": 2e-6, "atol": 3e-7 * rounding}


@contextlib.contextmanager
def double_precision():
    """Makes float64 available; JAX has it switched off otherwise."""
    if keras.config.backend() != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


def closed_values_and_grads(energy, teacher, student, labels):
    """Value and gradient in one call, as the fused head computes them."""
    classes = student.shape[-1]
    labels = ops.convert_to_tensor(labels.reshape(-1))
    rows = [
        LogitRows(ops.convert_to_tensor(x.reshape(-1, classes)), labels)
        for x in (teacher, student)
    ]
    values, parts = energy.value_and_gradient(*rows)
    grads = sum(factor * x for factor, x in parts)
    shape = student.shape
    return (
        ops.convert_to_numpy(values).reshape(shape[:-1]),
        ops.convert_to_numpy(grads).reshape(shape),
    )


def assert_matches_golden(
    name, dtype, value_tolerance, grad_tolerance, differentiate=values_and_grads
):
    """Compares value and gradient; the cases are stacked, to run each energy once."""
    pairs = [inputs(case)[:2] for case in CASES]
    teacher, student = (np.stack(x).astype(dtype) for x in zip(*pairs, strict=True))
    labels = np.stack([targets(case) for case in CASES])
    values, grads = differentiate(ENERGIES[name](dtype=dtype), teacher, student, labels)
    assert values.dtype == dtype and values.shape == (len(CASES), 3, 5)
    for case, value, grad in zip(CASES, values, grads, strict=True):
        if not has_golden(case, name):
            continue
        key = golden_key(case, name)
        expected = GOLDEN[f"{case}/value/{key}"]
        np.testing.assert_allclose(
            value, expected, err_msg=case, **value_tolerance(case, name)
        )
        if np.isfinite(expected).all():
            expected = GOLDEN[f"{case}/grad/{key}"]
            np.testing.assert_allclose(
                grad,
                expected,
                err_msg=f"{case}: gradient",
                **grad_tolerance(case, name),
            )


@pytest.mark.parametrize("name", ENERGIES)
def test_float32_matches_golden(name):
    assert_matches_golden(name, "float32", value_tolerance, grad_tolerance)


@pytest.mark.parametrize("name", PROBABILITY_ENERGIES)
def test_value_and_gradient_in_one_match_golden(name):
    """Jensen-Shannon in closed form lost its finite value where one model excludes a
    class: |d| of 1e30 was added to a logarithm and taken off again."""
    assert_matches_golden(
        name, "float32", value_tolerance, grad_tolerance, closed_values_and_grads
    )


@pytest.mark.parametrize(
    "name, exact",
    [
        ("fkl", kl),
        ("rkl", lambda p, q: kl(q, p)),
        ("js_w0.5", lambda p, q: jensen_shannon(p, q, 0.5)),
    ],
)
def test_closed_forms_keep_their_digits_far_from_zero(name, exact):
    """log(q / p) was computed from logits shifted by a difference of log-sums: with
    logits near 1,000 in one of two equal models, KL was off by 3 %."""
    rng = np.random.default_rng(0)
    teacher = (5 * rng.normal(size=(8, 512))).astype("float32")
    student = (teacher + 1e-3 * rng.normal(size=(8, 512)) + 1e3).astype("float32")
    teacher[:, -9:] = student[:, -9:] = -math.inf
    labels = np.zeros(8, "int32")
    energy = ENERGIES[name]()
    values, _ = closed_values_and_grads(energy, teacher, student, labels)
    expected = exact(log_softmax(teacher), log_softmax(student))
    np.testing.assert_allclose(values, expected.astype("float64"), rtol=2e-3)


@pytest.mark.parametrize("weight", [1e-3, 0.5, 0.999])
def test_jensen_shannon_where_a_model_all_but_excludes_a_class(weight):
    """Subnormal float32 probabilities times a small weight were rounded so coarsely
    that p / m - 1 fell below -1, which gave NaN."""
    rng = np.random.default_rng(0)
    teacher, student = (60 * rng.normal(size=(2, 16, 4096))).astype("float32")
    student[:8] = 3 * rng.normal(size=(8, 4096))
    energy = JensenShannonEnergy(teacher_weight=weight)
    labels = np.zeros(16, "int32")
    values, grads = closed_values_and_grads(energy, teacher, student, labels)
    log_p, log_q = (log_softmax(x.astype("float64")) for x in (teacher, student))
    want = jensen_shannon(log_p, log_q, weight)
    np.testing.assert_allclose(values, want, rtol=2e-6)
    log_m = np.logaddexp(math.log(weight) + log_p, math.log1p(-weight) + log_q)
    q, ratio = np.exp(log_q), log_q - log_m
    mean = (q * ratio).sum(-1, keepdims=True)
    np.testing.assert_allclose(grads, (1 - weight) * q * (ratio - mean), atol=3e-7)


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.pytorch
def test_float64_matches_golden(name):
    def tight(case, name):
        return {"rtol": 1e-11, "atol": 1e-13}

    with double_precision():
        assert_matches_golden(name, "float64", tight, tight)


@pytest.mark.parametrize("name", ENERGIES)
def test_masked_mean_matches_golden(name):
    """The default reduction divides by the mask's sum; 0, not NaN, if that is 0."""
    energy = ENERGIES[name]()
    for case in (case for case in CASES if has_golden(case, name)):
        teacher, student, mask = inputs(case)
        target = energy.target(teacher, targets(case))
        mean = float(energy(target, student, sample_weight=mask))
        expected = GOLDEN[f"{case}/mean/{golden_key(case, name)}"]
        if case == "l_all_masked":
            assert math.isnan(expected) and mean == 0.0
        else:
            np.testing.assert_allclose(
                mean, expected, err_msg=case, **value_tolerance(case, name)
            )


@pytest.mark.parametrize("case", CASES)
def test_masked_mean_has_masked_gradient(case):
    teacher, student, mask = inputs(case)
    energy = CosineProbsEnergy()
    _, (grad,) = value_and_grad(
        lambda s: energy(teacher, s, sample_weight=mask), student
    )
    share = mask / max(mask.sum(), 1.0)
    expected = GOLDEN[f"{case}/grad/cosine_probs"] * share[..., None]
    np.testing.assert_allclose(grad, expected, **grad_tolerance(case, "cosine_probs"))
    assert np.all(grad[mask == 0] == 0.0)


@pytest.mark.parametrize("name", LOGIT_ENERGIES)
@pytest.mark.parametrize("case", NEGINF_ONE_SIDED)
def test_one_sided_exclusion_is_undefined_in_logit_space(case, name):
    """The reference returned a loss of exactly 0 without a warning."""
    teacher, student, _ = inputs(case)
    values = ops.convert_to_numpy(ENERGIES[name]().call(teacher, student))
    assert not np.isfinite(values).any()


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_inputs_lose_nothing_but_their_own_rounding(dtype, name):
    teacher, student, _ = inputs("a_generic")
    teacher, student = (ops.cast(x, dtype) for x in (teacher, student))
    energy, labels = ENERGIES[name](reduction=None), targets("a_generic")
    values = ops.convert_to_numpy(energy.call(energy.target(teacher, labels), student))
    called = energy(energy.target(teacher, labels), student)
    assert values.dtype == np.float32
    with double_precision():
        rounded = [
            ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64")
            for x in (teacher, student)
        ]
        target = energy.target(rounded[0], labels)
        exact = ENERGIES[name](dtype="float64").call(target, rounded[1])
        assert keras.backend.standardize_dtype(exact.dtype) == "float64"
        exact = ops.convert_to_numpy(exact)
    np.testing.assert_allclose(values, exact, rtol=2e-6, atol=3e-7)
    np.testing.assert_allclose(ops.convert_to_numpy(called), values, rtol=1e-6)
