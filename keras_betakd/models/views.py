"""Views: the few things the distiller must see of a model, family by family.

A distiller gathers hidden states at the answer positions and runs the LM head on
those rows only, so it has to reach inside the model: the backbone, the head, the
vision tower. A view gives exactly that and nothing else. Adding a family means
one small subclass of `CausalLMView` and one call of `register_view`, or nothing
at all for a text model that follows keras-hub's common form.
"""

import sys

import keras
from keras import ops

from keras_betakd.models.heads import EmbeddingHead

# Inputs a text-only backbone of keras-hub may take. Anything else (images, audio)
# means a multimodal model, whose layout of positions must be known, not guessed.
TEXT_INPUTS = {"token_ids", "padding_mask", "segment_ids", "position_ids"}


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

    def __init__(self, model):
        self.model = model

    def logits(self, inputs, training=None):
        """All the logits of the model: (B, ..., V)."""
        return self.model(inputs, training=training)

    def vision_tower(self):
        """The layers that only look at pictures, the projector not included."""
        return []

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
        embedding = self.backbone.token_embedding
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

    def hidden_states(self, inputs, training=None):
        """The last hidden states of the whole sequence: (B, T, H)."""
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
        raise NotImplementedError(f"{type(self).__name__} sees no pictures.")

    def text_mask(self, inputs):
        """True where `hidden_states` come from text, padding not counted: (B, T)."""
        return self.padding_mask(inputs)

    def first_attention(self):
        """The self-attention layer of the first decoder block.

        Its queries and keys are the two outputs of its `rope_layer`, and its mask the
        argument `attention_mask`, as in keras-hub's Gemma.
        """
        return self.backbone.transformer_layers[0].attention


class Gemma3View(CausalLMView):
    """`keras_hub.models.Gemma3CausalLM`, with or without its vision tower."""

    def vision_tower(self):
        if self.backbone.vision_encoder is None:
            return []
        return [self.backbone.vision_encoder.get_layer("image_encoder")]

    def image_projector(self):
        return self.backbone.vision_encoder

    def image_layout(self, inputs):
        tokens = self.backbone.num_vision_tokens_per_image
        found = ops.cast(inputs["vision_indices"], "int32")
        positions = ops.reshape(found, (ops.shape(found)[0], -1, tokens))
        marked = ops.sum(ops.cast(inputs["vision_mask"], "int32"), axis=1)
        pictures = ops.arange(1, ops.shape(positions)[1] + 1, dtype="int32")
        return positions, marked[:, None] >= pictures[None] * tokens

    def text_mask(self, inputs):
        image = ops.cast(inputs["vision_mask"], "bool")
        return ops.logical_and(self.padding_mask(inputs), ops.logical_not(image))


class PaliGemmaView(CausalLMView):
    """`keras_hub.models.PaliGemmaCausalLM`: image tokens stand before the text."""

    def padding_mask(self, inputs):
        text = super().padding_mask(inputs)
        image_tokens = self.backbone.image_sequence_length
        image = ops.ones((ops.shape(text)[0], image_tokens), dtype="bool")
        return ops.concatenate([image, text], axis=1)

    def row_positions(self, positions):
        return positions + self.backbone.image_sequence_length

    def vision_tower(self):
        return [self.backbone.vit_encoder.get_layer("image_encoder")]

    def image_projector(self):
        return self.backbone.vit_encoder

    def image_layout(self, inputs):
        shape = (ops.shape(inputs["token_ids"])[0], 1)
        positions = ops.arange(self.backbone.image_sequence_length, dtype="int32")
        positions = ops.broadcast_to(positions, (*shape, positions.shape[0]))
        return positions, ops.ones(shape, dtype="bool")

    def text_mask(self, inputs):
        first_text = self.backbone.image_sequence_length
        everything = self.padding_mask(inputs)
        positions = ops.arange(ops.shape(everything)[1], dtype="int32")
        return ops.logical_and(everything, positions[None] >= first_text)


_VIEWS = {
    "Gemma3CausalLM": Gemma3View,
    "PaliGemmaCausalLM": PaliGemmaView,
}


def register_view(class_name, view):
    """Uses `view` for models whose class (or a base of it) is named `class_name`.

    Args:
        class_name: string, e.g. `"MyCausalLM"`. A name and not the class itself,
            so that registering costs no import.
        view: a subclass of `ModelView`.

    Example:

    >>> from keras_betakd.models import CausalLMView, register_view
    >>> class MyView(CausalLMView):
    ...     def vision_tower(self):
    ...         return [self.backbone.image_encoder]
    >>> register_view("MyCausalLM", MyView)
    """
    if not (isinstance(view, type) and issubclass(view, ModelView)):
        raise ValueError(
            "`view` must be a subclass of `keras_betakd.models.ModelView`. "
            f"Received: view={view}"
        )
    _VIEWS[class_name] = view


def view_of(model):
    """The view of a model.

    Args:
        model: a `keras_hub.models.CausalLM` of a known family, or any
            `keras.Model` whose output is logits.

    Returns:
        A `ModelView`.

    Raises:
        ValueError: `model` is no `keras.Model`, or a multimodal keras-hub model of
            a family nobody has written a view for.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Teacher and student must be `keras.Model`s, for example "
            "`keras_hub.models.Gemma3CausalLM.from_preset(...)`. Received: "
            f"{model} of type {type(model)}"
        )
    for base in type(model).__mro__:
        if base.__name__ in _VIEWS:
            return _VIEWS[base.__name__](model)
    if not _is_keras_hub_causal_lm(model):
        return LogitsView(model)
    inputs = model.backbone.input
    names = set(inputs) if isinstance(inputs, dict) else {"token_ids"}
    if names - TEXT_INPUTS:
        raise ValueError(
            f"No view is known for the multimodal model {type(model).__name__}, "
            f"whose backbone takes {sorted(names)}. Known multimodal families: "
            f"{sorted(_VIEWS)}. Write a subclass of "
            "`keras_betakd.models.CausalLMView` and pass it to "
            "`keras_betakd.models.register_view`."
        )
    return CausalLMView(model)


def _is_keras_hub_causal_lm(model):
    # A model can only be one of keras-hub's if keras-hub is imported already;
    # looking it up keeps the import out of projects that do not use it.
    keras_hub = sys.modules.get("keras_hub")
    return keras_hub is not None and isinstance(model, keras_hub.models.CausalLM)
