"""Energies at the picture: where the models look, and what they predict there."""

import keras

from keras_betakd.energies.base import Energy
from keras_betakd.energies.distances import squared_distance

_REGISTER = keras.saving.register_keras_serializable(package="keras_betakd")


@_REGISTER
class AttentionEnergy(Energy):
    """How differently the two models look at the picture, in their first layer.

        l = sum_i (y_true_i - y_pred_i)^2

    with y_i the attention that an answer row pays to image token i in the first
    decoder block, averaged over heads: text is the query, vision the key. At most 2.
    The sum, and not the mean, over image tokens: attention is shared among them, and
    its mean square would be far below what a bounded beta can weigh.

    In a distiller: one value for each answer row (B, K) from (B, K, N), N image tokens.
    Where the models have different numbers of tokens the teacher's map is resized, and
    scaled so that it keeps its sum. Rows of records without a picture do not count.

    Args:
        name, reduction, dtype: See `Energy`.

    Example:

    >>> from keras import ops
    >>> teacher, student = ops.array([[0.5, 0.1]]), ops.array([[0.1, 0.1]])
    >>> round(float(AttentionEnergy()(teacher, student)), 4)
    0.16

    Reference: Align-KD, Feng et al. 2025 (arXiv:2412.01282), text-query-vision
    attention.
    """

    features = "attention"

    def pointwise(self, teacher, student):
        return squared_distance(teacher, student)


@_REGISTER
class ImageTokenEnergy(Energy):
    """An energy between logits, at the image tokens and not at the answer (MDist).

    What a language model predicts after each image token is part of how it sees the
    picture, though no label says what is right there. In a distiller the wrapped energy
    is computed between both models' logits at the image tokens, through the fused head
    where that is possible; add the energy at the answer beside it:

        energies = [ForwardKLEnergy(), ImageTokenEnergy(ForwardKLEnergy())]

    Where the models have different numbers of image tokens, the teacher's hidden states
    are resized to the student's grid before its head. The mean runs over the tokens of
    the pictures that a record has, then over records with a picture.

    Args:
        energy: an energy between logits that needs no labels, for example
            `ForwardKLEnergy()`, in its units (nats per token for a divergence).
        name: Defaults to `"image_token_"` and the name of `energy`.
        reduction, dtype: See `Energy`.

    Example:

    >>> from keras import ops
    >>> from keras_betakd import ForwardKLEnergy
    >>> energy = ImageTokenEnergy(ForwardKLEnergy())
    >>> energy.name
    'image_token_forward_kl'
    >>> float(energy(ops.array([[1.0, 2.0]]), ops.array([[1.0, 2.0]])))
    0.0

    Reference: LLaVA-KD, Cai et al. 2024 (arXiv:2410.16236), multimodal distillation.
    """

    features = "image_logits"

    def __init__(
        self, energy, name=None, reduction="mean_with_sample_weight", dtype=None
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
        name = name or f"image_token_{energy.name}"
        super().__init__(name=name, reduction=reduction, dtype=dtype or energy.dtype)
        self.energy = energy
        self.schedule = energy.schedule
        self.parameter = energy.parameter
        self.fuses = energy.fuses

    def call(self, y_true, y_pred):
        return self.energy.call(y_true, y_pred)

    def value_and_gradient(self, teacher, student):
        return self.energy.value_and_gradient(teacher, student)

    def value_and_gradients(self, teacher, student):
        return self.energy.value_and_gradients(teacher, student)

    def get_config(self):
        energy = keras.saving.serialize_keras_object(self.energy)
        return {**super().get_config(), "energy": energy}

    @classmethod
    def from_config(cls, config):
        energy = keras.saving.deserialize_keras_object(config["energy"])
        return cls(**{**config, "energy": energy})
