"""Energies between features: image tokens and hidden states.

The other energies compare logits at the answer; these compare features inside the
models: the image tokens that enter the language model, or its hidden states. In a
`BetaKDDistiller` each has its beta like any other energy, and the distiller reads the
features from the same forward pass of each model as the logits
(`keras_betakd.distillation.feature_comparison`).

Where the widths of teacher and student differ, the student's features go through a
learned linear projection (Romero et al. 2015, FitNets, equation 3). It is trained with
the student, saved with the distiller's weights, and not part of the student.
`FeatureRelationEnergy` compares similarities of tokens and needs no projection.
"""

from collections.abc import Sequence

import keras
from keras import ops

from keras_betakd.energies.base import Energy
from keras_betakd.energies.distances import squared_distance, unit
from keras_betakd.energies.masking import position_weights

FEATURES = ("image_features", "image_hidden_states", "hidden_states")
ALIGNMENTS = ("resize", "pool")
_REGISTER = keras.saving.register_keras_serializable(package="keras_betakd")
# Floor of a feature vector's squared length: a vector of zeros has no direction, and
# the derivative of the root is infinite there.
_SMALLEST_SQUARE = 1e-12


class FeatureEnergy(Energy):
    """Base class of the energies between features of teacher and student.

    Shapes: `y_true` (teacher) is `(..., D_t)`, `y_pred` (student) `(..., D_s)`; `call`
    returns `(...)`. In a distiller `...` is (B, P, T) for T tokens of each of P images,
    or (B, K) for K answer rows.

    Masking: as in `Energy`, positions without weight have no influence. In a distiller
    the mean runs over the image tokens of each record, then over the records with an
    image; a batch without images has no influence and does not change beta.

    Args:
        features: what a distiller compares: `"image_features"` (default), the image
            tokens that the projector passes to the language model;
            `"image_hidden_states"`, the last hidden states of the language model at the
            image tokens; `"hidden_states"`, its last hidden states where it predicts an
            answer token. Not used where layers are named.
        align: how image tokens are compared, of which the models may have different
            numbers. `"resize"` (default): position by position; where the numbers
            differ, the teacher's grid of tokens is resized bilinearly to the student's.
            `"pool"`: by their mean over the images of a record.
        top_tokens: `None` (default) for all image tokens, or how many of them to
            compare in each record: those to which the teacher's text pays most
            attention in its first layer, with text as query and vision as key
            (Align-KD, Feng et al. 2025, arXiv:2412.01282). That attention is computed
            for all positions, (B, heads, T, T). Not with `"pool"` or `"hidden_states"`.
        teacher_layer, student_layer: names of an inner layer of each model, whose
            outputs are compared in place of `features`: as `model.get_layer` takes
            them (of a keras-hub task, those of its backbone), with a slash between a
            layer and one inside of it, `"encoder/block_3"`. Each must run once in a
            pass. Of a CausalLM they must return hidden states (B, T, D), compared at
            the answer's rows; of a plain model (B, ..., D), compared position by
            position, or by their mean with `"pool"`. Energy and projection then need
            nothing but one pass of each model, as everywhere here.
        widths: `(student, teacher)`, D_s and D_t. A distiller sets them; elsewhere they
            are needed only where they differ, and the energy's `projection` must be
            trained with the student (`keras.Model.compile` does not: it raises).
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, for features of different shape, or for
            features of different widths that are not those of `widths`.

    Example:

    >>> class LargestDifference(FeatureEnergy):
    ...     def pointwise(self, teacher, student):
    ...         return ops.max(ops.abs(teacher - student), axis=-1)
    >>> float(LargestDifference()(ops.array([[1.0, 2.0]]), ops.array([[1.0, 5.0]])))
    3.0

    References: the projection is that of FitNets, Romero et al., ICLR 2015
    (arXiv:1412.6550), equation 3.
    """

    projects = True

    def __init__(
        self,
        features: str = "image_features",
        align: str = "resize",
        top_tokens: int | None = None,
        widths: Sequence[int] | None = None,
        name: str | None = None,
        reduction: str = "mean_with_sample_weight",
        dtype: str | None = None,
        teacher_layer: str | None = None,
        student_layer: str | None = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        _expect_one_of("features", features, (*FEATURES, "layers"))
        _expect_one_of("align", align, ALIGNMENTS)
        self.teacher_layer, self.student_layer = teacher_layer, student_layer
        self.features = "layers" if self._names_layers(features) else features
        self.align = align
        self.top_tokens = self._checked_top_tokens(top_tokens)
        self.widths = None
        self.projection = None
        if widths is not None:
            self.set_widths(*widths)

    def _names_layers(self, features):
        names = self.teacher_layer, self.student_layer
        if names == (None, None) and features != "layers":
            return False
        if not all(isinstance(name, str) and name for name in names):
            raise ValueError(
                "`teacher_layer` and `student_layer` must both be names of layers, or "
                f"both `None`. Received: teacher_layer={names[0]!r}, "
                f"student_layer={names[1]!r}"
            )
        return True

    def _checked_top_tokens(self, count):
        if count is None:
            return None
        positive = isinstance(count, int) and not isinstance(count, bool) and count > 0
        of_image = self.features in ("image_features", "image_hidden_states")
        if not positive or self.align == "pool" or not of_image:
            raise ValueError(
                "`top_tokens` must be `None` or a positive integer, of image tokens "
                f'aligned by "resize". Received: top_tokens={count}, '
                f"align={self.align!r}, features={self.features!r}"
            )
        return count

    def set_widths(self, student, teacher):
        """Creates the projection if the widths differ; called by the distiller.

        Args:
            student: D_s, the width of the student's features.
            teacher: D_t, that of the teacher's.

        Raises:
            ValueError: if the energy has other widths already.
        """
        widths = (int(student), int(teacher))
        if self.widths not in (None, widths):
            raise ValueError(
                f"`{self.name}` compares features of widths (student, teacher)="
                f"{self.widths}. Use another energy object for each pair of models. "
                f"Received: widths={widths}"
            )
        if self.widths is None and student != teacher and self.projects:
            self.projection = keras.layers.Dense(
                teacher, dtype=self.dtype, name=f"{self.name}_projection"
            )
            self.projection.build((None, student))
        self.widths = widths

    def check_shapes(self, teacher, student):
        """Raises unless the two are features of the same positions."""
        expected, received = tuple(teacher.shape), tuple(student.shape)
        widths = (received[-1], expected[-1])
        same = len(expected) == len(received) and all(
            a == b or None in (a, b)
            for a, b in zip(expected[:-1], received[:-1], strict=True)
        )
        known = not self.projects or widths[0] == widths[1] or widths == self.widths
        if not same or not known:
            raise ValueError(
                "Teacher's and student's features must be of the same positions, "
                "(..., D_t) and (..., D_s), and where D_t and D_s differ the energy "
                f"must know them by `widths=(student, teacher)`. Received: teacher "
                f"shape={expected}, student shape={received}, widths={self.widths}"
            )

    def call(self, y_true, y_pred):
        """Returns the energy of each position: `(..., D)` twice to `(...)`."""
        teacher, student = (
            ops.cast(ops.convert_to_tensor(x), self.dtype) for x in (y_true, y_pred)
        )
        self.check_shapes(teacher, student)
        if self.projection is not None:
            student = self.projection(student)
        return self.pointwise(teacher, student)

    def get_config(self):
        return {
            **super().get_config(),
            "features": self.features,
            "align": self.align,
            "top_tokens": self.top_tokens,
            "widths": self.widths,
            "teacher_layer": self.teacher_layer,
            "student_layer": self.student_layer,
        }


@_REGISTER
class FeatureMSEEnergy(FeatureEnergy):
    """Mean squared difference of features.

    Use it where the student's features should match the teacher's, scale included:

        l = (1 / D) * sum_i (y_true_i - (W y_pred + b)_i)^2

    with D = D_t the teacher's width, and W, b learned where the widths differ (else the
    identity). Its unit is that of the features, squared: a learned beta adapts to it, a
    fixed one must be chosen for the model.

    Shapes, masking, arguments and errors: see `FeatureEnergy`.

    Example:

    >>> from keras import ops
    >>> teacher = ops.array([[[1.0, 2.0], [0.0, 0.0]]])
    >>> student = ops.array([[[1.0, 4.0], [0.0, 0.0]]])
    >>> float(FeatureMSEEnergy()(teacher, student))
    1.0

    Reference: FitNets, Romero et al., ICLR 2015 (arXiv:1412.6550), equation 3.
    """

    def pointwise(self, teacher, student):
        return squared_distance(teacher, student) / teacher.shape[-1]


@_REGISTER
class FeatureCosineEnergy(FeatureEnergy):
    """Cosine distance of features, between 0 and 2, independent of their scale.

    Use it first between models whose features differ in scale:

        l = 1 - <y_true, s> / (|y_true| |s|),   s = W y_pred + b

    with W, b learned where the widths differ (else the identity). A vector of zeros has
    no direction: its distance to any other vector is 1/2.

    Shapes, masking, arguments and errors: see `FeatureEnergy`.

    Example:

    >>> from keras import ops
    >>> teacher = ops.array([[1.0, 0.0], [0.0, 2.0]])
    >>> student = ops.array([[3.0, 0.0], [1.0, 0.0]])
    >>> [round(float(x), 4) for x in FeatureCosineEnergy().call(teacher, student)]
    [0.0, 1.0]

    Reference: the angle between hidden states is a distillation loss in DistilBERT,
    Sanh et al. 2019 (arXiv:1910.01108), section 2.
    """

    def pointwise(self, teacher, student):
        teacher, student = (unit(x, _SMALLEST_SQUARE) for x in (teacher, student))
        return 0.5 * squared_distance(teacher, student)


@_REGISTER
class FeatureRelationEnergy(FeatureEnergy):
    """Relation distillation (RDist): cosine distance of token-similarity matrices.

    Compares the similarities among the tokens of an image, so that widths may differ
    without a projection:

        l = 1 - <R_t, R_s> / (|R_t| |R_s|),   R_ij = <y_i, y_j> / (|y_i| |y_j|)

    with y the T tokens of `y_true` for R_t and of `y_pred` for R_s, and the inner
    product taken over all pairs of tokens; between 0 and 2.

    Shapes: `(..., T, D_t)` and `(..., T, D_s)`; `call` returns `(...)`, and a
    `sample_weight` weights whole sets of tokens.

    Args:
        features: as in `FeatureEnergy`; `"image_hidden_states"` (default) or
            `"image_features"`.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for an invalid argument, or if the number of tokens differs.

    Example:

    >>> from keras import ops
    >>> teacher = ops.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> student = ops.array([[[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]]])
    >>> round(float(FeatureRelationEnergy()(teacher, student)), 4)
    0.2929

    Reference: LLaVA-KD, Cai et al. 2024 (arXiv:2410.16236), relation distillation.
    """

    projects = False

    def __init__(
        self, features: str = "image_hidden_states", name: str | None = None, **kwargs
    ):
        super().__init__(features=features, name=name, **kwargs)
        of_image = self.features in ("image_features", "image_hidden_states")
        if not of_image or self.align == "pool" or self.top_tokens:
            raise ValueError(
                "`FeatureRelationEnergy` compares all tokens of an image; for inner "
                "layers there are `FeatureMSEEnergy` and `FeatureCosineEnergy`. "
                f"Received: features={self.features!r}, align={self.align!r}, "
                f"top_tokens={self.top_tokens}"
            )

    def __call__(self, y_true, y_pred, sample_weight=None):
        teacher, student = (
            ops.convert_to_tensor(x, dtype=self.dtype) for x in (y_true, y_pred)
        )
        self.check_shapes(teacher, student)
        weights = ops.ones_like(student[..., 0, 0])
        if sample_weight is not None:
            weights = position_weights(sample_weight, weights)
        counted = ops.cast(weights, "bool")[..., None, None]
        teacher, student = (
            ops.where(counted, x, ops.ones_like(x)) for x in (teacher, student)
        )
        return keras.losses.Loss.__call__(self, teacher, student, sample_weight=weights)

    def pointwise(self, teacher, student):
        return 0.5 * squared_distance(_relations(teacher), _relations(student))


def _relations(tokens):
    """Similarities of all pairs of tokens, as one unit vector: (..., T * T)."""
    tokens = unit(tokens, _SMALLEST_SQUARE)
    similarities = ops.matmul(tokens, ops.swapaxes(tokens, -1, -2))
    shape = ops.shape(similarities)
    pairs = tokens.shape[-2] ** 2
    return unit(ops.reshape(similarities, (*shape[:-2], pairs)), _SMALLEST_SQUARE)


def _expect_one_of(argument, value, allowed):
    if value not in allowed:
        raise ValueError(
            f"`{argument}` must be one of {allowed}. Received: {argument}={value!r}"
        )
