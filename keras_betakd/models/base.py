"""The base classes of views: the parts of a model that a distiller uses.

A distiller gathers hidden states at the answer positions and runs the LM head on those
rows only, so it needs access to parts of the model: the backbone, the head, the vision
tower. A view provides these and nothing else. To add a family, write a small subclass
of `CausalLMView` and call `register_view`; a text model that follows keras-hub's common
form needs neither.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_betakd.models.features import FeatureReader
from keras_betakd.models.heads import CroppedHead, EmbeddingHead, LMHead
from keras_betakd.models.inner_layers import find_layer, layer_width


class ModelView:
    """The parts of a model that a distiller uses.

    Args:
        model: the `keras.Model`.

    Attributes:
        sees_hidden_states: whether `hidden_states` and `head` exist.
        placeholder_ids: ids of tokens that the model takes for parts of an image
            wherever they stand, also in an answer.
        head: an `LMHead`, hidden states (B, K, H) to logits (B, K, V), soft cap
            included; `None` where the head is not accessible.
        images_vary: whether images have tokens by their size, and `image_grids` says
            how many.
        decodes_at_numbers: whether the model's `call_with_cache` takes an int for the
            index of a token, and not a tensor alone.
    """

    sees_hidden_states: bool = False
    images_vary: bool = False
    decodes_at_numbers: bool = False
    placeholder_ids: Sequence[int] = ()
    head: LMHead | None = None
    _classes = None
    _known_shape = None

    def __init__(self, model: keras.Model):
        self.model = model

    def crop(self, size: int) -> None:
        """Keeps only the first `size` classes of the logits, here and in `head`."""
        self._classes = size
        if self.head is not None:
            self.head = CroppedHead(self.head, size)

    def logits(self, inputs: Any, training: bool | None = None) -> Any:
        """The full logits of the model: (B, ..., V)."""
        with self.patched():
            logits = self.model(inputs, training=training)
        if not ops.is_tensor(logits):
            raise ValueError(
                f"{type(self.model).__name__} must return one tensor of logits, "
                f"(B, ..., V). Received: a {type(logits).__name__}. Give the distiller "
                "a `keras.Model` of this model's inputs and that output alone."
            )
        return logits if self._classes is None else logits[..., : self._classes]

    def logits_shape(self, inputs: Any) -> tuple[int | None, ...]:
        """The shape (B, ..., V) of `logits`, `None` where it is unknown.

        A model that has no shape before it is called is called without values.

        Args:
            inputs: the inputs of the model as arrays.
        """
        shape = getattr(self.model, "output_shape", None)
        if not isinstance(shape, tuple) or not shape or isinstance(shape[0], tuple):
            shape = self._called_shape(inputs)
        classes = shape[-1] if self._classes is None else self._classes
        return (*shape[:-1], classes)

    def _called_shape(self, inputs):
        specs = keras.tree.map_structure(_spec, inputs)
        key = [(x.shape[1:], x.dtype) for x in keras.tree.flatten(specs)]
        if self._known_shape is None or self._known_shape[0] != key:
            self._known_shape = key, tuple(self.model(specs, training=False).shape)
        return self._known_shape[1]

    def sees(self, features: str) -> bool:
        """Whether the model provides the features of this name (see `Features`)."""
        if features == "layers":
            return True
        if features == "hidden_states":
            return self.sees_hidden_states
        return self.sees_hidden_states and self.image_projector() is not None

    def reader(self, wanted: set[str], layers: Sequence[str] = ()) -> FeatureReader:
        """A `FeatureReader` that runs the model and reads features of these names.

        Args:
            wanted: set of names of `Features`.
            layers: names of inner layers whose outputs to read, too.
        """
        return FeatureReader(self, wanted, layers)

    def layer_width(self, name: str) -> int | None:
        """The width of an inner layer's output; `None` where only a batch tells it.

        Args:
            name: as for `keras_betakd.models.inner_layers.find_layer`.
        """
        return layer_width(find_layer(self.model, name))

    @property
    def computing_layers(self) -> list[keras.layers.Layer]:
        """Layers that have all variables of the model, without its preprocessor.

        For a `keras.Model` that runs this one: on JAX, Keras runs it once more, not
        compiled, before each batch while one of its layers is not built, as
        preprocessors and tokenizers never are.
        """
        layers = self.model.layers
        found = {id(v) for layer in layers for v in layer.variables}
        is_whole = found >= {id(v) for v in self.model.variables}
        return layers if is_whole else [self.model]

    @property
    def is_patched(self) -> bool:
        """Whether `patched` changes what the model computes."""
        return False

    def patched(self) -> contextlib.AbstractContextManager:
        """A context in which a record's outputs do not depend on its batch.

        Within, the layers of some keras-hub families that mix up the images of a batch
        are replaced by correct ones.
        """
        return contextlib.nullcontext()

    def blocks(self) -> list[keras.layers.Layer]:
        """The blocks of decoder, encoder and vision tower that `remat` runs again.

        Each is one layer, and none is within another.
        """
        raise ValueError(
            f"`remat=True` needs the blocks of {type(self.model).__name__}, which are "
            "not known. Build the model within a `keras.RematScope`, which does the "
            "same for models of your own, or register a view whose `blocks` returns "
            "them (`keras_betakd.models.register_view`)."
        )

    def vision_tower(self) -> list[keras.layers.Layer]:
        """The layers that process images alone, the projector not included."""
        return []

    def projector(self) -> list[keras.layers.Layer]:
        """The layers between the vision tower and the language model."""
        last = self.image_projector()
        if last is None:
            return []
        tower = self.vision_tower()
        inner = getattr(last, "layers", None) or [last]
        return [layer for layer in inner if not any(layer is t for t in tower)]

    def image_projector(self) -> keras.layers.Layer | None:
        """The layer whose outputs are the image tokens that enter the language model.

        It returns (B * P, T, H) or (B, P * T, H): T tokens for each of P images. `None`
        for a model that takes no images.
        """
        return None


def _spec(value):
    return keras.KerasTensor(
        (None, *value.shape[1:]), keras.backend.standardize_dtype(value.dtype)
    )


class LogitsView(ModelView):
    """The view of any `keras.Model` whose output is logits."""


class CausalLMView(ModelView):
    """The view of a text `keras_hub.models.CausalLM` with a reversible embedding."""

    sees_hidden_states = True

    def __init__(self, model: keras.Model):
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

    def blocks(self):
        if not hasattr(self.backbone, "transformer_layers"):
            return super().blocks()
        return [*self.vision_blocks(), *self.backbone.transformer_layers]

    def vision_blocks(self):
        """Those of `blocks` that process images."""
        return []

    @property
    def hidden_dim(self) -> int:
        return self.embedding.output_dim

    @property
    def vocabulary_size(self) -> int:
        return self.embedding.input_dim

    @property
    def logit_size(self) -> int:
        """The number of classes of the logits, after `crop`."""
        return self._classes or self.vocabulary_size

    def hidden_states(
        self, inputs: dict[str, Any], training: bool | None = None
    ) -> Any:
        """The last hidden states of the whole sequence: (B, T, H)."""
        with self.patched():
            return self.backbone(inputs, training=training)

    def padding_mask(self, inputs: dict[str, Any]) -> Any:
        """True where `hidden_states` belong to tokens, not to padding: bool (B, T)."""
        return ops.cast(inputs["padding_mask"], "bool")

    def row_positions(self, positions: Any) -> Any:
        """The positions in `hidden_states` of these positions in the text."""
        return positions

    def image_layout(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """The positions of the image tokens in `hidden_states`.

        Returns:
            `(positions, present)`: int (B, P, T) for T tokens of each of P images, in
            the order of the projector's output, and bool (B, P), false where a record
            has fewer images.
        """
        raise ValueError(
            f"The hidden states of {type(self.model).__name__} hold no image tokens at "
            "known places, so features of images cannot be compared with it."
        )

    def image_grids(self, inputs: dict[str, Any]) -> Any:
        """Rows and columns of the tokens of each image: int (B, P, 2).

        Of the T tokens of `image_layout`, those beyond are padding. `None`, the
        default, for a model whose images all have one square grid.
        """
        return None

    def text_mask(self, inputs: dict[str, Any]) -> Any:
        """True where `hidden_states` belong to text, not image or padding: (B, T)."""
        return self.padding_mask(inputs)

    def image_features(self, calls: list, inputs: dict[str, Any]) -> Any:
        """The projector's output for each image: (B, P, T, H).

        Args:
            calls: the calls of `image_projector()`, as `recorded` yields them.
            inputs: the inputs of the model.
        """
        positions, _ = self.image_layout(inputs)
        output = calls[0][2]
        return ops.reshape(output, (-1, *ops.shape(positions)[1:], output.shape[-1]))

    def attention_layers(self) -> list[keras.layers.Layer]:
        """The self-attention layers of the decoder blocks, in their order.

        Queries and keys of each must be the outputs of the two calls of its
        `rope_layer`, and its mask the argument `attention_mask`, as in keras-hub's
        Gemma.
        """
        raise ValueError(
            f"The attention of {type(self.model).__name__} cannot be read. Use an "
            "energy without attention, or a family whose attention can be read: "
            "Gemma 3, PaliGemma, Qwen2-VL, Qwen2.5-VL, Qwen3-VL."
        )


class PrefixView(CausalLMView):
    """The view of a model with its image tokens before the text, one image a record."""

    @property
    def image_tokens(self) -> int:
        """The number of positions before the text."""
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
    """The view of a model whose image tokens stand where the prompt marks images."""

    @property
    def tokens_per_image(self) -> int:
        """The number of tokens of an image."""
        raise NotImplementedError

    def is_image(self, inputs: dict[str, Any]) -> Any:
        """True at image tokens: bool (B, T)."""
        raise NotImplementedError

    def present(self, is_image: Any, places: int) -> Any:
        """Which of a record's `places` for images hold one: bool (B, places)."""
        marked = ops.sum(ops.cast(is_image, "int32"), axis=1)
        numbers = ops.arange(1, places + 1, dtype="int32")
        return marked[:, None] >= numbers[None] * self.tokens_per_image

    def text_mask(self, inputs):
        image = self.is_image(inputs)
        return ops.logical_and(self.padding_mask(inputs), ops.logical_not(image))
