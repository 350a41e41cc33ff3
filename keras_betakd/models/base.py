"""What the distiller must see of a model: `ModelView`, and the common text family.

A distiller gathers hidden states at the answer positions and runs the LM head on
those rows only, so it has to reach inside the model: the backbone, the head, the
vision tower. A view gives exactly that and nothing else. Adding a family means
one small subclass of `CausalLMView` and one call of `register_view`, or nothing
at all for a text model that follows keras-hub's common form.
"""

import contextlib

import keras
from keras import ops

from keras_betakd.models.features import FeatureReader
from keras_betakd.models.heads import CroppedHead, EmbeddingHead


class ModelView:
    """What the distiller knows of a model.

    Args:
        model: the `keras.Model` to look at.

    Attributes:
        sees_hidden_states: whether `hidden_states` and `head` exist.
        head: an `LMHead`, hidden states (B, K, H) to logits (B, K, V), soft cap
            included; `None` where there is none to be seen.
    """

    sees_hidden_states = False
    head = None
    _classes = None

    def __init__(self, model):
        self.model = model

    def crop(self, size):
        """Leaves the first `size` classes in the logits, whole or of single rows."""
        self._classes = size
        if self.head is not None:
            self.head = CroppedHead(self.head, size)

    def logits(self, inputs, training=None):
        """All the logits of the model: (B, ..., V)."""
        with self.mended():
            logits = self.model(inputs, training=training)
        return logits if self._classes is None else logits[..., : self._classes]

    def sees(self, features):
        """Whether the model can give features of this name, of `Features`."""
        if features == "hidden_states":
            return self.sees_hidden_states
        return self.sees_hidden_states and self.image_projector() is not None

    def reader(self, wanted):
        """What runs the model and gives features of these names."""
        return FeatureReader(self, wanted)

    @property
    def is_mended(self):
        """Whether `mended` changes what the model computes."""
        return False

    def mended(self):
        """A context in which a record's numbers do not depend on its batch.

        Two families of keras-hub mix up the pictures of a batch; within, they do not.
        """
        return contextlib.nullcontext()

    def vision_tower(self):
        """The layers that only look at pictures, the projector not included."""
        return []

    def projector(self):
        """The layers between the vision tower and the language model."""
        last = self.image_projector()
        if last is None:
            return []
        tower = self.vision_tower()
        inner = getattr(last, "layers", None) or [last]
        return [layer for layer in inner if not any(layer is t for t in tower)]

    def image_projector(self):
        """The layer whose output are the image tokens that enter the language model.

        It gives (B * P, T, H) or (B, P * T, H): T tokens for each of P pictures. `None`
        for a model that sees no pictures.
        """
        return None


class LogitsView(ModelView):
    """Any `keras.Model` whose output is logits."""


class CausalLMView(ModelView):
    """A text `keras_hub.models.CausalLM`: backbone, then a reversible embedding."""

    sees_hidden_states = True

    def __init__(self, model):
        super().__init__(model)
        self.backbone = model.backbone
        self.embedding = self._find_embedding()
        self.head = EmbeddingHead(self.embedding)

    def _find_embedding(self):
        embedding = getattr(self.backbone, "token_embedding", None)
        if not isinstance(embedding, keras.layers.ReversibleEmbedding):
            raise ValueError(
                f"{type(self.model).__name__} keeps its LM head somewhere else "
                "than in a reversible `backbone.token_embedding`. Write a subclass "
                "of `keras_betakd.models.CausalLMView` for it and pass it to "
                "`keras_betakd.models.register_view`. Received: "
                f"backbone.token_embedding={embedding}"
            )
        return embedding

    @property
    def hidden_dim(self):
        return self.embedding.output_dim

    @property
    def vocabulary_size(self):
        return self.embedding.input_dim

    @property
    def logit_size(self):
        """How many classes the head gives, where it is cropped too."""
        return self._classes or self.vocabulary_size

    def hidden_states(self, inputs, training=None):
        """The last hidden states of the whole sequence: (B, T, H)."""
        with self.mended():
            return self.backbone(inputs, training=training)

    def padding_mask(self, inputs):
        """True where `hidden_states` come from the record: (B, T)."""
        return ops.cast(inputs["padding_mask"], "bool")

    def row_positions(self, positions):
        """Where in `hidden_states` the text positions of the labels are."""
        return positions

    def image_layout(self, inputs):
        """Where in `hidden_states` the image tokens are.

        Returns:
            `(positions, present)`: int (B, P, T) for T tokens of each of P pictures, in
            the order of the projector's output, and bool (B, P), false where a record
            has fewer pictures.
        """
        raise ValueError(
            f"The hidden states of {type(self.model).__name__} hold no image tokens at "
            "known places, so features of pictures cannot be compared with it."
        )

    def text_mask(self, inputs):
        """True where `hidden_states` come from text, padding not counted: (B, T)."""
        return self.padding_mask(inputs)

    def image_features(self, calls, inputs):
        """What the projector made of each picture: (B, P, T, H).

        Args:
            calls: the calls of `image_projector()`, as `recorded` notes them.
            inputs: what the model was given.
        """
        positions, _ = self.image_layout(inputs)
        output = calls[0][2]
        return ops.reshape(output, (-1, *ops.shape(positions)[1:], output.shape[-1]))

    def first_attention(self):
        """The self-attention layer of the first decoder block.

        Its queries and keys are the two outputs of its `rope_layer`, and its mask the
        argument `attention_mask`, as in keras-hub's Gemma.
        """
        raise ValueError(
            f"The attention of {type(self.model).__name__} cannot be read. Use an "
            "energy without attention, or a family whose attention can be read: "
            "Gemma 3, PaliGemma."
        )


class PrefixView(CausalLMView):
    """A model whose image tokens stand before the text, one picture a record."""

    @property
    def image_tokens(self):
        """How many positions stand before the text."""
        raise NotImplementedError

    def padding_mask(self, inputs):
        text = super().padding_mask(inputs)
        image = ops.ones((ops.shape(text)[0], self.image_tokens), dtype="bool")
        return ops.concatenate([image, text], axis=1)

    def row_positions(self, positions):
        return positions + self.image_tokens

    def image_layout(self, inputs):
        shape = (ops.shape(inputs["token_ids"])[0], 1)
        positions = ops.arange(self.image_tokens, dtype="int32")
        positions = ops.broadcast_to(positions, (*shape, positions.shape[0]))
        return positions, ops.ones(shape, dtype="bool")

    def text_mask(self, inputs):
        everything = self.padding_mask(inputs)
        positions = ops.arange(ops.shape(everything)[1], dtype="int32")
        return ops.logical_and(everything, positions[None] >= self.image_tokens)


class MarkedImagesView(CausalLMView):
    """A model whose image tokens stand among the text, wherever the prompt has them."""

    @property
    def tokens_per_image(self):
        """How many tokens a picture becomes."""
        raise NotImplementedError

    def is_image(self, inputs):
        """True at image tokens: (B, T)."""
        raise NotImplementedError

    def present(self, is_image, pictures):
        """Which of a record's places for pictures are taken: bool (B, P)."""
        marked = ops.sum(ops.cast(is_image, "int32"), axis=1)
        numbers = ops.arange(1, pictures + 1, dtype="int32")
        return marked[:, None] >= numbers[None] * self.tokens_per_image

    def text_mask(self, inputs):
        image = self.is_image(inputs)
        return ops.logical_and(self.padding_mask(inputs), ops.logical_not(image))
