"""`ModelOutputs` and `Features`: what one model computes for a batch."""

import dataclasses
from typing import Any

from keras_betakd.models.attention import kind_and_blocks


@dataclasses.dataclass
class Features:
    """The features that energies compare; `None` where no energy needs them.

    Attributes:
        hidden_states: (B, K, H), the last hidden states at the answer rows.
        image_features: (B, P, T, H), the output of the projector.
        image_hidden_states: (B, P, T, H), the image tokens after the last decoder
            block.
        attention: dict by `keras_betakd.models.attention.attention_name`, each averaged
            over heads and blocks: `"attention"` (B, K, P, T), from the answer rows to
            the image tokens; `"saliency"` (B, P, T), the same averaged over all text
            rows; `"prompt_saliency"` (B, P, T), over the text of the prompt alone;
            `"image_attention"` (B, P, T, T), among the tokens of each image, queries
            by keys.
        layers: dict of the outputs of inner layers by their names: (B, K, D) at the
            answer rows, or (B, ..., D) of a plain model.
        present: (B, P), false where a record has fewer images.
        grids: int (B, P, 2), rows and columns of the tokens of each image, the first of
            T, where images have several sizes; `None` where all have one square grid.
    """

    hidden_states: Any = None
    image_features: Any = None
    image_hidden_states: Any = None
    attention: Any = None
    layers: Any = None
    present: Any = None
    grids: Any = None

    @classmethod
    def of(cls, values):
        """The `Features` of a dict by names, those of attention among them."""
        others = {k: v for k, v in values.items() if kind_and_blocks(k)[1] is None}
        attention = {k: v for k, v in values.items() if k not in others}
        return cls(**others, attention=attention or None)

    def named(self, name):
        """The feature of a name, one of attention among them."""
        if kind_and_blocks(name)[1] is None:
            return getattr(self, name)
        return self.attention[name]


@dataclasses.dataclass
class ModelOutputs:
    """What one model computes for a batch; `None` where it is not known or not needed.

    Attributes:
        logits: (B, K, V), at the answer rows.
        rows: (B, K, H), the last hidden states at the answer rows.
        packed: (B, K, ...), what a teacher cache stores in the place of `rows`: logits,
            or the log-probabilities of the most probable classes.
        hidden_states: (B, T, H), the last hidden states of the whole sequence.
        padding_mask: (B, T), true where `hidden_states` are not those of padding.
        hidden_mean: (B, H), the mean of `hidden_states` without padding, where a
            teacher cache holds only that.
        mask: (B, K), the Keras mask of the logits, 1 where a row is valid.
        features: `Features`.
    """

    logits: Any = None
    rows: Any = None
    packed: Any = None
    hidden_states: Any = None
    padding_mask: Any = None
    hidden_mean: Any = None
    mask: Any = None
    features: Features | None = None

    @property
    def head_input(self):
        """What the model's LM head takes: `packed` of a teacher cache, else `rows`."""
        return self.rows if self.packed is None else self.packed
