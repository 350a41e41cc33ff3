"""The fused head on random rows and heads, against dense logits and float64.

See `test_fuzz_energies.py` for the command of a long run.
"""

import dataclasses
import functools
import math

import exact_energies as exact
import keras
import numpy as np
import pytest
from exact_energies import kl, log_softmax
from fuzz_cases import EXAMPLES, NIGHTLY, exclusions, rounded, row_weights
from gradients import compiled_value_and_grads
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import keras_betakd as kd
from keras_betakd.energies.masking import select_supervised
from keras_betakd.head_loss.fused import fused_head_loss
from keras_betakd.models import HeadMatrix

pytestmark = pytest.mark.backends

WIDTH, TEACHER_WIDTH = 4, 3


def tempered(function, t=1.0):
    """`function(log_p, log_q)` of scores divided by `t`, times t^2."""
    return lambda teacher, student, _: (
        t**2 * function(log_softmax(teacher, t), log_softmax(student, t))
    )


ENERGIES = {
    "fkl": (kd.ForwardKLEnergy(), tempered(kl)),
    "rkl": (kd.ReverseKLEnergy(), tempered(lambda p, q: kl(q, p))),
    "js": (
        kd.JensenShannonEnergy(0.3, temperature=2.0, scale_by_t2=True),
        tempered(lambda p, q: exact.jensen_shannon(p, q, 0.3), 2.0),
    ),
    "tvd": (
        kd.TotalVariationEnergy(),
        tempered(lambda p, q: 0.5 * np.abs(np.exp(p) - np.exp(q)).sum(-1)),
    ),
    "sfkl": (
        kd.SkewForwardKLEnergy(temperature=0.5, scale_by_t2=True),
        tempered(lambda p, q: kl(p, exact.mixed(q, p, 0.1)), 0.5),
    ),
    "srkl": (
        kd.SkewReverseKLEnergy(0.5),
        tempered(lambda p, q: kl(q, exact.mixed(p, q, 0.5))),
    ),
    "cosine": (
        kd.CosineProbsEnergy(),
        tempered(lambda p, q: exact.cosine(np.exp(p), np.exp(q))),
    ),
    "mse": (
        kd.MSEProbsEnergy(),
        tempered(lambda p, q: ((np.exp(p) - np.exp(q)) ** 2).sum(-1)),
    ),
    "akl": (
        kd.AdaptiveKLEnergy(),
        tempered(lambda p, q: exact.adaptive_kl(p, q, q)),
    ),
    "eakl": (
        kd.EntropyAwareKLEnergy(full_entropy=0.9),
        tempered(lambda p, q: exact.entropy_aware_kl(p, q, 0.9)),
    ),
    "dkd": (
        kd.DKDEnergy(beta=2.0),
        lambda t, s, labels: exact.decoupled(
            log_softmax(t), log_softmax(s), labels, beta=2.0
        ),
    ),
    "taid": (
        kd.TAIDEnergy(10, start=0.3),
        tempered(lambda p, q: exact.taid(p, q, q, np.float32(0.3))),
    ),
    "ctkd": (kd.CTKDEnergy(10, 3.0), tempered(kl, 3.0)),
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """The compiled settings: rows, classes, tile rows, precision, soft cap."""

    rows: int
    classes: int
    tile_rows: int | None
    dtype: str = "float32"
    soft_cap: float | None = None
    names: tuple = tuple(ENERGIES)

    def label(self):
        return f"{self.rows}x{self.classes}-{self.dtype}"

    def energies(self):
        return {name: ENERGIES[name][0] for name in self.names}


SETUPS = [Setup(7, 6, 3, names=("fkl", "srkl", "cosine", "akl", "eakl"))]
if NIGHTLY:
    SETUPS += [
        Setup(1, 2, None),
        Setup(5, 6, 1, soft_cap=2.0),
        Setup(7, 19, 2),
        Setup(6, 19, 4, "bfloat16"),
        Setup(9, 6, 9, "float16", soft_cap=3.0),
    ]
few = settings(max_examples=settings.default.max_examples // 2)  # slow ones
INPUTS = ["rows", "kernel", "bias", "coefficients", "teacher_rows"]
INPUTS += ["teacher_kernel", "teacher_bias", "labels"]


@st.composite
def arrays(draw, setup):
    """The inputs by name; rows without a coefficient may hold anything."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, v = setup.rows, setup.classes
    sizes = [draw(st.sampled_from([0.0, 1e-3, 1.0, 10.0])) for _ in range(2)]
    data = {
        "rows": sizes[0] * rng.normal(size=(n, WIDTH)),
        "kernel": rng.normal(size=(v, WIDTH)),
        "teacher_rows": sizes[1] * rng.normal(size=(n, TEACHER_WIDTH)),
        "teacher_kernel": rng.normal(size=(v, TEACHER_WIDTH)),
    }
    data["bias"], data["teacher_bias"] = rng.normal(size=(2, v))
    banned = draw(exclusions(rng, (v,)))
    data["teacher_bias"][banned[0]] = data["bias"][banned[1]] = -math.inf
    weights = draw(row_weights(rng, (n,)))
    parts = rng.choice([0.0, 0.3, 1.0, 5.0], (1 + len(setup.names), n))
    data["coefficients"] = weights * parts
    # A label that the student cannot give has an infinite cross-entropy.
    data["labels"] = rng.choice(np.flatnonzero(np.isfinite(data["bias"])), n)
    empty = ~data["coefficients"].any(0)
    data["rows"][empty], data["teacher_rows"][empty] = (
        draw(st.sampled_from([math.nan, math.inf, 1.0])) for _ in range(2)
    )
    data["labels"][empty] = draw(st.sampled_from([-100, 10**6]))
    data = {k: rounded(x, setup.dtype) for k, x in data.items() if k != "labels"} | {
        "labels": data["labels"].astype("int32")
    }
    return data


def head_and_teacher(setup, tensors):
    head = HeadMatrix(
        tensors["kernel"], True, setup.dtype, tensors["bias"], setup.soft_cap
    )

    def teacher(rows):
        kernel = ops.transpose(tensors["teacher_kernel"])
        return ops.matmul(rows, kernel) + tensors["teacher_bias"]

    return head, teacher


def outputs(result, names):
    return [result.task, *(result.energies[name] for name in names)]


def fused(setup, *tensors):
    tensors = dict(zip(INPUTS, tensors, strict=True))
    head, teacher = head_and_teacher(setup, tensors)
    result = fused_head_loss(
        tensors["rows"],
        head,
        tensors["teacher_rows"],
        teacher,
        tensors["labels"],
        tensors["coefficients"],
        setup.energies(),
        tile_rows=setup.tile_rows,
    )
    return result.total, ops.stack(outputs(result, setup.names))


def dense(setup, *tensors):
    """The same from the full logits, differentiated by the backend."""
    tensors = dict(zip(INPUTS, tensors, strict=True))
    coefficients = tensors["coefficients"]
    supervised = ops.any(coefficients != 0, axis=0)
    rows, teacher_rows = (
        ops.where(supervised[:, None], tensors[k], 0) for k in ("rows", "teacher_rows")
    )
    head, teacher_head = head_and_teacher(setup, tensors)
    student = ops.matmul(
        ops.cast(rows, setup.dtype), ops.transpose(ops.cast(head.kernel, setup.dtype))
    )
    if setup.soft_cap:
        student = setup.soft_cap * ops.tanh(student / setup.soft_cap)
    student = ops.cast(student, "float32") + head.bias
    student = select_supervised(student, supervised)
    teacher = select_supervised(teacher_head(teacher_rows), supervised)
    labels = ops.where(supervised, tensors["labels"], 0)
    task = keras.losses.sparse_categorical_crossentropy(
        labels, student, from_logits=True
    )
    values = [task]
    for energy in setup.energies().values():
        values.append(energy.call(energy.target(teacher, labels), student))
    values = ops.where(supervised, ops.stack(values), 0.0)
    counted = coefficients != 0
    total = ops.sum(ops.where(counted, values, 0.0) * coefficients)
    return total, values


@functools.cache
def compiled(path, setup):
    return compiled_value_and_grads(functools.partial(path, setup), 4)


def expected_values(setup, data):
    """(1 + E, N) in float64, of the numbers that `setup.dtype` holds."""
    wide = {k: x.astype(exact.WIDE) for k, x in data.items() if k != "labels"}
    student = wide["rows"] @ wide["kernel"].T
    if setup.soft_cap:
        student = setup.soft_cap * np.tanh(student / setup.soft_cap)
    student = student + wide["bias"]
    teacher = wide["teacher_rows"] @ wide["teacher_kernel"].T + wide["teacher_bias"]
    empty = ~data["coefficients"].any(0)
    student[empty], teacher[empty] = 1.0, 1.0
    labels = np.where(empty, 0, data["labels"])
    task = -np.take_along_axis(log_softmax(student), labels[:, None], -1)[:, 0]
    values = [ENERGIES[n][1](teacher, student, labels) for n in setup.names]
    return np.where(empty, 0.0, np.stack([task, *values])), student, teacher


def check(setup, data):
    inputs = [data[k] for k in INPUTS]
    total, values, gradients = compiled(fused, setup)(*inputs)
    whole = compiled(dense, setup)(*inputs)
    with np.errstate(all="ignore"):
        expected, student, teacher = expected_values(setup, data)
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(np.isfinite(values), finite)
        assert (values[finite] >= -1e-7).all()
        # What the products lose, in units of the scores.
        eps = {"float32": 6e-8, "bfloat16": 4e-3, "float16": 5e-4}[setup.dtype]
        scores = np.where(np.isfinite(student), np.abs(student), 0).max(-1)
        scores = scores + np.where(np.isfinite(teacher), np.abs(teacher), 0).max(-1)
        error = 16 * (eps * (1 + scores) + 1e-7 * (1 + scores))
        room = error * (1 + np.sqrt(np.abs(expected))) * 4
        off = np.abs(values - expected)
        assert (off <= 1e-5 * np.abs(expected) + room)[finite].all(), (values, expected)
    counted = data["coefficients"] != 0
    assert np.isfinite(total) == finite[counted].all()
    empty = ~counted.any(0)
    for name, ours, theirs in zip(INPUTS, gradients, whole[2], strict=False):
        if name == "rows":
            assert (ours[empty] == 0).all()
        if name == "coefficients":
            np.testing.assert_array_equal(ours[:, ~empty], values[:, ~empty])
            assert (ours[:, empty] == 0).all()
        elif np.isfinite(total):
            assert np.isfinite(ours).all(), name
            size = np.abs(theirs).max() + np.abs(data["coefficients"]).sum()
            limit = 1e-5 * size * (1 + float(scores.max())) + 4 * eps * size
            assert np.abs(ours - theirs).max() <= limit, (name, ours, theirs)


@pytest.mark.traced
@pytest.mark.parametrize("setup", SETUPS, ids=Setup.label)
@few
@given(data=st.data())
@pytest.mark.one_of_two("jax")
def test_fused_dense_and_float64_agree(setup, data):
    check(setup, data.draw(arrays(setup)))
    EXAMPLES["fused"] += 1
