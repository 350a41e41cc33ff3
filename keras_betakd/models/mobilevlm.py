"""The view of MobileVLM V2 and LLaVA-1.5."""

from keras import ops

from keras_betakd.models.base import MarkedImagesView


class MobileVLMView(MarkedImagesView):
    """`keras_betakd.mobilevlm.MobileVLMCausalLM`; image tokens have a negative id."""

    decodes_at_numbers = True

    @property
    def tokens_per_image(self):
        return self.backbone.num_image_tokens

    def is_image(self, inputs):
        return ops.less(inputs["token_ids"], 0)

    def vision_tower(self):
        return [self.backbone.vision_tower]

    def vision_blocks(self):
        return self.backbone.vision_tower.encoder.encoder_layers

    def image_projector(self):
        return self.backbone.projector

    def image_layout(self, inputs):
        is_image = self.is_image(inputs)
        batch, length = ops.shape(is_image)
        tokens, images = self.tokens_per_image, inputs["images"].shape[1]
        # Sorts the positions of image tokens before all others.
        places = ops.arange(length, dtype="int32")[None]
        order = ops.argsort(ops.where(is_image, places, places + length), axis=1)
        order = ops.cast(order[:, : images * tokens], "int32")
        positions = ops.reshape(order, (batch, images, tokens))
        return positions, self.present(is_image, images)
