"""Views of the Gemma families of keras-hub that see pictures."""

import contextlib
import math

from keras import ops

from keras_betakd.backends import takes_columns_for_biases
from keras_betakd.models.base import MarkedImagesView, PrefixView
from keras_betakd.models.heads import EmbeddingHead, TransposedEmbeddingHead
from keras_betakd.models.hooks import replaced


class _GemmaView(MarkedImagesView):
    """Image tokens stand where the prompt has them, as `vision_indices` says."""

    @property
    def tokens_per_image(self):
        return self.backbone.num_vision_tokens_per_image

    def is_image(self, inputs):
        return ops.cast(inputs["vision_mask"], "bool")

    def vision_tower(self):
        if self.backbone.vision_encoder is None:
            return []
        return [self.backbone.vision_encoder.get_layer("image_encoder")]

    def image_projector(self):
        return self.backbone.vision_encoder

    def image_layout(self, inputs):
        found = ops.cast(inputs["vision_indices"], "int32")
        shape = (ops.shape(found)[0], -1, self.tokens_per_image)
        positions = ops.reshape(found, shape)
        pictures = ops.shape(positions)[1]
        return positions, self.present(self.is_image(inputs), pictures)


class Gemma3View(_GemmaView):
    """`keras_hub.models.Gemma3CausalLM`, with or without its vision tower."""

    def first_attention(self):
        return self.backbone.transformer_layers[0].attention

    def mended(self):
        """See `_in_parts`."""
        if self.backbone.vision_encoder is None:
            return super().mended()
        return replaced(self.backbone.interleave_embeddings, _in_parts)


def _in_parts(compute, image_embeddings, text_embeddings, vision_indices):
    """The image embeddings in their places, also where `keras.ops.add` errs.

    On TensorFlow it takes (B, 1) for a bias of (B, N) if B = N, and adds it along the
    other axis. Here it is where a record's tokens begin: in a batch of as many records
    as a record has image tokens, pictures were written into other records.
    """
    size, tokens = vision_indices.shape
    if size is not None and len(image_embeddings.shape) == 4:
        # Gemma 4: (B, pictures, tokens, H)
        tokens = min(tokens, math.prod(image_embeddings.shape[1:3]))
    errs = takes_columns_for_biases() and size == tokens
    if not errs or size is None or size < 2:
        return compute(image_embeddings, text_embeddings, vision_indices)
    pictures = image_embeddings.shape[0] // size
    parts = [
        compute(
            image_embeddings[start * pictures : end * pictures],
            text_embeddings[start:end],
            vision_indices[start:end],
        )
        for start, end in ((0, 1), (1, size))
    ]
    return ops.concatenate(parts)


class PaliGemmaView(PrefixView):
    """`keras_hub.models.PaliGemmaCausalLM`, PaliGemma 2 included."""

    @property
    def image_tokens(self):
        return self.backbone.image_sequence_length

    def vision_tower(self):
        return [self.backbone.vit_encoder.get_layer("image_encoder")]

    def image_projector(self):
        return self.backbone.vit_encoder

    def first_attention(self):
        return self.backbone.transformer_layers[0].attention


class Gemma3nView(_GemmaView):
    """`keras_hub.models.Gemma3nCausalLM`, with or without its vision tower."""

    def _find_embedding(self):
        return self.backbone.language_model.embed_tokens.embedding

    def __init__(self, model):
        super().__init__(model)
        soft_cap = self.backbone.language_model.final_logit_soft_cap
        self.head = TransposedEmbeddingHead(self.embedding, soft_cap)

    def logits(self, inputs, training=None):
        """All the logits of the model: (B, T, V).

        Not by the model itself: the head of its functional model is a product outside
        of any layer, with the embeddings that it was made with, loaded ones or not.
        """
        return self.head(self.hidden_states(inputs, training))

    @property
    def tokens_per_image(self):
        return self.backbone.vision_soft_tokens_per_image

    @property
    def is_mended(self):
        return self.backbone.vision_encoder is not None

    def mended(self):
        """keras-hub takes the pictures of a batch one after another, padding too."""
        if not self.is_mended:
            return super().mended()
        return replaced(self.backbone.embedding_processor, self._real_pictures_first)

    def _real_pictures_first(self, compute, inputs):
        pictures = inputs.get("pixel_values")
        if pictures is None or 0 in pictures.shape[:2]:
            return compute(inputs)
        shape = ops.shape(pictures)
        is_image = ops.equal(inputs["token_ids"], self.backbone.image_token_id)
        present = self.present(is_image, shape[1])
        pictures = ops.reshape(pictures, (-1, *shape[2:]))
        numbers = ops.arange(ops.shape(pictures)[0], dtype="int32")
        behind = ops.where(ops.reshape(present, (-1,)), 0, ops.shape(pictures)[0])
        order = ops.argsort(numbers + ops.cast(behind, "int32"))
        pictures = ops.reshape(ops.take(pictures, order, axis=0), shape)
        return compute({**inputs, "pixel_values": pictures})

    def vision_tower(self):
        tower = self.backbone.vision_encoder
        return [] if tower is None else [tower]

    def image_projector(self):
        return self.backbone.embed_vision

    def image_features(self, calls, inputs):
        positions, present = self.image_layout(inputs)
        output = calls[-1][2]  # the first call embeds ids that stand for no picture
        order = ops.cumsum(ops.cast(ops.reshape(present, (-1,)), "int32")) - 1
        output = ops.take(output, ops.maximum(order, 0), axis=0)
        return ops.reshape(output, (*ops.shape(positions), output.shape[-1]))


class Gemma4View(_GemmaView):
    """`keras_hub.models.Gemma4CausalLM`, with or without its vision tower."""

    def __init__(self, model):
        super().__init__(model)
        self.head = EmbeddingHead(self.embedding, model.final_logit_cap)

    @property
    def is_mended(self):
        return self.backbone.vision_encoder is not None

    @contextlib.contextmanager
    def mended(self):
        """keras-hub pools every picture by the width of the widest of the batch."""
        with contextlib.ExitStack() as stack:
            if self.is_mended:
                self._pooling = self.backbone.vision_encoder.get_layer("pooling")
                stack.enter_context(replaced(self._pooling, self._pool_by_own_width))
                interleave = self.backbone.interleave_embeddings
                stack.enter_context(replaced(interleave, _in_parts))
            yield

    def _pool_by_own_width(self, compute, inputs, pixel_position_ids):
        if 0 in inputs.shape[1:3]:
            return compute(inputs, pixel_position_ids)
        size = self._pooling.pool_size
        places = ops.maximum(pixel_position_ids, 0) // size
        width = (
            ops.max(pixel_position_ids[..., 0], axis=-1, keepdims=True) + 1
        ) // size
        cells = places[..., 0] + width * places[..., 1]
        real = ops.any(pixel_position_ids >= 0, axis=-1, keepdims=True)
        dtype = self._pooling.compute_dtype
        share = ops.one_hot(cells, inputs.shape[2] // size**2) / size**2
        share = ops.cast(ops.where(real, share, 0), dtype)
        pooled = ops.einsum("bnpc,bnph->bnch", share, ops.cast(inputs, dtype))
        return pooled * ops.cast(inputs.shape[-1] ** 0.5, dtype)
