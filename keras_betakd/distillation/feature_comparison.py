"""`FeatureComparison`: compares features of teacher and student, and weights them.

Every energy gives values (B, N) and gets weights (B, N) that add up to one, N being
answer rows, image tokens, images or 1; the objective treats all energies alike.
"""

from typing import NamedTuple

from keras import ops

from keras_betakd.distillation.image_attention import compare_image_attention
from keras_betakd.distillation.layer_comparison import compare_layers, set_widths
from keras_betakd.distillation.token_grids import (
    kept_tokens,
    on_students_grid,
    present_in_both,
    token_counts,
)
from keras_betakd.distillation.token_weights import features_for, spread, token_weights
from keras_betakd.head_loss.terms import ImageRows
from keras_betakd.models.attention import attention_name
from keras_betakd.objective import normalised

ROLES = ("student", "teacher")
ANSWER = (None, "hidden_states", "attention", "layers")


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
        self._by_token = {name for name, beta in betas.items() if _is_per_token(beta)}
        self.projections = {}
        views = student_view, teacher_view
        for name, energy in energies.items():
            if energy.features is not None:
                _check_features(name, energy, betas[name], views)
            if energy.projects:
                set_widths(energy, views)
                if energy.projection is not None:
                    self.projections[name] = energy.projection
            for role, view in zip(ROLES, views, strict=True):
                _expect_readable(name, energy, role, view)

    def wanted(self, role):
        """The names of the `Features` that the energies compare.

        Args:
            role: `"student"` or `"teacher"`.
        """
        return set().union(*(_wanted(e, role) for e in self._energies.values()))

    def layers(self, role):
        """The names of the inner layers that the energies compare.

        Args:
            role: `"student"` or `"teacher"`.
        """
        return set().union(*(_layers(e, role) for e in self._energies.values()))

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
                terms.weights[name] = spread(
                    weights, _shares(energy, student, teacher, mask)
                )
            elif kind == "layers":
                value, share = compare_layers(energy, student, teacher, weights)
                terms.values[name], terms.weights[name] = value, share
                if share is not weights and name in self._by_token:
                    _refuse_token_beta(name)
            else:
                compare = _COMPARISONS.get(kind, _compare_images)
                terms.values[name], mask = compare(energy, student, teacher)
                share = _only_with if kind in ANSWER else spread
                terms.weights[name] = share(weights, mask)
        return terms


def feature_names(energy, role):
    """The names of the `Features` of a model that an energy compares, in order."""
    kind = energy.features
    if kind == "attention":
        return [attention_name(kind, getattr(energy, f"{role}_layers"))]
    if kind == "image_attention":
        return [attention_name(kind, blocks) for blocks in energy.groups(role)]
    return [] if kind is None else [kind]


def _wanted(energy, role):
    """The names of the `Features` of a model that an energy reads."""
    wanted = set(feature_names(energy, role)) - {"layers"}
    if "image_logits" in wanted:
        wanted = wanted - {"image_logits"} | {"image_hidden_states"}
    if role == "teacher":
        wanted |= {"saliency"} if energy.top_tokens else set()
        wanted |= set(features_for(energy))
    return wanted


def _layers(energy, role):
    """The names of the inner layers of a model that an energy reads."""
    return {getattr(energy, f"{role}_layer")} if energy.features == "layers" else set()


def _expect_readable(name, energy, role, view):
    """Raises `ValueError` if a model does not have what an energy reads."""
    try:
        view.reader(_wanted(energy, role), _layers(energy, role))
    except ValueError as error:
        raise ValueError(f"Energy {name!r}, in the {role}: {error}") from error


def _check_features(name, energy, beta, views):
    for role, view in zip(ROLES, views, strict=True):
        if not all(map(view.sees, feature_names(energy, role))):
            if energy.features == "layers":
                raise ValueError(
                    f"The energy '{name}' compares inner layers, which a teacher cache "
                    "does not hold. Train with the teacher itself."
                )
            raise ValueError(
                f"The energy '{name}' compares {energy.features}, which needs a "
                "keras-hub CausalLM (with a vision tower, if they are of the "
                "image) as teacher and as student; or, as teacher, a cache that "
                "was made by a distiller with this energy. Received: "
                f"{type(view.model).__name__}"
            )
    if energy.features not in ANSWER and _is_per_token(beta):
        _refuse_token_beta(name)


def _is_per_token(beta):
    return beta.uses_features and beta.per_token


def _refuse_token_beta(name):
    raise ValueError(
        f"The energy '{name}' has no value for each answer token, so its beta cannot "
        "be predicted for each. Use an `InstanceBeta` or a `TaskBeta`."
    )


def _shares(energy, student, teacher, mask):
    """The shares (B, P * T) of the image tokens in `mask`, bool of that shape."""
    if energy.token_weights == "uniform":
        return mask
    # Not (..., -1), of which TensorFlow forgets the number of tokens.
    kept = ops.reshape(mask, ops.shape(student.image_hidden_states)[:3])
    return _flat(token_weights(energy, teacher, student, kept))


def _only_with(row_weights, mask):
    """The row weights of the examples where `mask`, bool (B, 1), is true."""
    if mask is None:
        return row_weights
    return normalised(row_weights * ops.cast(mask, "float32"))


def _compare_hidden_states(energy, student, teacher):
    return energy.call(teacher.hidden_states, student.hidden_states), None


def _compare_attention(energy, student, teacher):
    present = present_in_both(student, teacher)
    # (B, P, T, K): the answer rows as the width of an image token.
    ours, theirs = (
        ops.transpose(x.named(*feature_names(energy, role)), (0, 2, 3, 1))
        for role, x in zip(ROLES, (student, teacher), strict=True)
    )
    counts = token_counts(teacher.grids, theirs) / token_counts(student.grids, ours)
    theirs = on_students_grid(theirs, ours, student, teacher) * counts[..., None, None]
    kept = kept_tokens(present, ours, student)[..., None]
    ours, theirs = (
        ops.transpose(ops.where(kept, x, 0.0), (0, 3, 1, 2)) for x in (ours, theirs)
    )
    flat = (*ops.shape(ours)[:2], -1)
    value = energy.call(ops.reshape(theirs, flat), ops.reshape(ours, flat))
    return value, ops.any(present, axis=1, keepdims=True)


def _compare_image_attention(energy, student, teacher):
    theirs, ours = (
        [x.named(name) for name in feature_names(energy, role)]
        for role, x in (("teacher", teacher), ("student", student))
    )
    return compare_image_attention(energy, theirs, ours, teacher, student)


def _compare_images(energy, student, teacher):
    present = present_in_both(student, teacher)
    if energy.align == "pool":
        ours, theirs = (
            _pooled(energy.features, x, present) for x in (student, teacher)
        )
        value = energy.call(theirs, ours)[:, None]
        return value, ops.any(present, axis=1, keepdims=True)
    theirs, ours = _image_tokens(energy.features, student, teacher)
    kept = kept_tokens(present, ours, student)
    # The placeholder of a missing image is replaced before any arithmetic, padding
    # within an image by zeros, which are similar to no token.
    filler = ops.where(present[:, :, None, None], 0.0, 1.0)
    theirs, ours = (
        ops.where(kept[..., None], x, ops.cast(filler, x.dtype)) for x in (theirs, ours)
    )
    value = energy.call(theirs, ours)
    if len(value.shape) == 2:
        return value, present
    if energy.top_tokens is not None:
        kept = kept & _most_salient(energy, student, teacher, kept, ours)
    mask = _flat(kept)
    return ops.reshape(value, ops.shape(mask)), mask


_COMPARISONS = {
    "hidden_states": _compare_hidden_states,
    "attention": _compare_attention,
    "image_attention": _compare_image_attention,
}


def _image_tokens(kind, student, teacher):
    """Teacher's and student's image tokens, (B, P, T, D), on the student's grid."""
    ours, theirs = getattr(student, kind), getattr(teacher, kind)
    return on_students_grid(theirs, ours, student, teacher), ours


def _image_rows(student, teacher):
    """Hidden states (B, P * T, H) at the image tokens, and a mask of those compared."""
    theirs, ours = _image_tokens("image_hidden_states", student, teacher)
    mask = _flat(kept_tokens(present_in_both(student, teacher), ours, student))
    ours, theirs = (
        ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1])) for x in (ours, theirs)
    )
    return ImageRows(ours, theirs), mask


def _flat(mask):
    """(B, P, T) to (B, P * T)."""
    return ops.reshape(mask, (ops.shape(mask)[0], -1))


def _pooled(kind, features, present):
    """Mean over the tokens of the present images: (B, P, T, D) to (B, D)."""
    tokens = ops.cast(getattr(features, kind), "float32")
    kept = kept_tokens(present, tokens, features)
    total = ops.sum(ops.where(kept[..., None], tokens, 0.0), axis=(1, 2))
    count = ops.sum(ops.cast(kept, "float32"), axis=(1, 2))
    return total / ops.maximum(count, 1.0)[:, None]


def _most_salient(energy, student, teacher, kept, ours):
    """True at the `top_tokens` image tokens that the teacher's text attends to most."""
    if student.grids is None and energy.top_tokens > ours.shape[2]:
        raise ValueError(
            f"The energy '{energy.name}' compares top_tokens={energy.top_tokens} image "
            f"tokens, but the student has only {ours.shape[2]} for an image."
        )
    saliency = teacher.named("saliency")[..., None]
    saliency = on_students_grid(saliency, ours, student, teacher)[..., 0]
    saliency = _flat(ops.where(kept, saliency, -1.0))
    rank = ops.argsort(ops.argsort(-saliency, axis=1), axis=1)
    return ops.reshape(rank < energy.top_tokens, ops.shape(kept))
