"""The Beta-KD objective, term by term, as pure functions.

Reading the teacher as a Gibbs prior over the student's activations,
p(a_s | a_t, beta) = exp(-beta * l(a_s; a_t)) / Z(beta), and approximating log Z by
Laplace, -log p becomes `beta * l - (d / 2) * log beta` up to a constant. The total
that is minimised is

    CE + sum_k [ beta_k * l_k - (d_k / 2) * log beta_k ]

with l_k the mean energy, d_k its `dim`. For one term the best beta is d / (2 l),
where the term equals (d / 2) * (1 + log(2 l / d)): below zero once l < d / (2 e).
A negative total is therefore legitimate; watch the energies and betas themselves.

Every mean here is a sum with row weights that add up to one, so that each term
(cross-entropy, energy, log beta) is averaged over the same rows in the same way. Where
replicas share a batch (`keras_betakd.distribution.replicas`), those of all of them
together do, and a weighted sum is one replica's part of the mean.

Reference: Beta-KD, arXiv 2603.21426 (CVPR 2026).
"""

from keras import ops

from keras_betakd.distribution.replicas import over_replicas

REDUCTIONS = ("example", "token")


def row_weights(sample_weight, reduction="example"):
    """Weights of the answer rows in every mean; they add up to one.

    With w the weight of token t of example i and n_i the number of tokens of i
    whose weight is not zero,

    - `"example"`: (w_it / n_i) / sum of (w_jt / n_j): the mean over the supervised
      tokens of an example, then over examples (the expectation over x of the
      paper). A long answer counts as much as a short one.
    - `"token"`: w_it / sum of w_jt: the mean over all supervised tokens.

    Args:
        sample_weight: (B, K), zero for rows that are not supervised.
        reduction: `"example"` or `"token"`.

    Returns:
        (B, K) float32. All zero where nothing is supervised, never NaN.

    Example:

    >>> from keras import ops
    >>> from keras_betakd.objective import row_weights
    >>> weights = row_weights(ops.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    >>> [[float(w) for w in row] for row in ops.convert_to_numpy(weights)]
    [[0.25, 0.25, 0.0], [0.5, 0.0, 0.0]]
    """
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"`reduction` must be one of {REDUCTIONS}. Received: reduction={reduction}"
        )
    weights = ops.cast(sample_weight, "float32")
    if reduction == "example":
        counts = ops.sum(ops.cast(weights != 0, "float32"), axis=1, keepdims=True)
        weights = weights / ops.maximum(counts, 1.0)
    return normalised(weights)


def normalised(weights):
    """`weights` that add up to one over all replicas; all zero if they are all zero."""
    total = over_replicas(ops.sum(weights))
    return weights / ops.where(total == 0, 1.0, total)


def sped_up(raw, multiplier):
    """`multiplier * raw`, with the gradient of `raw` alone.

    A learning-rate multiplier for one variable: its gradient is not inflated, and so
    does not crowd out others where gradients are clipped by their global norm.
    """
    return raw + ops.stop_gradient((multiplier - 1.0) * raw)


def weighted_sum(values, weights):
    """The sum of `weights * values` over the rows whose weight is not zero.

    Args:
        values: broadcastable to `weights`; may hold NaN where the weight is zero.
        weights: (B, K), from `row_weights`.

    Returns:
        A float32 scalar, zero when no row counts.
    """
    values = ops.broadcast_to(ops.cast(values, "float32"), ops.shape(weights))
    # Selected and not only multiplied: 0 * NaN would be NaN.
    return ops.sum(ops.where(weights != 0, values, 0.0) * weights)


def weighted_mean(values, weights):
    """`weighted_sum` over the rows of all replicas, without gradient if several."""
    return over_replicas(weighted_sum(values, weights))


def any_row(weights):
    """Whether a row of any replica counts."""
    return over_replicas(ops.sum(ops.cast(weights != 0, "float32"))) > 0


def weighted_energy(energy, log_beta, weights):
    """The first half of a term: the mean of beta * l over the rows.

    Args:
        energy: l, (B, K), in the units of the energy (nats per token for a
            divergence); may hold NaN where the weight is zero.
        log_beta: log of the energy's weight, dimensionless, broadcastable to
            (B, K).
        weights: (B, K), from `row_weights`.
    """
    # Selected before the product, whose slope towards log beta is the energy.
    energy = ops.where(weights != 0, energy, 0.0)
    return weighted_sum(ops.exp(log_beta) * energy, weights)


def log_beta_penalty(log_beta, weights, dim=1.0):
    """The second half of a term: -(d / 2) times the mean of log beta.

    Args:
        log_beta: broadcastable to (B, K).
        weights: (B, K), from `row_weights`.
        dim: d, the relative weight of the energy's logarithm (see `TaskBeta`).
    """
    return -0.5 * dim * weighted_sum(log_beta, weights)


def optimal_beta(energy, dim=1.0):
    """d / (2 l): the beta at which a term with mean energy l is smallest.

    Example:

    >>> from keras_betakd.objective import optimal_beta
    >>> optimal_beta(0.1)
    5.0
    """
    return 0.5 * dim / energy
