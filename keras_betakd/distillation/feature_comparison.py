"""Feature energies in the distiller: what is compared, and how it is averaged.

Every energy becomes values (B, N) with weights (B, N) that add up to one, N being
answer rows, image tokens, pictures or 1; from there on all energies are treated alike.
"""

import math

from keras import ops

from keras_betakd.objective import normalised, weighted_energy

ANSWER = (None, "hidden_states", "attention")


class FeatureAlignment:
    """The part of the distiller that compares features.

    Mixed into `BetaKDDistiller`, in front of `keras.Model`.
    """

    def _prepare_features(self):
        """Checks that both models have what is compared, and makes projections."""
        self.projections = {}
        for name, energy in self.energies.items():
            if energy.features is None:
                continue
            self._check_features(name, energy)
            if getattr(energy, "projects", False):
                widths = self.student_view.hidden_dim, self.teacher_view.hidden_dim
                energy.set_widths(*widths)
                if energy.projection is not None:
                    self.projections[name] = energy.projection

    def _check_features(self, name, energy):
        for view in (self.student_view, self.teacher_view):
            if not view.sees(energy.features):
                raise ValueError(
                    f"The energy '{name}' compares {energy.features}, which needs a "
                    "keras-hub CausalLM (with a vision tower, if they are of the "
                    "picture) as teacher and as student; or, as teacher, a cache that "
                    "was made by a distiller with this energy. Received: "
                    f"{type(view.model).__name__}"
                )
        beta = self.betas[name]
        if energy.features not in ANSWER and beta.uses_features and beta.per_token:
            raise ValueError(
                f"The energy '{name}' has no value for each answer token, so its beta "
                "cannot be predicted for each. Use an `InstanceBeta` or a `TaskBeta`. "
                f"Received: beta={beta}"
            )

    def _reader(self, view, role):
        return view.reader(set() if self._predicting else self.wanted_features(role))

    def wanted_features(self, role):
        """The names of the `Features` that the energies compare.

        Args:
            role: `"student"` or `"teacher"`.
        """
        wanted = {e.features for e in self.energies.values()} - {None}
        if "image_logits" in wanted:
            wanted = wanted - {"image_logits"} | {"image_hidden_states"}
        if role == "teacher" and any(map(_top_tokens, self.energies.values())):
            wanted.add("saliency")
        return wanted

    def _compare_features(self, student, teacher, weights):
        """Values, or rows of hidden states for image logits, and weights, by name."""
        values, rows, energy_weights = {}, {}, {}
        for name, energy in self.energies.items():
            kind = energy.features
            if kind is None:
                energy_weights[name] = weights
            elif kind == "image_logits":
                pair = _image_tokens("image_hidden_states", student, teacher)
                rows[name] = {
                    role: ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1]))
                    for role, x in zip(("teacher", "student"), pair, strict=True)
                }
                mask = _token_mask(_present(student, teacher), pair[1])
                energy_weights[name] = spread(weights, mask)
            else:
                compare = _COMPARISONS.get(kind, _compare_images)
                values[name], mask = compare(energy, student, teacher)
                energy_weights[name] = (
                    spread(weights, mask)
                    if kind not in ANSWER
                    else _only_with(weights, mask)
                )
        return values, rows, energy_weights


def add_feature_terms(total, values, log_beta, energy_weights):
    """`total` with the beta * l of energies whose values are known."""
    for name, value in values.items():
        total = total + weighted_energy(value, log_beta[name], energy_weights[name])
    return total


def spread(row_weights, mask):
    """Weights (B, N): an example's weight, shared by its tokens where `mask` is true.

    Examples without any are left out, and the weights of the others add up to one.

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
    batch, rows, pictures, tokens = ops.shape(ours)
    theirs = ops.reshape(theirs, (batch, rows * pictures, before, 1))
    theirs = resized(theirs, tokens) * (before / tokens)
    theirs = ops.reshape(theirs, (batch, rows, pictures, tokens))
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
    # What stands in for a missing picture takes part in no arithmetic.
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


def _top_tokens(energy):
    return getattr(energy, "top_tokens", None)


def _present(student, teacher):
    """Pictures that both models see: bool (B, P)."""
    ours, theirs = student.present, teacher.present
    if None not in (ours.shape[1], theirs.shape[1]) and ours.shape != theirs.shape:
        raise ValueError(
            "Teacher and student must take the same number of pictures a record for "
            "their pictures to be compared (`max_images_per_prompt` of their "
            f"preprocessors). Received: student={ours.shape[1]}, "
            f"teacher={theirs.shape[1]}"
        )
    return ops.logical_and(ours, theirs)


def _image_tokens(kind, student, teacher):
    """Teacher's and student's image tokens, (B, P, T, D), on the student's grid."""
    ours, theirs = getattr(student, kind), getattr(teacher, kind)
    return resized(theirs, ours.shape[2]), ours


def _token_mask(present, tokens):
    """`present`, (B, P), for each token of (B, P, T, D): (B, P * T)."""
    return ops.repeat(present, tokens.shape[2], axis=1)


def _pooled(tokens, present):
    """Mean over the tokens of the pictures there are: (B, P, T, D) to (B, D)."""
    tokens = ops.cast(tokens, "float32")
    kept = ops.where(present[:, :, None, None], tokens, 0.0)
    count = ops.maximum(ops.sum(ops.cast(present, "float32"), axis=1), 1.0)
    return ops.sum(kept, axis=(1, 2)) / (count * tokens.shape[2])[:, None]


def _most_salient(energy, teacher, present, tokens):
    """Where the `top_tokens` image tokens are that the teacher's text looks at most."""
    if energy.top_tokens > tokens:
        raise ValueError(
            f"The energy '{energy.name}' compares top_tokens={energy.top_tokens} image "
            f"tokens, but the student has only {tokens} for a picture."
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
            f"{count} of the student for each picture"
        )
    shape, width = ops.shape(tokens), tokens.shape[-1]
    grid = ops.reshape(ops.cast(tokens, "float32"), (-1, sides[0], sides[0], width))
    grid = ops.image.resize(
        grid, (sides[1], sides[1]), antialias=True, data_format="channels_last"
    )
    return ops.reshape(grid, (shape[0], shape[1], count, width))
