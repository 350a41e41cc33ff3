"""The Beta-KD objective, term by term, as pure functions.

The teacher is read as a Gibbs prior over the student's activations,
p(a_s | a_t, beta) = exp(-beta * l(a_s; a_t)) / Z(beta). With a Laplace approximation of
log Z, -log p is `beta * l - (d / 2) * log beta` up to a constant. The total that is
minimised is

    CE + sum_k [ beta_k * l_k - (d_k / 2) * log beta_k ]

with CE the cross-entropy in nats per token, l_k the mean of energy k and d_k its `dim`.
A term alone is smallest at beta = d / (2 l), where it equals
(d / 2) * (1 + log(2 l / d)), which is negative for l < d / (2 e). A negative total is
therefore no error; watch the energies and betas themselves.

Every mean is a sum with row weights that add up to one, so that each term
(cross-entropy, energy, log beta) is averaged over the same rows in the same way. Where
replicas share a batch (`keras_betakd.distribution.replicas`), the weights of all
replicas add up to one, and a weighted sum is one replica's part of the mean.

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
        (B, K) float32. All zero if nothing is supervised, never NaN.

    Raises:
        ValueError: for an unknown `reduction`.

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
    """`weights` over their sum over all replicas; all zero if they are all zero."""
    total = over_replicas(ops.sum(weights))
    return weights / ops.where(total == 0, 1.0, total)


def sped_up(raw, multiplier):
    """`multiplier * raw`, with the gradient of `raw` alone.

    This is a learning-rate multiplier for one variable. The gradient is not multiplied,
    so that where gradients are clipped by their global norm it does not dominate.
    """
    return raw + ops.stop_gradient((multiplier - 1.0) * raw)


def weighted_sum(values, weights):
    """The sum of `weights * values` over the rows whose weight is not zero.

    Args:
        values: broadcastable to `weights`; may hold NaN where the weight is zero.
        weights: (B, K), from `row_weights`.

    Returns:
        A float32 scalar, zero if all weights are zero.
    """
    values = ops.broadcast_to(ops.cast(values, "float32"), ops.shape(weights))
    # Selected and not only multiplied: 0 * NaN is NaN.
    return ops.sum(ops.where(weights != 0, values, 0.0) * weights)


def weighted_mean(values, weights):
    """`weighted_sum` over the rows of all replicas; no gradient if several."""
    return over_replicas(weighted_sum(values, weights))


def any_row(weights):
    """Whether any row of any replica has a weight."""
    return over_replicas(ops.sum(ops.cast(weights != 0, "float32"))) > 0


def weighted_energy(energy, log_beta, weights):
    """The first part of a term: the mean of beta * l over the rows.

    Args:
        energy: l, (B, K), in the units of the energy (nats per token for a
            divergence); may hold NaN where the weight is zero.
        log_beta: log of the energy's weight, dimensionless, broadcastable to
            (B, K).
        weights: (B, K), from `row_weights`.
    """
    # Selected before the product, whose derivative with respect to log beta contains
    # the energy.
    energy = ops.where(weights != 0, energy, 0.0)
    return weighted_sum(ops.exp(log_beta) * energy, weights)


def log_beta_penalty(log_beta, weights, dim=1.0):
    """The second part of a term: -(d / 2) times the mean of log beta.

    Args:
        log_beta: broadcastable to (B, K).
        weights: (B, K), from `row_weights`.
        dim: d, see `keras_betakd.betas`.
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


def best_term(energy, dim, bounds):
    """A term at its best beta: the least beta * l - (d / 2) log beta within bounds.

    It rises and falls with the energy alone, whatever beta has been learned. Between
    the bounds it is (d / 2) * (1 + log(2 l / d)); where beta is fixed, both bounds are
    its value, and it is the term itself.

    Args:
        energy: l, the mean energy.
        dim: d.
        bounds: (least, greatest) beta, both positive.

    Example:

    >>> from keras_betakd.objective import best_term
    >>> round(float(best_term(0.5, 1.0, (0.01, 100.0))), 4)
    0.5
    """
    half = 0.5 * dim
    energy = ops.convert_to_tensor(energy, "float32")
    # The bounds are applied to l and not to beta, for an energy of 0.
    beta = half / ops.clip(energy, half / bounds[1], half / bounds[0])
    return beta * energy - half * ops.log(beta)
