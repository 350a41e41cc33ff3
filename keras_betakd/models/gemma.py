"""The views of keras-hub's multimodal Gemma families: 3, 3n, 4 and PaliGemma."""

import contextlib
import math

from keras import ops

from keras_betakd.backends import takes_columns_for_biases
from keras_betakd.models.base import MarkedImagesView, PrefixView
from keras_betakd.models.heads import EmbeddingHead, TransposedEmbeddingHead
from keras_betakd.models.hooks import replaced


class _GemmaView(MarkedImagesView):
    """The view of a Gemma model whose `vision_indices` hold the image positions."""

    decodes_at_numbers = True

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
        places = ops.shape(positions)[1]
        return positions, self.present(self.is_image(inputs), places)


class Gemma3View(_GemmaView):
    """`keras_hub.models.Gemma3CausalLM`, with or without its vision tower."""

    def vision_blocks(self):
        return [block for tower in self.vision_tower() for block in tower.resblocks]

    def attention_layers(self):
        return [block.attention for block in self.backbone.transformer_layers]

    def patched(self):
        """A context in which `_interleave` inserts the image embeddings."""
        if self.backbone.vision_encoder is None:
            return super().patched()
        return replaced(self.backbone.interleave_embeddings, _interleave)


def _interleave(compute, image_embeddings, text_embeddings, vision_indices):
    """Inserts image embeddings into the text, in parts where `keras.ops.add` errs.

    On TensorFlow, `keras.ops.add` takes a (B, 1) tensor for the bias of a (B, N) one if
    B = N, and adds it along the other axis. keras-hub adds the offsets of the records'
    tokens in this way, so in a batch of as many records as a record has image tokens,
    images are written into other records. Such a batch is split in two.
    """
    size, tokens = vision_indices.shape
    if size is not None and len(image_embeddings.shape) == 4:
        # Gemma 4: (B, images, tokens, H)
        tokens = min(tokens, math.prod(image_embeddings.shape[1:3]))
    errs = takes_columns_for_biases() and size == tokens
    if not errs or size is None or size < 2:
        return compute(image_embeddings, text_embeddings, vision_indices)
    images = image_embeddings.shape[0] // size
    parts = [
        compute(
            image_embeddings[start * images : end * images],
            text_embeddings[start:end],
            vision_indices[start:end],
        )
        for start, end in ((0, 1), (1, size))
    ]
    return ops.concatenate(parts)


class PaliGemmaView(PrefixView):
    """`keras_hub.models.PaliGemmaCausalLM`, PaliGemma 2 included."""

    decodes_at_numbers = True

    @property
    def image_tokens(self):
        return self.backbone.image_sequence_length

    def vision_tower(self):
        return [self.backbone.vit_encoder.get_layer("image_encoder")]

    def vision_blocks(self):
        return self.vision_tower()[0].resblocks

    def image_projector(self):
        return self.backbone.vit_encoder

    def attention_layers(self):
        return [block.attention for block in self.backbone.transformer_layers]


class Gemma3nView(_GemmaView):
    """`keras_hub.models.Gemma3nCausalLM`, with or without its vision tower."""

    def _find_embedding(self):
        return self.backbone.language_model.embed_tokens.embedding

    def __init__(self, model):
        super().__init__(model)
        soft_cap = self.backbone.language_model.final_logit_soft_cap
        self.head = TransposedEmbeddingHead(self.embedding, soft_cap)

    def logits(self, inputs, training=None):
        """The full logits of the model: (B, T, V).

        The model itself does not compute them: the head of its functional model is a
        product outside of any layer, with the embeddings at the time it was built, even
        if others were loaded since.
        """
        return self.head(self.hidden_states(inputs, training))

    @property
    def placeholder_ids(self):
        return () if not self.is_patched else (self.backbone.image_token_id,)

    @property
    def tokens_per_image(self):
        return self.backbone.vision_soft_tokens_per_image

    @property
    def is_patched(self):
        return self.backbone.vision_encoder is not None

    def patched(self):
        """A context in which the images of a batch are given in order, padding last.

        keras-hub fills the image positions of a batch with its images one after
        another, padding included.
        """
        if not self.is_patched:
            return super().patched()
        return replaced(self.backbone.embedding_processor, self._padding_last)

    def _padding_last(self, compute, inputs):
        images = inputs.get("pixel_values")
        if images is None or 0 in images.shape[:2]:
            return compute(inputs)
        shape = ops.shape(images)
        is_image = ops.equal(inputs["token_ids"], self.backbone.image_token_id)
        present = self.present(is_image, shape[1])
        images = ops.reshape(images, (-1, *shape[2:]))
        numbers = ops.arange(ops.shape(images)[0], dtype="int32")
        behind = ops.where(ops.reshape(present, (-1,)), 0, ops.shape(images)[0])
        order = ops.argsort(numbers + ops.cast(behind, "int32"))
        images = ops.reshape(ops.take(images, order, axis=0), shape)
        return compute({**inputs, "pixel_values": images})

    def vision_tower(self):
        tower = self.backbone.vision_encoder
        return [] if tower is None else [tower]

    def blocks(self):
        # Those of the convolutional vision tower have batch normalisation.
        return self.backbone.language_model.transformer_layers

    def image_projector(self):
        return self.backbone.embed_vision

    def image_features(self, calls, inputs):
        positions, present = self.image_layout(inputs)
        output = calls[-1][2]  # the first call embeds ids that stand for no image
        order = ops.cumsum(ops.cast(ops.reshape(present, (-1,)), "int32")) - 1
        output = ops.take(output, ops.maximum(order, 0), axis=0)
        return ops.reshape(output, (*ops.shape(positions), output.shape[-1]))


class Gemma4View(_GemmaView):
    """`keras_hub.models.Gemma4CausalLM`, with or without its vision tower."""

    def __init__(self, model):
        super().__init__(model)
        self.head = EmbeddingHead(self.embedding, model.final_logit_cap)

    @property
    def is_patched(self):
        return self.backbone.vision_encoder is not None

    @contextlib.contextmanager
    def patched(self):
        """A context in which each image is pooled by its own width.

        keras-hub pools all images by the width of the widest in the batch. Within,
        `_interleave` also inserts the image embeddings.
        """
        with contextlib.ExitStack() as stack:
            if self.is_patched:
                self._pooling = self.backbone.vision_encoder.get_layer("pooling")
                stack.enter_context(replaced(self._pooling, self._pool_by_own_width))
                interleave = self.backbone.interleave_embeddings
                stack.enter_context(replaced(interleave, _interleave))
            yield

    def vision_blocks(self):
        towers = self.vision_tower()
        return [block for tower in towers for block in tower.encoder_blocks]

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
