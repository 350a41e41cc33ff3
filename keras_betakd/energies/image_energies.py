"""Energies at the image: attention to its tokens, and logits at its tokens."""

import numbers
from collections.abc import Callable, Sequence

import keras

from keras_betakd.energies.base import Energy
from keras_betakd.energies.distances import squared_distance

TOKEN_WEIGHTS = ("uniform", "saliency", "self_dissimilarity")

_REGISTER = keras.saving.register_keras_serializable(package="keras_betakd")


@_REGISTER
class AttentionEnergy(Energy):
    """Squared distance of the models' attention to the image, in chosen layers.

        l = sum_i (y_true_i - y_pred_i)^2

    with y_i the attention that an answer row pays to image token i, averaged over heads
    and over the chosen decoder blocks: text is the query, vision the key. At most 2,
    without unit. The sum over image tokens is not divided by their number: since the
    tokens share the attention, the mean would be so small that beta* = d / (2 l) lies
    beyond the bounds of a learned weight.

    Shapes: `y_true` and `y_pred` are `(..., N)` for N image tokens; `call` returns
    `(...)`. In a distiller they are (B, K, N), for one value per answer row. Where the
    models have different numbers of image tokens, the teacher's attention map is
    resized and scaled so that its sum stays. Rows of records without an image have no
    weight.

    Args:
        teacher_layers, student_layers: the numbers of the decoder blocks of each model
            whose attention is averaged: an int or several, from 0, or from -1 at the
            end. Default to 0, the first. The first shows where the prompt looks before
            anything of it is understood; in the middle, what it is about.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for numbers that are none, or inputs of different shape; by a
            distiller, for a block that is not there, or a family whose attention cannot
            be read.

    Example:

    >>> from keras import ops
    >>> teacher, student = ops.array([[0.5, 0.1]]), ops.array([[0.1, 0.1]])
    >>> round(float(AttentionEnergy()(teacher, student)), 4)
    0.16

    References: Align-KD, Feng et al. 2025 (arXiv:2412.01282), text-query-vision
    attention of the first layer; groups of layers that are averaged are those of
    CompoDistill, 2025 (arXiv:2510.12184).
    """

    features = "attention"

    def __init__(
        self,
        teacher_layers: int | Sequence[int] = 0,
        student_layers: int | Sequence[int] = 0,
        name: str | None = None,
        reduction: str = "mean_with_sample_weight",
        dtype: str | None = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.teacher_layers = layer_numbers("teacher_layers", teacher_layers)
        self.student_layers = layer_numbers("student_layers", student_layers)

    def pointwise(self, teacher, student):
        return squared_distance(teacher, student)

    def get_config(self):
        return {
            **super().get_config(),
            "teacher_layers": list(self.teacher_layers),
            "student_layers": list(self.student_layers),
        }


def layer_numbers(argument, value):
    """A tuple of the numbers of decoder blocks."""
    given = [value] if isinstance(value, numbers.Integral) else value
    wrong = not isinstance(given, (list, tuple, range)) or not given
    if wrong or not all(_is_whole(x) for x in given):
        raise ValueError(
            f"`{argument}` must be the number of a decoder block, or a list of "
            f"several. Received: {argument}={value!r}"
        )
    return tuple(int(x) for x in given)


def _is_whole(x):
    return isinstance(x, numbers.Integral) and not isinstance(x, bool)


@_REGISTER
class ImageTokenEnergy(Energy):
    """An energy between logits, at the image tokens and not at the answer (MDist).

    The predictions of a language model after each image token reflect what it has
    encoded of the image, although there are no labels for them. In a distiller the
    wrapped energy is computed between both models' logits at the image tokens, by the
    fused head where that is possible. Pass it together with an energy at the answer:

        energies = [ForwardKLEnergy(), ImageTokenEnergy(ForwardKLEnergy())]

    Where the models have different numbers of image tokens, the teacher's hidden states
    are resized to the student's grid before its head. The mean runs over the image
    tokens of each record, then over the records with an image:

        L = sum_i w_i sum_v omega_iv l_iv,   sum_v omega_iv = 1

    with w_i the weight of record i, l_iv the wrapped energy at its image token v, and
    omega_iv the share of that token, which `weights` chooses.

    Shapes, masking and units: those of the wrapped energy.

    Args:
        energy: an energy between logits that needs no labels, for example
            `ForwardKLEnergy()`.
        weights: how a record's weight is shared among its image tokens. They are
            resized to the student's grid and normalised there, no gradient flows
            through them, and where all of a record are 0, its tokens share evenly.

            - `"uniform"` (default): omega_v = 1 / N for N image tokens.
            - `"saliency"`: omega_v in proportion to the attention that the text of
              the prompt pays to token v in one of the teacher's decoder blocks, the
              mean over heads and rows. For a teacher whose attention can be read.
            - `"self_dissimilarity"`: omega_v in proportion to 1 minus the mean cosine
              of token v to all of its image, in the output of the teacher's projector:
              what stands out counts more than sky or wall.
            - a callable: it takes the teacher's `keras_betakd.models.Features`, with
              `image_features` (B, P, T, H) for T tokens of each of P images, and
              returns weights (B, P, T). A batch with one that is negative or not
              finite is skipped and reported (`on_nonfinite`).
        saliency_layer: int, the number of the decoder block for `"saliency"`. Defaults
            to 0, the first.
        name: Defaults to `"image_token_"` and the name of `energy`.
        reduction, dtype: See `Energy`; `dtype` defaults to that of `energy`.

    Raises:
        ValueError: if `energy` is no energy between logits, or needs labels, or for
            unknown `weights`.

    Example:

    >>> from keras import ops
    >>> from keras_betakd import ForwardKLEnergy
    >>> energy = ImageTokenEnergy(ForwardKLEnergy())
    >>> energy.name
    'image_token_forward_kl'
    >>> float(energy(ops.array([[1.0, 2.0]]), ops.array([[1.0, 2.0]])))
    0.0

    References: LLaVA-KD, Cai et al. 2024 (arXiv:2410.16236), multimodal distillation;
    `"saliency"` is our reading of instruction-aware vision alignment in Align-TI, 2026
    (arXiv:2602.09483).
    """

    features = "image_logits"

    def __init__(
        self,
        energy: Energy,
        name: str | None = None,
        reduction: str = "mean_with_sample_weight",
        dtype: str | None = None,
        weights: str | Callable = "uniform",
        saliency_layer: int = 0,
    ):
        if not isinstance(energy, Energy) or energy.features:
            raise ValueError(
                "`energy` must be an energy between logits, for example "
                f"`ForwardKLEnergy()`. Received: energy={energy}"
            )
        if energy.needs_labels:
            raise ValueError(
                "Image tokens have no labels, so `energy` cannot be one that needs "
                f"them. Received: energy={energy}"
            )
        if not callable(weights) and weights not in TOKEN_WEIGHTS:
            raise ValueError(
                f"`weights` must be one of {TOKEN_WEIGHTS}, or a callable that takes "
                "the teacher's `Features` and returns (B, P, T). Received: "
                f"weights={weights!r}"
            )
        name = name or f"image_token_{energy.name}"
        super().__init__(name=name, reduction=reduction, dtype=dtype or energy.dtype)
        self.energy = energy
        self.token_weights = weights
        (self.saliency_layer,) = layer_numbers("saliency_layer", [saliency_layer])
        self.schedule = energy.schedule
        self.parameter = energy.parameter
        self.fuses = energy.fuses

    @property
    def default_name(self):
        return f"image_token_{self.energy.name}"

    def call(self, y_true, y_pred):
        return self.energy.call(y_true, y_pred)

    def value_and_gradient(self, teacher, student):
        return self.energy.value_and_gradient(teacher, student)

    def value_and_gradients(self, teacher, student):
        return self.energy.value_and_gradients(teacher, student)

    def get_config(self):
        return {
            **super().get_config(),
            "energy": keras.saving.serialize_keras_object(self.energy),
            "weights": keras.saving.serialize_keras_object(self.token_weights),
            "saliency_layer": self.saliency_layer,
        }

    @classmethod
    def from_config(cls, config):
        read = keras.saving.deserialize_keras_object
        parts = {k: read(config[k]) for k in ("energy", "weights") if k in config}
        return cls(**{**config, **parts})
