"""Random class scores of a teacher and a student, as a hypothesis strategy.

The structure of a case (what is excluded, masked, near, large) is drawn and shrunk; the
bulk of the numbers comes from a seed.
"""

import collections
import dataclasses
import math

import hypothesis
import numpy as np
from hypothesis import strategies as st
from keras import ops
from precision import compiles_float16

# Few shapes, since JAX compiles every operation anew for each: one in the suite.
NIGHTLY = hypothesis.settings.default.max_examples > 10
SHAPES = [(3, 7), (1, 2), (4, 17)] if NIGHTLY else [(3, 7)]
# Cases of one call, each drawn by itself: a call costs as much for many.
TOGETHER = 16 if NIGHTLY else 4
DTYPES = ["float32", "bfloat16"] + (["float16"] if compiles_float16() else [])
SCALES = [0.0, 1e-4, 1.0, 10.0, 100.0, 1e4]
EXCLUDED = ["none", "none", "shared", "teacher", "student", "apart"]
GARBAGE = [math.nan, math.inf, -math.inf, 1e30]

# How many examples each test has checked; the run ends by printing their number.
EXAMPLES = collections.Counter()


@dataclasses.dataclass
class Cases:
    """A number of cases: scores (N, T, V) in float32 with values of `dtype`; weights
    and labels (N, T)."""

    dtype: str
    teacher: np.ndarray
    student: np.ndarray
    weights: np.ndarray
    labels: np.ndarray

    def supervised(self, *arrays):
        """The rows with a positive weight, in order."""
        return [x[self.weights != 0] for x in arrays]


def rounded(x, dtype):
    """float32 numbers that are representable in `dtype`."""
    x = ops.cast(ops.convert_to_tensor(np.asarray(x, "float32")), dtype)
    return np.array(ops.convert_to_numpy(ops.cast(x, "float32")))


@st.composite
def pairs(draw, rng, shape):
    """Finite scores of a teacher and a student."""
    scale, offset = (draw(st.sampled_from(x)) for x in (SCALES, [0.0, 0.0, 300.0]))
    teacher = scale * rng.normal(size=shape) + offset
    relation = draw(st.sampled_from(["apart", "apart", "near", "equal"]))
    if relation == "apart":
        student = draw(st.sampled_from(SCALES)) * rng.normal(size=shape)
    else:
        distances = [1e-1, 1e-3, 1e-6] if relation == "near" else [0.0]
        distance = draw(st.sampled_from(distances))
        student = teacher + distance * rng.normal(size=shape)
    return np.clip(teacher, -6e4, 6e4), np.clip(student, -6e4, 6e4)


@st.composite
def exclusions(draw, rng, shape):
    """Classes to be -inf in the teacher and in the student; each model keeps one."""
    pattern = draw(st.sampled_from(EXCLUDED))
    share = draw(st.sampled_from([0.2, 0.9]))
    sets = []
    for _ in range(2):
        banned = rng.random(shape) < share
        kept = rng.integers(0, shape[-1], (*shape[:-1], 1))
        np.put_along_axis(banned, kept, False, -1)
        sets.append(banned)
    one, other, none = *sets, np.zeros_like(banned)
    return {
        "none": (none, none),
        "shared": (one, one),
        "teacher": (one, none),
        "student": (none, one),
        "apart": (one, other),
    }[pattern]


@st.composite
def row_weights(draw, rng, shape):
    kind = draw(st.sampled_from(["ones", "mask", "mask", "uneven", "none"]))
    mask = (rng.random(shape) < 0.6).astype("float32")
    uneven = mask * rng.choice([0.25, 1.0, 8.0], shape).astype("float32")
    ones = np.ones(shape, "float32")
    return {"ones": ones, "mask": mask, "uneven": uneven, "none": 0 * ones}[kind]


@st.composite
def case(draw, shape):
    """One case: scores of teacher and student, weights and labels. Where there is no
    weight scores and labels may be anything."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    teacher, student = draw(pairs(rng, shape))
    excluded = draw(exclusions(rng, shape))
    teacher[excluded[0]], student[excluded[1]] = -np.inf, -np.inf
    weights = draw(row_weights(rng, shape[:-1]))
    labels = rng.integers(0, shape[-1], shape[:-1])
    empty = weights == 0
    teacher[empty], student[empty] = (draw(st.sampled_from(GARBAGE)) for _ in range(2))
    labels[empty] = draw(st.sampled_from([-100, -1, 10**6]))
    return teacher, student, weights, labels


@st.composite
def cases(draw):
    """`Cases` of one shape and precision."""
    shape = draw(st.sampled_from(SHAPES))
    dtype = draw(st.sampled_from(DTYPES))
    drawn = [draw(case(shape)) for _ in range(TOGETHER)]
    teacher, student, weights, labels = map(np.stack, zip(*drawn, strict=True))
    return Cases(
        dtype, rounded(teacher, dtype), rounded(student, dtype), weights, labels
    )
