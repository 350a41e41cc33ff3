"""`FeatureComparison`: compares features of teacher and student, and weights them.

Every energy gives values (B, N) and gets weights (B, N) that add up to one, N being
answer rows, image tokens, images or 1; the objective treats all energies alike.
"""

import math
from typing import NamedTuple

from keras import ops

from keras_betakd.head_loss.terms import ImageRows
from keras_betakd.objective import normalised

ANSWER = (None, "hidden_states", "attention")


class FeatureTerms(NamedTuple):
    """What the features of a batch give.

    Attributes:
        values: dict of values (B, N) by the names of the energies between features.
        image_rows: dict of `ImageRows`, the hidden states at the image tokens, by the
            names of the energies between logits there.
        weights: dict of weights (B, N) that add up to one, by the names of all
            energies.
    """

    values: dict
    image_rows: dict
    weights: dict


class FeatureComparison:
    """Compares features of teacher and student by the energies that ask for them.

    Args:
        energies: dict of all energies.
        betas: dict of their betas.
        student_view, teacher_view: the two `ModelView`s.

    Attributes:
        projections: dict of the layers, by the names of their energies, that project
            the student's features to the teacher's width.

    Raises:
        ValueError: a model does not have the features that an energy compares, or a
            beta is predicted for each answer token of an energy that has no value for
            each.
    """

    def __init__(self, energies, betas, student_view, teacher_view):
        self._energies = energies
        self.projections = {}
        views = student_view, teacher_view
        for name, energy in energies.items():
            if energy.features is None:
                continue
            _check_features(name, energy, betas[name], views)
            if energy.projects:
                energy.set_widths(*(view.hidden_dim for view in views))
                if energy.projection is not None:
                    self.projections[name] = energy.projection

    def wanted(self, role):
        """The names of the `Features` that the energies compare.

        Args:
            role: `"student"` or `"teacher"`.
        """
        wanted = {e.features for e in self._energies.values()} - {None}
        if "image_logits" in wanted:
            wanted = wanted - {"image_logits"} | {"image_hidden_states"}
        top_tokens = [e.top_tokens for e in self._energies.values()]
        if role == "teacher" and any(top_tokens):
            wanted.add("saliency")
        return wanted

    def compare(self, student, teacher, weights):
        """Compares the features of a batch.

        Args:
            student, teacher: `Features`, or `None` where no energy wants any.
            weights: (B, K) row weights of the answer rows that are compared.

        Returns:
            `FeatureTerms`.
        """
        terms = FeatureTerms({}, {}, {})
        for name, energy in self._energies.items():
            kind = energy.features
            if kind is None:
                terms.weights[name] = weights
            elif kind == "image_logits":
                rows, mask = _image_rows(student, teacher)
                terms.image_rows[name] = rows
                terms.weights[name] = spread(weights, mask)
            else:
                compare = _COMPARISONS.get(kind, _compare_images)
                terms.values[name], mask = compare(energy, student, teacher)
                share = _only_with if kind in ANSWER else spread
                terms.weights[name] = share(weights, mask)
        return terms


def _check_features(name, energy, beta, views):
    for view in views:
        if not view.sees(energy.features):
            raise ValueError(
                f"The energy '{name}' compares {energy.features}, which needs a "
                "keras-hub CausalLM (with a vision tower, if they are of the "
                "image) as teacher and as student; or, as teacher, a cache that "
                "was made by a distiller with this energy. Received: "
                f"{type(view.model).__name__}"
            )
    if energy.features not in ANSWER and beta.uses_features and beta.per_token:
        raise ValueError(
            f"The energy '{name}' has no value for each answer token, so its beta "
            "cannot be predicted for each. Use an `InstanceBeta` or a `TaskBeta`. "
            f"Received: beta={beta}"
        )


def spread(row_weights, mask):
    """Weights (B, N): an example's weight, divided among its tokens in the mask.

    Examples without such a token are left out; the weights of the others add up to one.

    Args:
        row_weights: (B, K).
        mask: bool (B, N).
    """
    mask = ops.cast(mask, "float32")
    count = ops.sum(mask, axis=1, keepdims=True)
    example = ops.sum(row_weights, axis=1, keepdims=True)
    return normalised(example * mask / ops.maximum(count, 1.0))


def _only_with(row_weights, mask):
    """The row weights of the examples where `mask`, bool (B, 1), is true."""
    if mask is None:
        return row_weights
    return normalised(row_weights * ops.cast(mask, "float32"))


def _compare_hidden_states(energy, student, teacher):
    return energy.call(teacher.hidden_states, student.hidden_states), None


def _compare_attention(energy, student, teacher):
    present = _present(student, teacher)
    ours, theirs = student.attention, teacher.attention
    before = theirs.shape[-1]
    batch, rows, images, tokens = ops.shape(ours)
    theirs = ops.reshape(theirs, (batch, rows * images, before, 1))
    theirs = resized(theirs, tokens) * (before / tokens)
    theirs = ops.reshape(theirs, (batch, rows, images, tokens))
    kept = present[:, None, :, None]
    ours, theirs = (ops.where(kept, x, 0.0) for x in (ours, theirs))
    flat = (batch, rows, -1)
    value = energy.call(ops.reshape(theirs, flat), ops.reshape(ours, flat))
    return value, ops.any(present, axis=1, keepdims=True)


def _compare_images(energy, student, teacher):
    present = _present(student, teacher)
    if energy.align == "pool":
        ours, theirs = (
            _pooled(getattr(x, energy.features), present) for x in (student, teacher)
        )
        value = energy.call(theirs, ours)[:, None]
        return value, ops.any(present, axis=1, keepdims=True)
    theirs, ours = _image_tokens(energy.features, student, teacher)
    kept = present[:, :, None, None]
    # The placeholder of a missing image is replaced before any arithmetic.
    theirs, ours = (ops.where(kept, x, ops.ones_like(x)) for x in (theirs, ours))
    value = energy.call(theirs, ours)
    if len(value.shape) == 2:
        return value, present
    mask = _token_mask(present, ours)
    if energy.top_tokens is not None:
        mask = mask & _most_salient(energy, teacher, present, ours.shape[2])
    return ops.reshape(value, ops.shape(mask)), mask


_COMPARISONS = {
    "hidden_states": _compare_hidden_states,
    "attention": _compare_attention,
}


def _present(student, teacher):
    """Images that both models take: bool (B, P)."""
    ours, theirs = student.present, teacher.present
    if None not in (ours.shape[1], theirs.shape[1]) and ours.shape != theirs.shape:
        raise ValueError(
            "Teacher and student must take the same number of images a record for "
            "their images to be compared (`max_images_per_prompt` of their "
            f"preprocessors). Received: student={ours.shape[1]}, "
            f"teacher={theirs.shape[1]}"
        )
    return ops.logical_and(ours, theirs)


def _image_tokens(kind, student, teacher):
    """Teacher's and student's image tokens, (B, P, T, D), on the student's grid."""
    ours, theirs = getattr(student, kind), getattr(teacher, kind)
    return resized(theirs, ours.shape[2]), ours


def _image_rows(student, teacher):
    """Hidden states (B, P * T, H) at the image tokens, and a mask of those compared."""
    theirs, ours = _image_tokens("image_hidden_states", student, teacher)
    mask = _token_mask(_present(student, teacher), ours)
    ours, theirs = (
        ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1])) for x in (ours, theirs)
    )
    return ImageRows(ours, theirs), mask


def _token_mask(present, tokens):
    """`present`, (B, P), for each token of (B, P, T, D): (B, P * T)."""
    return ops.repeat(present, tokens.shape[2], axis=1)


def _pooled(tokens, present):
    """Mean over the tokens of the present images: (B, P, T, D) to (B, D)."""
    tokens = ops.cast(tokens, "float32")
    kept = ops.where(present[:, :, None, None], tokens, 0.0)
    count = ops.maximum(ops.sum(ops.cast(present, "float32"), axis=1), 1.0)
    return ops.sum(kept, axis=(1, 2)) / (count * tokens.shape[2])[:, None]


def _most_salient(energy, teacher, present, tokens):
    """True at the `top_tokens` image tokens that the teacher's text attends to most."""
    if energy.top_tokens > tokens:
        raise ValueError(
            f"The energy '{energy.name}' compares top_tokens={energy.top_tokens} image "
            f"tokens, but the student has only {tokens} for an image."
        )
    saliency = resized(teacher.saliency[..., None], tokens)[..., 0]
    saliency = ops.where(present[:, :, None], saliency, -1.0)
    saliency = ops.reshape(saliency, (ops.shape(saliency)[0], -1))
    rank = ops.argsort(ops.argsort(-saliency, axis=1), axis=1)
    return rank < energy.top_tokens


def resized(tokens, count):
    """Image tokens on another square grid, bilinearly.

    Args:
        tokens: (B, P, T, D), T the square of a whole number, rows of the grid in turn.
        count: how many tokens there should be, a square too.

    Returns:
        (B, P, count, D); `tokens` itself if there are so many already.
    """
    before = tokens.shape[2]
    if before == count:
        return tokens
    sides = [math.isqrt(n) for n in (before, count)]
    if [side**2 for side in sides] != [before, count]:
        raise ValueError(
            "Image tokens can only be resized between square grids; use "
            f'align="pool" for others. Received: {before} tokens of the teacher and '
            f"{count} of the student for each image"
        )
    shape, width = ops.shape(tokens), tokens.shape[-1]
    grid = ops.reshape(ops.cast(tokens, "float32"), (-1, sides[0], sides[0], width))
    grid = ops.image.resize(
        grid, (sides[1], sides[1]), antialias=True, data_format="channels_last"
    )
    return ops.reshape(grid, (shape[0], shape[1], count, width))
