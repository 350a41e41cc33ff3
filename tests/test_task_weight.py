"""Weights of labels apart from weights of energies, against float64 numbers by hand.

Three examples of up to two tokens over three classes. The first has labels; the other
two are compared with the teacher only, as answers of the student's own are.
"""

import keras
import numpy as np
import pytest
from gradients import value_and_grad
from keras import ops
from tiny_models import tiny_gemma3, vqa_records

from keras_betakd import (
    AnalyticBeta,
    BetaKDDistiller,
    DKDEnergy,
    FixedBeta,
    ForwardKLEnergy,
    InstanceBeta,
    ReverseKLEnergy,
    TaskBeta,
)
from keras_betakd.head_loss.terms import (
    AnswerRows,
    Heads,
    TeacherHead,
    Weighting,
    batch_terms,
)
from keras_betakd.models import HeadMatrix
from keras_betakd.objective import row_weights

pytestmark = pytest.mark.backends

TEACHER = [[[2, 0, -1], [0, 1, 0]], [[1, 1, 0], [-1, 0, 2]], [[0, 0, 1], [3, 0, 0]]]
STUDENT = [[[1, 0, 0], [0, 0, 0]], [[0, 2, 0], [0, 0, 1]], [[1, 0, 0], [1, 1, 0]]]
TEACHER, STUDENT = np.array(TEACHER, "float32"), np.array(STUDENT, "float32")
LABELS = np.array([[0, 1], [1, 2], [2, 0]])
WEIGHT = np.array([[1, 1], [1, 0], [1, 1]], "float32")
TASK_WEIGHT = np.array([[1], [0], [0]], "float32")

# sum w a CE, mean reverse KL; of the means over examples, and over tokens
SUMS = {
    "example": (0.275009500433, 0.359061325637),
    "token": (0.330011400520, 0.370287770549),
}
CE, FORWARD_KL = 0.825028501300, 0.327770402937
ROWS = [0.254225978475, 0.119499091931, 0.302929101079, 0.364175327149, 0.810609354111]
GRADIENT = [
    [-0.192750295799, 0.061051554963, 0.131698740836],
    [0.092592592593, -0.185185185185, 0.092592592593],
    [-0.119321832109, 0.167639011604, -0.048317179496],
    [0, 0, 0],
    [0.122103109927, -0.025727962027, -0.096375147900],
    [-0.222094809715, 0.200223988536, 0.021870821179],
]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("reduction", ["example", "token"])
def test_terms_and_gradient(fused, reduction):
    """The dense path gave rows without label the energy 0, in silence."""
    answers = row_weights(ops.array(WEIGHT), reduction)
    weights = {"answers": answers, "task": answers * TASK_WEIGHT, "kl": answers}
    labels = np.where(TASK_WEIGHT > 0, LABELS, -1)
    one = np.eye(3, dtype="float32")  # hidden states are logits then
    matrix = HeadMatrix(ops.array(one), dtype="float32")
    teacher = TeacherHead(matrix, matrix, {"kl": ReverseKLEnergy()})
    heads = Heads(matrix, {"teacher": teacher}, fused)

    def terms(student):
        return batch_terms(
            AnswerRows(student, {"teacher": ops.array(TEACHER)}, ops.array(labels)),
            *({}, {}, Weighting(weights, {"kl": float(np.log(2.0))}), heads),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            True,
        )

    value, (gradient,) = value_and_grad(lambda x: terms(x).total, STUDENT)
    task, energy = SUMS[reduction]
    assert value == pytest.approx(task + 2 * energy, abs=1e-6)
    if reduction == "example":
        np.testing.assert_allclose(gradient.reshape(-1, 3), GRADIENT, atol=1e-6)
    rows = ops.convert_to_numpy(terms(ops.array(STUDENT)).energies["kl"])
    np.testing.assert_allclose(rows[WEIGHT > 0], ROWS, atol=1e-6)


def free_logits(values):
    """A model whose logits of an example are weights, by its number."""
    layer = keras.layers.Embedding(len(values), values[0].size)
    model = keras.Sequential(
        [keras.Input((), dtype="int32"), layer, keras.layers.Reshape(values[0].shape)]
    )
    layer.set_weights([values.reshape(len(values), -1)])
    return model


def distilled(energy, beta, labels=LABELS, task_weight=TASK_WEIGHT, **options):
    """The metrics of a step, and the gradient of the student's logits."""
    student = free_logits(STUDENT)
    distiller = BetaKDDistiller(free_logits(TEACHER), student, energy, beta, **options)
    distiller.compile(optimizer=keras.optimizers.SGD(1.0))
    numbers = np.arange(3, dtype="int32")
    x = {"student": numbers, "teacher": numbers}
    if task_weight is not None:
        x["task_weight"] = task_weight
    logs = distiller.train_on_batch(x, labels, WEIGHT, return_dict=True)
    moved = STUDENT - ops.convert_to_numpy(student.weights[0]).reshape(STUDENT.shape)
    return {k: float(v) for k, v in logs.items()}, moved


@pytest.mark.parametrize(
    "beta, task_beta, total",
    [
        (1.0, None, 0.634070826071),
        (2.0, None, 0.646558561428),
        (1.392519785061, None, 0.609452049923),
        (2.0, 2.0, 0.806043531768),
    ],
)
def test_a_step(beta, task_beta, total):
    """Own answers have no label, and -1 was refused as one."""
    task_beta = None if task_beta is None else FixedBeta(task_beta)
    labels = np.where(TASK_WEIGHT > 0, LABELS, -1)
    logs, moved = distilled(
        ReverseKLEnergy(), FixedBeta(beta), labels, task_beta=task_beta
    )
    assert logs["loss"] == pytest.approx(total, abs=1e-5)
    assert logs["task_loss"] == pytest.approx(CE, abs=1e-5)
    assert logs["reverse_kl"] == pytest.approx(SUMS["example"][1], abs=1e-5)
    assert logs["objective"] == pytest.approx(total, abs=1e-5)
    assert logs["accuracy"] == 0.5  # of the two labels, one
    if beta == 2.0 and task_beta is None:
        np.testing.assert_allclose(moved.reshape(-1, 3), GRADIENT, atol=1e-5)


def test_the_best_betas():
    """An analytic beta of the cross-entropy was too large by the share of labels."""
    distiller = BetaKDDistiller(
        free_logits(TEACHER),
        free_logits(STUDENT),
        [ForwardKLEnergy(), ReverseKLEnergy()],
        AnalyticBeta(),
        task_beta=AnalyticBeta(),
    )
    distiller.compile(optimizer=keras.optimizers.SGD(0.0))
    numbers = np.arange(3, dtype="int32")
    x = {"student": numbers, "teacher": numbers, "task_weight": TASK_WEIGHT}
    for _ in range(2):
        logs = distiller.train_on_batch(x, LABELS, WEIGHT, return_dict=True)
    assert float(logs["task_beta"]) == pytest.approx(0.606039669190, abs=1e-5)
    best = 0.5 / FORWARD_KL, 1.392519785061
    found = float(logs["forward_kl_beta"]), float(logs["reverse_kl_beta"])
    np.testing.assert_allclose(found, best, rtol=1e-5)


@pytest.mark.parametrize("task_beta", [None, AnalyticBeta(), TaskBeta(), True])
def test_a_batch_without_a_label(task_beta):
    logs, moved = distilled(
        *(ReverseKLEnergy(), FixedBeta(2.0), np.full((3, 2), -100), np.zeros((3, 1))),
        task_beta=task_beta,
    )
    energy = 2 * SUMS["example"][1] - 0.5 * np.log(2.0)
    assert logs["loss"] == pytest.approx(energy, abs=1e-5)
    assert logs["objective"] == pytest.approx(energy, abs=1e-5)
    assert logs["task_loss"] == logs["accuracy"] == 0
    assert np.isfinite(moved).all()


def test_task_weights_of_one_change_nothing():
    plain = distilled(ReverseKLEnergy(), InstanceBeta(), task_weight=None)
    ones = distilled(ReverseKLEnergy(), InstanceBeta(), task_weight=np.ones((3, 1)))
    assert ones[0] == plain[0]
    np.testing.assert_array_equal(ones[1], plain[1])


def test_a_nonfinite_teacher_is_reported_where_there_is_no_label():
    broken = TEACHER.copy()
    broken[1, 0, 0] = np.nan
    distiller = BetaKDDistiller(
        free_logits(broken), free_logits(STUDENT), ReverseKLEnergy(), FixedBeta()
    )
    distiller.compile(optimizer=keras.optimizers.SGD(1.0))
    numbers = np.arange(3, dtype="int32")
    x = {"student": numbers, "teacher": numbers, "task_weight": TASK_WEIGHT}
    distiller.train_on_batch(x, LABELS, WEIGHT)
    assert int(distiller.faults.teacher.count) == 1


@pytest.mark.parametrize("fused", [False, True])
def test_records_with_task_weights(fused):
    """Of the first two records the labels are trained, of the others they are not."""
    records = {**vqa_records(4), "task_weight": [1, 1, 0, 0]}
    found = []
    for changed in (False, True):
        keras.utils.set_random_seed(0)
        distiller = BetaKDDistiller(
            *(tiny_gemma3(width=16), tiny_gemma3(), ReverseKLEnergy(), FixedBeta()),
            fused=fused,
        )
        distiller.compile(optimizer=keras.optimizers.SGD(0.1))
        x, y, weight = distiller.preprocessor(
            {k: v for k, v in records.items() if k != "task_weight"}
        )
        if changed:
            x, y = {**x, "task_weight": np.array([1, 1, 0, 0.0])}, y.copy()
            y[2:] = -1
            logs = distiller.train_on_batch(x, y, weight, return_dict=True)
        else:
            logs = distiller.train_on_batch(records, return_dict=True)
        found.append({k: float(v) for k, v in logs.items()})
    assert found[0] == found[1]
    assert found[0]["task_loss"] > 0


@pytest.mark.parametrize(
    "weight, message",
    [
        ([1, -1, 1, 1], r"`task_weight` must be finite.*-1.0 at \(1, 0\) of record"),
        ([1, float("nan"), 1, 1], "`task_weight` must be finite"),
        ([1, 1], '2 entries of "task_weight"'),
        (["a"] * 4, "`task_weight` must hold numbers"),
    ],
)
def test_wrong_task_weights_are_refused(weight, message):
    distiller = BetaKDDistiller(tiny_gemma3(), tiny_gemma3(), ReverseKLEnergy())
    distiller.compile()
    with pytest.raises(ValueError, match=message):
        distiller.train_on_batch({**vqa_records(4), "task_weight": weight})


def test_an_energy_that_reads_labels_needs_classes():
    with pytest.raises(ValueError, match=r"Label -1 at \(1, 0\).*is no class"):
        distilled(DKDEnergy(), FixedBeta(), np.where(TASK_WEIGHT > 0, LABELS, -1))
