"""The fused head against dense float64 numbers, and against the dense path."""

import math

import keras
import numpy as np
import pytest
from keras import ops
from marks import kept
from plain_models import as_array, log_softmax64
from tiny_models import tiny_gemma3, vqa_records

from keras_betakd import (
    AnalyticBeta,
    BetaKDDistiller,
    CosineLogitsEnergy,
    CosineProbsEnergy,
    FeatureMSEEnergy,
    FixedBeta,
    ForwardKLEnergy,
    InstanceBeta,
    JensenShannonEnergy,
    MSEProbsEnergy,
    ReverseKLEnergy,
    SkewForwardKLEnergy,
    SkewReverseKLEnergy,
    TaskBeta,
    TokenBeta,
    TotalVariationEnergy,
    ULDEnergy,
)
from keras_betakd.backends import is_argmax, value_and_gradient
from keras_betakd.head_loss import tiles
from keras_betakd.head_loss.fused import fused_head_loss
from keras_betakd.head_loss.logit_statistics import fits_one_tile
from keras_betakd.head_loss.tiles import rows_per_tile
from keras_betakd.models import HeadMatrix

pytestmark = pytest.mark.backends

N, V, WIDTH, TEACHER_WIDTH = 11, 23, 6, 5
UNSUPERVISED = [2, 5, 6, 10]


def kl64(p, q):
    with np.errstate(all="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0.0).sum(-1)


def js64(p, q, w=0.5):
    m = w * p + (1 - w) * q
    return w * kl64(p, m) + (1 - w) * kl64(q, m)


def cosine64(p, q):
    return 1 - (p * q).sum(-1) / np.sqrt((p * p).sum(-1) * (q * q).sum(-1))


# Each energy beside its definition in float64.
ENERGIES = {
    "forward_kl": (ForwardKLEnergy(), kl64),
    "reverse_kl": (ReverseKLEnergy(), lambda p, q: kl64(q, p)),
    "js": (JensenShannonEnergy(0.3), lambda p, q: js64(p, q, 0.3)),
    "tvd": (TotalVariationEnergy(), lambda p, q: 0.5 * np.abs(p - q).sum(-1)),
    "skew_fkl": (SkewForwardKLEnergy(0.2), lambda p, q: kl64(p, 0.2 * p + 0.8 * q)),
    "skew_rkl": (SkewReverseKLEnergy(0.2), lambda p, q: kl64(q, 0.8 * p + 0.2 * q)),
    "cosine": (CosineProbsEnergy(), cosine64),
    "mse": (MSEProbsEnergy(), lambda p, q: np.square(p - q).sum(-1)),
}


class Case:
    """Rows, heads, labels and coefficients; and their total in float64."""

    teacher_allows_all = False

    def __init__(self, energies=1, bias=False, soft_cap=None, seed=0):
        rng = np.random.default_rng(seed)
        self.rows = rng.normal(size=(N, WIDTH))
        self.kernel = rng.normal(size=(V, WIDTH))
        self.teacher_rows = rng.normal(size=(N, TEACHER_WIDTH))
        self.teacher_kernel = rng.normal(size=(V, TEACHER_WIDTH))
        self.labels = rng.integers(1, V, size=N)
        self.coefficients = rng.uniform(0.1, 1.0, size=(1 + energies, N))
        self.coefficients[:, UNSUPERVISED] = 0
        self.soft_cap = soft_cap
        self.bias = np.zeros(V)
        self.bias[0] = -math.inf if bias else 0.0
        for name in ("rows", "kernel", "teacher_rows", "teacher_kernel"):
            # The numbers that float32 holds, so that only arithmetic is compared.
            setattr(self, name, getattr(self, name).astype("float32").astype("f8"))
        self.coefficients = self.coefficients.astype("float32").astype("f8")

    def values(self, definitions, rows, kernel):
        pairs = (self.teacher_rows, self.teacher_kernel), (rows, kernel)
        logits = [rows @ kernel.T for rows, kernel in pairs]
        if self.soft_cap:
            logits = [self.soft_cap * np.tanh(x / self.soft_cap) for x in logits]
        log_p, log_q = (log_softmax64(x + self.bias) for x in logits)
        task = -log_q[np.arange(N), self.labels]
        p, q = np.exp(log_p), np.exp(log_q)
        return np.stack([task, *(f(p, q) for f in definitions)])

    def total(self, definitions, rows=None, kernel=None):
        rows = self.rows if rows is None else rows
        kernel = self.kernel if kernel is None else kernel
        return (self.coefficients * self.values(definitions, rows, kernel)).sum()

    def numeric_gradient(self, definitions, argument):
        """Central differences of the total in float64."""
        x = getattr(self, argument)
        gradient, step = np.zeros_like(x), 1e-6
        for i in np.ndindex(x.shape):
            up, down = x.copy(), x.copy()
            up[i] += step
            down[i] -= step
            change = self.total(definitions, **{argument: up})
            gradient[i] = change - self.total(definitions, **{argument: down})
        return gradient / (2 * step)

    def fused(self, energies, tile_rows=None, dtype="float32", **arguments):
        """The `HeadLoss`, with some of the arrays replaced by given tensors."""

        def tensor(name):
            given = arguments.get(name)
            x = getattr(self, name) if given is None else given
            return ops.cast(ops.convert_to_tensor(x), "float32")

        bias, cap = tensor("bias"), self.soft_cap
        theirs = None if self.teacher_allows_all else bias
        return fused_head_loss(
            tensor("rows"),
            HeadMatrix(tensor("kernel"), True, dtype, bias, cap),
            tensor("teacher_rows"),
            HeadMatrix(tensor("teacher_kernel"), False, "float32", theirs, cap),
            ops.convert_to_tensor(self.labels),
            tensor("coefficients"),
            energies,
            tile_rows=tile_rows,
        )

    def gradient(self, energies, argument, **kwargs):
        x = ops.cast(ops.convert_to_tensor(getattr(self, argument)), "float32")
        _, gradient = value_and_gradient(
            lambda t: self.fused(energies, **{argument: t}, **kwargs).total, x
        )
        return as_array(gradient)


@pytest.mark.parametrize("tile_rows", kept([N, 4, 1], 4), ids=lambda n: f"tile{n}")
@pytest.mark.parametrize("name", ENERGIES)
def test_value_and_gradients_against_float64(name, tile_rows):
    energy, definition = ENERGIES[name]
    case = Case()
    result = case.fused({name: energy}, tile_rows)
    expected = case.values([definition], case.rows, case.kernel)
    supervised = case.coefficients[0] > 0
    for got, want in zip([result.task, result.energies[name]], expected, strict=True):
        want = np.where(supervised, want, 0.0)
        np.testing.assert_allclose(as_array(got), want, rtol=5e-6, atol=1e-6)
    assert float(result.total) == pytest.approx(case.total([definition]), rel=5e-6)
    for argument in ("rows", "kernel"):
        got = case.gradient({name: energy}, argument, tile_rows=tile_rows)
        want = case.numeric_gradient([definition], argument)
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=3e-6)
    # What the betas learn from is the energy itself.
    got = case.gradient({name: energy}, "coefficients", tile_rows=tile_rows)
    np.testing.assert_allclose(
        got, np.where(supervised, expected, 0.0), rtol=5e-6, atol=1e-6
    )


@pytest.mark.parametrize("soft_cap, block", [(None, 3), (2.0, 3), (2.0, 2), (None, 1)])
def test_excluded_classes_soft_cap_and_several_energies(soft_cap, block, monkeypatch):
    """-inf in both models is valid, but masking by a product would give NaN. Blocks
    that do not divide the tile are filled with rows that have no weight."""
    for name in ("_BLOCK_BYTES", "_EAGER_BLOCK_BYTES"):
        monkeypatch.setattr(f"keras_betakd.head_loss.tiles.{name}", 0)
    monkeypatch.setattr("keras_betakd.head_loss.tiles._BLOCK_ROWS", block)
    names = ["forward_kl", "reverse_kl", "js", "skew_rkl", "cosine"]
    energies = {n: ENERGIES[n][0] for n in names}
    definitions = [ENERGIES[n][1] for n in names]
    case = Case(len(names), bias=True, soft_cap=soft_cap)
    result = case.fused(energies, tile_rows=3)
    with np.errstate(all="ignore"):
        assert float(result.total) == pytest.approx(case.total(definitions), rel=5e-6)
        want = case.numeric_gradient(definitions, "rows")
    got = case.gradient(energies, "rows", tile_rows=3)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=3e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", kept([V, 3, 2], V))
def test_tiles_add_to_the_gradient_of_the_head_in_pieces(classes, dtype, monkeypatch):
    """For 262,144 classes a second copy took 268 MB; V need not divide into pieces."""
    monkeypatch.setattr("keras_betakd.backends._PIECE_BYTES", 4 * WIDTH * classes)
    energy, definition = ENERGIES["forward_kl"]
    case = Case()
    got = case.gradient({"kl": energy}, "kernel", tile_rows=2, dtype=dtype)
    want = case.numeric_gradient([definition], "kernel")
    exact = dtype == "float32"
    tolerance = {"rtol": 2e-5, "atol": 3e-6} if exact else {"atol": 0.05}
    np.testing.assert_allclose(got, want, **tolerance)


def test_logits_made_in_parts_of_the_head_are_those_of_the_whole(monkeypatch):
    """PyTorch computes them in parts on a CPU; here V does not divide into parts."""
    case, energies = Case(), {"kl": ForwardKLEnergy()}
    assert V % 3
    whole = case.fused(energies).task
    monkeypatch.setattr("keras_betakd.backends._CACHED_BYTES", 3 * 4 * WIDTH)
    parts = case.fused(energies).task
    np.testing.assert_allclose(as_array(parts), as_array(whole), rtol=1e-5, atol=1e-6)


def test_rows_without_weight_may_hold_anything():
    """Multiplied by a zero weight, NaN would stay NaN."""
    case, energies = Case(), {"kl": ForwardKLEnergy()}
    clean = float(case.fused(energies, tile_rows=3).total)
    case.rows[UNSUPERVISED] = math.nan
    case.teacher_rows[UNSUPERVISED] = math.inf
    case.labels[UNSUPERVISED] = -100
    assert float(case.fused(energies, tile_rows=3).total) == clean
    gradient = case.gradient(energies, "rows", tile_rows=3)
    assert np.all(gradient[UNSUPERVISED] == 0) and np.all(np.isfinite(gradient))


def test_an_infinite_energy_without_weight_counts_for_nothing():
    """0 times infinity is NaN."""
    case = Case(bias=True)
    case.teacher_allows_all = True
    case.coefficients[1] = 0
    result = case.fused({"kl": ForwardKLEnergy()})
    assert np.isinf(as_array(result.energies["kl"])).any()
    assert np.isfinite(float(result.total))


@pytest.mark.parametrize("tile_rows", [N, 3])
def test_nothing_supervised_gives_zero(tile_rows):
    case = Case()
    case.coefficients[:] = 0
    assert float(case.fused({"kl": ForwardKLEnergy()}, tile_rows).total) == 0.0
    gradient = case.gradient({"kl": ForwardKLEnergy()}, "kernel", tile_rows=tile_rows)
    assert np.all(gradient == 0)


def test_no_more_logits_at_a_time_than_a_tile(monkeypatch):
    """Full logits, with several float32 copies, exhausted the memory."""
    seen, compute = set(), ForwardKLEnergy.value_and_gradient

    def watched(energy, teacher, student):
        seen.update(tuple(rows.logits.shape) for rows in (teacher, student))
        return compute(energy, teacher, student)

    monkeypatch.setattr(ForwardKLEnergy, "value_and_gradient", watched)
    Case().fused({"kl": ForwardKLEnergy()}, tile_rows=4)
    assert max(seen) == (4, V)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_hidden_states(dtype):
    """Half-precision rows under a float32 head lose no further precision."""
    case, energies = Case(), {"cos": CosineProbsEnergy()}
    half = ops.cast(ops.convert_to_tensor(case.rows), dtype)
    case.rows = as_array(ops.cast(half, "float32")).astype("f8")
    got = float(case.fused(energies, rows=half).total)
    assert got == pytest.approx(case.total([cosine64]), rel=5e-6)


def test_an_energy_without_closed_form_is_differentiated():
    """`CosineLogitsEnergy` has none; its gradient comes from the backend."""
    case, energy = Case(), CosineLogitsEnergy()

    def correlation(rows):
        student = rows @ case.kernel.T
        teacher = case.teacher_rows @ case.teacher_kernel.T
        pairs = zip(teacher, student, strict=True)
        return np.array([1 - np.corrcoef(t, s)[0, 1] for t, s in pairs])

    case.coefficients[0] *= 1e-6  # all but the energy alone
    got = case.gradient({"e": energy}, "rows", tile_rows=4)
    step, want = 1e-6, np.zeros_like(case.rows)
    for j in range(WIDTH):
        move = step * np.eye(WIDTH)[j]
        change = correlation(case.rows + move) - correlation(case.rows - move)
        want[:, j] = case.coefficients[1] * change / (2 * step)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=5e-6)


def test_a_subclass_with_another_formula_does_not_inherit_the_closed_form():
    class Doubled(ForwardKLEnergy):
        def pointwise(self, log_p, log_q):
            return 2.0 * super().pointwise(log_p, log_q)

    case = Case()
    plain = case.fused({"kl": ForwardKLEnergy()}).energies["kl"]
    doubled = case.fused({"kl": Doubled()}).energies["kl"]
    np.testing.assert_allclose(as_array(doubled), 2 * as_array(plain), rtol=1e-5)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_only_the_first_largest_class_is_right(label):
    """Ties are frequent in bfloat16; a head of zeros must not count as always right."""
    x = ops.array([[1.0, 3.0, 3.0], [5.0, 5.0, 5.0], [-math.inf, -math.inf, -2.0]])
    before = as_array(x).copy()
    found = is_argmax(x, ops.full((3,), label, dtype="int32"))
    np.testing.assert_array_equal(as_array(found), np.array([1, 0, 2]) == label)
    np.testing.assert_array_equal(as_array(x), before)


def test_a_tile_is_as_large_as_the_budget_allows_and_a_product_needs():
    few, twice = (rows_per_tile(10**5, 10, memory_budget=m * 10**8) for m in (1, 2))
    assert twice - few in (83, 84)  # three copies of a row are 1.2 MB
    assert rows_per_tile(10**9, 10, memory_budget=1) == 1
    assert rows_per_tile(10**5, 10, memory_budget=10**12) == 256
    assert rows_per_tile(2**10, 10, memory_budget=10**12) == 2**12


def test_tiles_of_a_loop_leave_room_for_the_gradient_beside_them():
    """They were as large as a single tile may be: memory grew from 750 MB to 935."""
    alone, looped = (rows_per_tile(2**18, 256, count) for count in (128, 1024))
    assert alone >= 128 and looped <= alone // 2
    assert looped == rows_per_tile(2**18, 256)


def test_a_plain_kernel_is_a_head_and_arrays_of_numpy_are_inputs():
    case, energies = Case(), {"kl": ForwardKLEnergy()}
    expected = case.fused(energies, tile_rows=4)
    names = ("rows", "kernel", "teacher_rows", "teacher_kernel", "labels")
    arrays = [getattr(case, name) for name in names]
    arrays = [x.astype("float32") if x.ndim == 2 else x for x in arrays]
    # In float64 too, as NumPy makes them; PyTorch once ended in an error of `scatter`.
    for coefficients in (case.coefficients.astype("float32"), case.coefficients):
        result = fused_head_loss(*arrays, coefficients, energies, tile_rows=4)
        assert float(result.total) == float(expected.total)
        np.testing.assert_array_equal(as_array(result.task), as_array(expected.task))


def test_one_label_for_each_row():
    case = Case()
    case.labels = case.labels[:, None]
    with pytest.raises(ValueError, match="`labels` must have the shape"):
        case.fused({"kl": ForwardKLEnergy()})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"coefficients": np.ones((1, N))}, "coefficients.*1 \\+ E"),
        ({"coefficients": np.ones((2, 1))}, "coefficients.*\\(2, 1\\)"),
        ({"teacher_rows": np.ones((N - 1, TEACHER_WIDTH))}, "`teacher_rows` must have"),
        ({"tile_rows": 0}, "`tile_rows` must be a positive integer"),
        ({"energies": [ForwardKLEnergy()]}, "`energies` must be a dict"),
        ({"energies": {"f": FeatureMSEEnergy()}}, "`energies` must be a dict"),
        ({"kernel": np.ones((V - 1, WIDTH))}, "same classes"),
        ({"energies": {"uld": ULDEnergy()}}, "cannot be fused.*uld"),
    ],
)
@pytest.mark.pytorch
def test_arguments_that_do_not_fit_together(change, message):
    arguments = {"energies": {"kl": ForwardKLEnergy()}, **change}
    with pytest.raises(ValueError, match=message):
        Case().fused(**arguments)


def distiller(fused, head_policy="train", energies=None, beta=None, **kwargs):
    keras.utils.set_random_seed(3)
    teacher, student = tiny_gemma3(width=12), tiny_gemma3()
    embedding = student.backbone.token_embedding
    if head_policy == "lora":
        embedding.enable_lora(2)
        embedding.lora_embeddings_b.assign(
            ops.full(embedding.lora_embeddings_b.shape, 0.1)
        )
    if head_policy == "frozen":
        embedding.trainable = False
    if head_policy == "lora_and_base":
        embedding.enable_lora(2)
        embedding.trainable = True  # which wakes the base up as well
    model = BetaKDDistiller(
        teacher,
        student,
        energies or [CosineProbsEnergy(), JensenShannonEnergy()],
        beta,
        fused=fused,
        **kwargs,
    )
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    return model


@pytest.mark.parametrize(
    "reads",
    [
        pytest.param("hidden_states", marks=pytest.mark.pytorch),
        pytest.param("logits", marks=pytest.mark.pytorch),
        pytest.param("tiles", marks=pytest.mark.traced),
    ],
)
def test_training_is_the_same_as_with_full_logits(reads, monkeypatch):
    """With betas of every kind. If one reads the teacher's uncertainty, its logits are
    computed, all at a time or tile by tile. Only three then, since compiling a step
    with all six takes long."""
    if reads == "tiles":
        monkeypatch.setattr(tiles, "_LEAST_BUDGET", 0)
        assert not fits_one_tile(4, 64, 8)
    histories = []
    for fused in (True, False):
        keras.utils.set_random_seed(3)  # of the betas' first weights
        hidden = {"features": "hidden_states", "shrinkage": 4.0}
        pairs = {
            "fixed": (CosineProbsEnergy(), FixedBeta(2.0)),
            "learned": (JensenShannonEnergy(), TaskBeta()),
            "instance": (ForwardKLEnergy(), InstanceBeta(**hidden)),
            "token": (ReverseKLEnergy(), TokenBeta(**hidden)),
            "analytic": (TotalVariationEnergy(), AnalyticBeta()),
        }
        if reads != "hidden_states":
            pairs = {name: pairs[name] for name in ("learned", "instance")}
            pairs["uncertainty"] = MSEProbsEnergy(), InstanceBeta()
            pairs["of_tokens"] = ReverseKLEnergy(), TokenBeta()
        energies, betas = ({k: v[i] for k, v in pairs.items()} for i in range(2))
        model = distiller(fused, energies=energies, beta=betas, task_beta=True)
        history = model.fit(
            vqa_records(), batch_size=2, epochs=2, shuffle=False, verbose=0
        )
        histories.append(history.history)
    assert histories[0].keys() == histories[1].keys()
    assert {f"{name}_beta" for name in pairs} <= histories[0].keys()
    for name, values in histories[0].items():
        np.testing.assert_allclose(
            values, histories[1][name], rtol=2e-4, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize(
    "head_policy", kept(["frozen", "lora", "lora_and_base"], "lora_and_base")
)
def test_frozen_and_lora_heads(head_policy):
    """They get no kernel gradient, and the rest of the student the same one."""
    weights = []
    for fused in (True, False):
        model = distiller(fused, head_policy)
        model.fit(vqa_records(), batch_size=2, shuffle=False, verbose=0)
        weights.append([as_array(v) for v in model.student.trainable_variables])
    for ours, dense in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, dense, rtol=1e-3, atol=2e-5)


@pytest.mark.traced
def test_one_compilation_for_answers_of_any_length(monkeypatch):
    """Tiles sized by the supervised rows would be compiled for each number of them."""
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()  # full of what other tests compiled, JAX would forget
    traces = []
    compute = CosineProbsEnergy.value_and_gradient

    def counted(energy, *rows):
        traces.append(1)
        return compute(energy, *rows)

    monkeypatch.setattr(CosineProbsEnergy, "value_and_gradient", counted)
    model = distiller(True)
    records = vqa_records()
    model.fit(records, batch_size=2, shuffle=False, verbose=0)
    first = len(traces)
    records["responses"] = ["red", "red blue", "green teal red", "teal " * 6]
    model.fit(records, batch_size=2, shuffle=False, verbose=0)
    per_step = first // 2 if keras.config.backend() == "torch" else 0
    assert first > 0 and len(traces) - first == 2 * per_step


@pytest.mark.pytorch
def test_the_choice_is_part_of_the_configuration():
    model = distiller(False)
    assert BetaKDDistiller.from_config(model.get_config()).fused is False


@pytest.mark.pytorch
def test_other_metrics_need_the_logits():
    model = distiller("auto")
    top5 = keras.metrics.SparseTopKCategoricalAccuracy(5, name="top5")
    model.compile(weighted_metrics=[top5])
    assert "top5" in model.evaluate(
        vqa_records(), batch_size=2, return_dict=True, verbose=0
    )
    model = distiller(True)
    with pytest.raises(ValueError, match="fused=True.*weighted_metrics"):
        model.compile(weighted_metrics=[top5])
