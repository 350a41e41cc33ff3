"""LM head, cross-entropy and energies in one operation, without the full logits.

With a vocabulary of 262,144 classes most memory of a training step goes to the logits
of teacher and student, their softmaxes and their gradients. Here the heads are applied
to tiles of a few rows. Value and gradient of a tile are computed together, and then its
logits are freed:

    total = sum_n [ c_0n CE_n + sum_k c_kn l_kn ]

The coefficients c, row weight times beta, do not depend on the logits (a predicted beta
depends on features of the teacher), so they are known before the head runs. Therefore
the gradient can be computed in the forward pass, and nothing is computed twice:
d total / d logits of a tile is multiplied into the gradients of the hidden states and
of the head, and the gradient with respect to c, from which betas are learned, is equal
to the values. The backward pass only multiplies by the upstream gradient. Where one
tile holds all rows, the head's gradient is not computed until then: it is the product
of the gradient with respect to the logits and the scaled hidden states, which costs as
much as scaling the head's gradient would. (Recomputing tiles in the backward pass, as
remat does, would compute the head's products once more.)

Rows without weight are sorted behind the others, and tiles of such rows do not run.
Only rows are tiled: the energies need all classes of a row, so with tiles of classes
the logits would have to be computed again for each pass over them.
"""

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_betakd.backends import add_outer
from keras_betakd.head_loss.arguments import (
    as_matrix,
    expect_energies,
    expect_rows,
    expect_same_classes,
    expect_tile_rows,
    is_class,
    unknown_terms,
)
from keras_betakd.head_loss.tile_loop import run_in_tiles
from keras_betakd.head_loss.tiles import HeadTiles, rows_per_tile, teacher_key

_NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class HeadLoss:
    """The result of `fused_head_loss`. Only `total` is differentiable.

    Attributes:
        total: scalar, the weighted sum of all terms.
        task: (N,), the cross-entropy of each row in nats per token; 0 for rows that are
            not supervised.
        energies: dict of (N,), each energy of each row in its units (nats per token for
            a divergence); 0 for rows that are not supervised.
        correct: (N,), 1 where the label has the student's largest logit, else 0.
    """

    total: Any
    task: Any
    energies: dict
    correct: Any


@dataclasses.dataclass(frozen=True)
class Compared:
    """A teacher at the rows, and the energies that compare the student with it.

    Attributes:
        rows, head: as `teacher_rows` and `teacher_head` of `fused_head_loss`.
        energies: dict of energies by name.
    """

    rows: Any
    head: Any
    energies: dict


def fused_head_loss(
    student_rows,
    student_head,
    teacher_rows,
    teacher_head,
    labels,
    coefficients,
    energies,
    tile_rows=None,
    gradients=True,
):
    """Distillation loss of an LM head, computed without the logits of all tokens.

    Use it to train a student language model on labels and on a teacher's predictions
    where logits of shape (N, V) do not fit into memory: V classes at each of N tokens.
    It takes the last hidden states and the head matrices of both models instead of
    logits, any of the energies of `keras_betakd.energies` that compare logits, and
    weights that may be learned:

        total = sum_n [ c_0n CE(y_n, z_n) + sum_k c_kn l_k(z_n; t_n) ]

        z_n = student_rows[n] @ W_s^T      the student's logits, (V,)
        t_n = teacher_rows[n] @ W_t^T      the teacher's logits, (V,)
        CE(y_n, z_n) = -log softmax(z_n)[y_n],   y = labels
        c = coefficients

    with W_s and W_t the kernels of `student_head` and `teacher_head`, and l_k the k-th
    of the `energies`, counted from 1 (0 is the cross-entropy). Cross-entropy and
    divergences are in nats per token. The numbers are those of the full logits up to
    rounding.

    **Memory.** At any time the logits of about `tile_rows` rows exist, with their
    softmaxes and gradients: O(tile_rows * V) in place of several float32 arrays (N, V)
    for each model. What remains are inputs, their gradients, and values of shape (N,).
    If one tile holds all rows, the gradient with respect to its logits is kept for the
    backward pass; otherwise the gradient of the head, (V, H_s) in float32, which
    training needs anyway. `benchmarks/head_loss.py` measures time and memory.

    **Gradients** are computed in the forward pass, tile by tile, so that logits need
    neither be kept nor computed again for the backward pass. From `total` they reach

    - `student_rows`;
    - the student's head: its kernel (if trainable), bias and LoRA factors;
    - `coefficients`, whose gradient is the value of each term: d total / d c_kn =
      l_k(z_n; t_n), and CE(y_n, z_n) for k = 0. Weights are learned through them: with
      c_kn = w_n exp(log_beta), log_beta receives sum_n c_kn l_k(z_n; t_n). The term
      -(d / 2) log_beta that keeps a learned weight from going to 0 is not part of
      `total`; add it (`keras_betakd.objective.log_beta_penalty`, or a layer of
      `keras_betakd.betas`);
    - the learned `parameter` of an energy, such as that of the temperature of
      `CTKDEnergy`.

    No gradient reaches the teacher's rows and head, and second derivatives are not
    available. Logits, and products with a head in the gradient, are computed in the
    head's dtype, all else in float32.

    **Masking.** A row whose coefficients are all 0 is not supervised and has no
    influence: its hidden states may hold NaN, and its label may be any integer (such as
    -100). Its values are 0 and its gradients exactly 0. Tiles of such rows are skipped.
    On a supervised row, a term with a coefficient of 0 adds 0 to `total`, even if its
    value is infinite. A label that is no class from 0 to V - 1 makes the cross-entropy
    of a supervised row NaN, and so the energies that read labels (`DKDEnergy`); where
    such a term has a coefficient, `total` and all gradients are NaN, on every backend.
    (An exception is not possible in a compiled step.)

    Args:
        student_rows: (N, H_s), hidden states at the positions that predict a label;
            reshape (B, T, H_s) to (B * T, H_s).
        student_head: (V, H_s) kernel, whose products are computed in its own dtype; or
            a `keras_betakd.models.HeadMatrix`, which adds a dtype of the products, a
            bias, a soft cap, LoRA factors, or a frozen kernel.
        teacher_rows: (N, H_t), the teacher's hidden states at the same positions; or
            whatever a callable `teacher_head` takes, such as its logits (N, V).
        teacher_head: (V, H_t) kernel, a `HeadMatrix`, or a callable that takes n of the
            rows and returns their logits (n, V).
        labels: (N,) integer class ids.
        coefficients: (1 + E, N) float32, the weight of the cross-entropy (first) and of
            each energy at each row. For a mean over tokens they contain the division,
            see `keras_betakd.objective.row_weights`.
        energies: dict of E energies by name, in the order of the coefficients; may be
            empty. They apply their own temperature; their `reduction` is not used.
        tile_rows: the number of rows whose logits are held at a time. Defaults to
            `None`: chosen by the size of the head and the device.
        gradients: whether `total` will be differentiated. `False` saves the time and
            memory of the gradients, for evaluation. Defaults to `True`.

    Returns:
        A `HeadLoss` with the scalar `total`, and the values of each row without
        gradient: `task` (the cross-entropy), `energies` by name, and `correct`.

    Raises:
        ValueError: if the shapes are not those above, if `energies` is no dict of
            energies between logits, if one of them cannot be fused (its attribute
            `fuses` is false), if the two kernels have different numbers of classes, or
            if `tile_rows` is not positive.

    Example:

    >>> from keras import ops
    >>> from keras_betakd import ForwardKLEnergy
    >>> from keras_betakd.head_loss import fused_head_loss
    >>> kernel = ops.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])  # V = 3, H = 2
    >>> teacher_kernel = ops.array([[3.0], [0.0], [1.0]])
    >>> rows = ops.array([[1.0, 0.0], [0.0, 1.0], [float("nan"), 0.0]])
    >>> teacher_rows = ops.array([[1.0], [-1.0], [0.0]])
    >>> labels = ops.array([0, 1, -100])
    >>> weights = ops.array([0.5, 0.5, 0.0])  # a mean; the last row is padding
    >>> beta = 2.0
    >>> loss = fused_head_loss(
    ...     rows,
    ...     kernel,
    ...     teacher_rows,
    ...     teacher_kernel,
    ...     labels,
    ...     ops.stack([weights, beta * weights]),
    ...     {"kl": ForwardKLEnergy()},
    ... )
    >>> [round(float(x), 4) for x in loss.task]
    [0.2395, 0.2395, 0.0]
    >>> [round(float(x), 4) for x in loss.energies["kl"]]
    [0.0277, 0.1149, 0.0]
    >>> round(float(loss.total), 4)  # mean of task + beta * mean of kl
    0.3821

    With a learned weight, inside of what the backend differentiates:

    ```python
    beta = ops.exp(log_beta)  # log_beta: a trainable variable
    coefficients = ops.stack([weights, beta * weights])
    loss = fused_head_loss(..., coefficients, {"kl": ForwardKLEnergy()})
    objective = loss.total - 0.5 * log_beta  # d = 1; beta converges to 1 / (2 KL)
    ```

    Reference: gradients computed in the forward pass over chunks of rows, for the
    cross-entropy: Liger Kernel, Hsu et al. 2024 (arXiv:2410.10989); cross-entropy
    without logits in memory: Cut Cross-Entropy, Wijmans et al. 2024 (arXiv:2411.09009);
    learned weights: Beta-KD 2026 (arXiv:2603.21426).
    """
    if not callable(teacher_head):
        teacher_head = as_matrix(teacher_head)
    expect_energies(energies)
    return fused_losses(
        student_rows,
        student_head,
        [Compared(teacher_rows, teacher_head, energies)],
        labels,
        coefficients,
        tile_rows,
        gradients,
    )


def fused_losses(
    student_rows,
    student_head,
    teachers,
    labels,
    coefficients,
    tile_rows=None,
    gradients=True,
):
    """As `fused_head_loss`, of a student that is compared with several teachers.

    The student's logits are made once for all of them.

    Args:
        student_rows, student_head, labels, tile_rows, gradients: as for
            `fused_head_loss`.
        teachers: list of `Compared`, whose energies all have names of their own.
        coefficients: (1 + E, N), as for `fused_head_loss`, for the energies of the
            first teacher, then those of the second, and so on.

    Returns:
        A `HeadLoss`.
    """
    student_head = as_matrix(student_head)
    energies = {k: e for teacher in teachers for k, e in teacher.energies.items()}
    student_rows, labels, coefficients, *teacher_rows = map(
        ops.convert_to_tensor,
        (student_rows, labels, coefficients, *(t.rows for t in teachers)),
    )
    coefficients = ops.cast(coefficients, "float32")
    for teacher, rows in zip(teachers, teacher_rows, strict=True):
        expect_rows(student_rows, rows, labels, coefficients, 1 + len(energies))
        expect_same_classes(student_head, teacher.head)
    expect_tile_rows(tile_rows)
    kernel = student_head.kernel
    if tile_rows is None:
        tile_rows = rows_per_tile(*kernel.shape, student_rows.shape[0])
    pairs = [(teacher.head, teacher.energies) for teacher in teachers]
    job = HeadTiles(student_head, pairs, gradients)
    low_rank = _low_rank_rows(student_rows, student_head)
    supervised = ops.any(coefficients != 0, axis=0)
    known = is_class(labels, kernel.shape[0])
    unknown = unknown_terms(energies, ops.logical_and(supervised, ~known))
    spoiling = ops.logical_and(unknown, coefficients != 0)
    data = {
        "rows": student_rows,
        "labels": ops.cast(ops.where(known, labels, 0), "int32"),
        "coefficients": ops.transpose(ops.where(spoiling, _NAN, coefficients)),
        **{teacher_key(i): rows for i, rows in enumerate(teacher_rows)},
    }
    if low_rank is not None:
        data["low_rank"] = low_rank
    data = {k: ops.stop_gradient(v) for k, v in data.items()}
    rows, sums, factors = run_in_tiles(job, data, supervised, tile_rows)
    values = ops.transpose(rows["values"])
    values = ops.where(supervised, values, 0.0)
    correct, values, derivatives = (
        values[0],
        values[1 : 2 + len(energies)],
        values[2 + len(energies) :],
    )
    correct = ops.where(known, correct, 0.0)
    values = ops.where(unknown, _NAN, values)
    # Selected one by one: 0 times an infinite energy would be NaN.
    total = ops.sum(ops.where(coefficients != 0, coefficients * values, 0.0))
    if gradients:
        inputs = {
            "rows": student_rows,
            "low_rank": low_rank,
            "kernel": kernel,
            "bias": student_head.bias,
            "low_rank_kernel": student_head.low_rank and student_head.low_rank[0],
        }
        pairs = [(coefficients, values)]
        pairs += _parameter_gradients(energies, coefficients, derivatives)
        products = {name: _Product(*pair) for name, pair in factors.items()}
        found = {**rows, **sums, **products}
        pairs += [(inputs[k], v) for k, v in found.items() if k in inputs]
        total = _with_gradients(ops.stop_gradient(total), pairs)
    return HeadLoss(
        total=total,
        task=values[0],
        energies=dict(
            zip(energies, ops.unstack(values[1:], len(energies)), strict=True)
        ),
        correct=correct,
    )


def _parameter_gradients(energies, coefficients, derivatives):
    """Pairs of an energy's learned parameter and the gradient of the total in it."""
    learned = [
        (k, e) for k, e in enumerate(energies.values(), 1) if e.parameter is not None
    ]
    return [
        (
            ops.convert_to_tensor(energy.parameter),
            ops.sum(ops.stop_gradient(coefficients[k]) * derivatives[i]),
        )
        for i, (k, energy) in enumerate(learned)
    ]


def _low_rank_rows(rows, head):
    """scale * rows @ B^T, differentiable in B only, (N, r); `None` without LoRA."""
    if head.low_rank is None:
        return None
    _, down, scale = head.low_rank
    rows = ops.cast(ops.stop_gradient(rows), "float32")
    return scale * ops.matmul(rows, ops.transpose(ops.cast(down, "float32")))


@dataclasses.dataclass(frozen=True)
class _Product:
    """The product left^T @ right, computed when it is needed."""

    left: Any
    right: Any

    def scaled(self, factor):
        # The smaller factor is scaled and not the (V, H) product. In float16 it could
        # overflow if the loss is scaled, so the product is.
        if keras.backend.standardize_dtype(self.right.dtype) == "float32":
            return add_outer(None, self.left, factor * self.right)
        return factor * add_outer(None, self.left, self.right)


def _scaled(gradient, factor):
    if isinstance(gradient, _Product):
        return gradient.scaled(factor)
    return factor * gradient


def _with_gradients(total, pairs):
    """`total`, with given gradients.

    Args:
        total: scalar.
        pairs: of an input and d total / d input, an array or a `_Product`.
    """
    inputs, gradients = zip(*pairs, strict=True)

    @ops.custom_gradient
    def attach(*inputs):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            return tuple(
                ops.cast(_scaled(g, upstream), x.dtype)
                for g, x in zip(gradients, inputs, strict=True)
            )

        return total, gradient

    return attach(*inputs)
