"""The view of MobileVLM V2 and LLaVA-1.5."""

from keras import ops

from keras_betakd.models.base import CausalLMView


class MobileVLMView(CausalLMView):
    """`keras_betakd.mobilevlm.MobileVLMCausalLM`; image tokens have a negative id."""

    def _is_image(self, inputs):
        return ops.less(inputs["token_ids"], 0)

    def vision_tower(self):
        return [self.backbone.vision_tower]

    def image_projector(self):
        return self.backbone.projector

    def image_layout(self, inputs):
        is_image = self._is_image(inputs)
        batch, length = ops.shape(is_image)
        tokens, pictures = self.backbone.num_image_tokens, inputs["images"].shape[1]
        # Image tokens first, in order; then whatever else there is.
        places = ops.arange(length, dtype="int32")[None]
        order = ops.argsort(ops.where(is_image, places, places + length), axis=1)
        order = ops.cast(order[:, : pictures * tokens], "int32")
        found = ops.sum(ops.cast(is_image, "int32"), axis=1, keepdims=True)
        numbers = ops.arange(1, pictures + 1, dtype="int32")[None]
        positions = ops.reshape(order, (batch, pictures, tokens))
        return positions, ops.greater_equal(found, numbers * tokens)

    def text_mask(self, inputs):
        image = self._is_image(inputs)
        return ops.logical_and(self.padding_mask(inputs), ops.logical_not(image))
