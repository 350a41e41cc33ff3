"""Every energy from its definition, in NumPy's widest floats, one position a row.

Written from the formulas in the docstrings and not from the code: whole sums, with -inf
for an excluded class. Each function takes the logits (N, V) of teacher and student, and
`fixed`, the student's logits in what the formula takes as constant to the gradient.
"""

import numpy as np

WIDE = np.longdouble


def log_softmax(x, temperature=1.0):
    x = np.asarray(x, WIDE) / np.asarray(temperature, WIDE)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(log_p, log_q):
    """sum p log(p / q); infinite where q excludes a class that p allows."""
    allowed = log_p > -np.inf
    gap = np.where(allowed, log_p, 0.0) - np.where(allowed, log_q, 0.0)
    return np.where(gap == np.inf, np.inf, np.exp(log_p) * np.where(allowed, gap, 0.0)
                    ).sum(-1)  # fmt: skip


def mixed(log_p, log_q, share):
    """log((1 - share) p + share q)."""
    return np.logaddexp(log_p + np.log1p(-WIDE(share)), log_q + np.log(WIDE(share)))


def entropy(log_p):
    return -(np.exp(log_p) * np.where(log_p > -np.inf, log_p, 0.0)).sum(-1)


def cosine(a, b):
    return 1 - (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def jensen_shannon(log_p, log_q, w):
    m = mixed(log_p, log_q, 1 - WIDE(w))
    return w * kl(log_p, m) + (1 - WIDE(w)) * kl(log_q, m)


def adaptive_kl(log_p, log_q, log_fixed, mass=0.5):
    """The head is the nucleus: the fewest largest classes that hold `mass`."""
    p, gap = np.exp(log_p), np.abs(np.exp(log_p) - np.exp(log_fixed))
    order = np.argsort(-p, axis=-1, kind="stable")
    before = np.cumsum(np.take_along_axis(p, order, -1), -1)
    before = np.concatenate([np.zeros_like(before[:, :1]), before[:, :-1]], -1)
    head = (np.take_along_axis(gap, order, -1) * (before < mass)).sum(-1)
    total = gap.sum(-1)
    c = np.where(total > 0, head / np.where(total > 0, total, 1), 0.5)
    forward, reverse = kl(log_p, log_q), kl(log_q, log_p)
    infinite = np.isinf(forward) | np.isinf(reverse)
    return np.where(infinite, np.inf, c * forward + (1 - c) * reverse)


def entropy_aware_kl(log_p, log_q, full):
    h = np.minimum(entropy(log_p) / full, 1)
    forward, reverse = kl(log_p, log_q), kl(log_q, log_p)
    infinite = np.isinf(forward) | np.isinf(reverse)
    with np.errstate(invalid="ignore"):
        return np.where(infinite, np.inf, h * forward + (1 - h) * reverse)


def decoupled(log_p, log_q, labels, alpha=1.0, beta=8.0):
    classes = np.arange(log_p.shape[-1])
    is_label = classes == labels[:, None]
    binary, others = [], []
    for logs in (log_p, log_q):
        rest = np.where(is_label, -np.inf, logs)
        total = np.logaddexp.reduce(rest, -1)
        label = np.where(is_label, logs, -np.inf).max(-1)
        binary.append(np.stack([label, total], -1))
        others.append(rest - np.where(total == -np.inf, 0.0, total)[:, None])
    none = binary[0][:, 1] == -np.inf
    return alpha * kl(*binary) + beta * np.where(none, 0.0, kl(*others))


def taid(log_p, log_q, log_fixed, t):
    """Infinite where the target has no class left."""
    target = log_softmax((1 - WIDE(t)) * log_fixed + WIDE(t) * log_p)
    return np.where(np.isnan(target).any(-1), np.inf, kl(target, log_q))


def sorted_distance(p, q):
    p, q = (np.sort(x, -1)[:, ::-1] for x in (p, q))
    size = max(p.shape[-1], q.shape[-1])
    p, q = (np.pad(x, ((0, 0), (0, size - x.shape[-1]))) for x in (p, q))
    return np.abs(p - q).sum(-1)


def _supported(teacher, student):
    """Logits, 0 where both exclude a class; the mask and number of other classes."""
    both = (teacher == -np.inf) & (student == -np.inf)
    teacher, student = (np.where(both, 0.0, x.astype(WIDE)) for x in (teacher, student))
    return teacher, student, ~both, (~both).sum(-1, keepdims=True)


def _z_scores(x, support, count, ddof, epsilon):
    centred = np.where(support, x - x.sum(-1, keepdims=True) / count, 0.0)
    variance = (centred**2).sum(-1, keepdims=True) / np.maximum(count - ddof, 1)
    return centred / np.maximum(np.sqrt(variance), epsilon)


def mse_logits(teacher, student, ddof=None, epsilon=1e-3):
    """Of Z-scores, or of raw logits if `ddof` is `None`."""
    *pair, support, count = _supported(teacher, student)
    if ddof is not None:
        pair = [_z_scores(x, support, count, ddof, epsilon) for x in pair]
    return ((pair[0] - pair[1]) ** 2).sum(-1) / count[:, 0]


def cosine_logits(teacher, student, standardize=True, epsilon=1e-3):
    *pair, support, count = _supported(teacher, student)
    if standardize:
        centred = [_z_scores(x, support, count, 1, epsilon) for x in pair]
        scale = np.maximum(count[:, 0] - 1, 1)
    else:
        floor = epsilon * np.sqrt(count)
        lengths = (np.sqrt((x**2).sum(-1, keepdims=True)) for x in pair)
        centred = [x / np.maximum(n, floor) for x, n in zip(pair, lengths, strict=True)]
        scale = 1
    return 0.5 * ((centred[0] - centred[1]) ** 2).sum(-1) / scale


def unit(x):
    """x / |x|, with |x|^2 at least 1e-12."""
    square = (np.asarray(x, WIDE) ** 2).sum(-1, keepdims=True)
    return x / np.sqrt(np.maximum(square, WIDE(1e-12)))


def feature_cosine(teacher, student):
    return 0.5 * ((unit(teacher) - unit(student)) ** 2).sum(-1)


def gradients(value, teacher, student, labels, step):
    """Central differences of each row's value, (N, V), by each of its entries.

    Args:
        value: teacher, student and fixed scores and labels of so many rows to values.
        teacher, student: (N, V); a class of -inf gets the gradient 0.
        labels: (N,).
        step: (N,), how far to move an entry.
    """
    rows, classes = student.shape
    moves = np.repeat(np.eye(classes, dtype=WIDE), rows, axis=0)
    moves = moves * np.tile(step, classes)[:, None]
    teacher, fixed = (np.tile(x.astype(WIDE), (classes, 1)) for x in (teacher, student))
    labels = np.tile(labels, classes)
    up, down = (value(teacher, fixed + m, fixed, labels) for m in (moves, -moves))
    return ((up - down).reshape(classes, rows) / (2 * step)).T
