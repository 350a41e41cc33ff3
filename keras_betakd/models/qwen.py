"""The view of keras-hub's Qwen3.5, which itself takes images in generation alone."""

from keras import ops

from keras_betakd.models.base import CausalLMView
from keras_betakd.models.qwen_vision import image_tokens


class Qwen3_5View(CausalLMView):
    """`keras_hub.models.Qwen3_5CausalLM` and its mixture of experts.

    keras-hub's own forward pass cannot train with images: its vision encoder reads
    the size of each image as a Python number, which a compiled step does not have,
    and its functional model leaves out the three-axis rotary positions that its
    `generate` and `score` use. The layers are therefore called here, one by one, with
    inputs of static shape (`keras_betakd.preprocessing.qwen3_5_format`).
    """

    def hidden_states(self, inputs, training=None):
        backbone = self.backbone
        x = backbone.token_embedding(inputs["token_ids"])
        if "pixel_values" in inputs:
            x = self._with_image_tokens(x, inputs)
        mask, positions = inputs["padding_mask"], inputs.get("position_ids")
        for layer in backbone.transformer_layers:
            x = layer(
                x,
                decoder_padding_mask=mask,
                position_ids=positions,
                training=training,
            )
        return backbone.layer_norm(x)

    def _with_image_tokens(self, x, inputs):
        tokens = image_tokens(
            self.backbone.vision_encoder,
            inputs["pixel_values"],
            inputs["image_grid_thw"],
        )
        source = ops.expand_dims(inputs["image_sources"], -1)
        tokens = ops.reshape(tokens, (ops.shape(x)[0], -1, tokens.shape[-1]))
        tokens = ops.take_along_axis(tokens, ops.maximum(source, 0), axis=1)
        return ops.where(source >= 0, ops.cast(tokens, x.dtype), x)

    def text_mask(self, inputs):
        mask = self.padding_mask(inputs)
        if "image_sources" not in inputs:
            return mask
        return ops.logical_and(mask, inputs["image_sources"] < 0)

    def logits(self, inputs, training=None):
        """The full logits of the model: (B, T, V)."""
        return self.head(self.hidden_states(inputs, training))

    def vision_tower(self):
        tower = self.backbone.vision_encoder
        return (
            [] if tower is None else [tower.patch_embed, tower.pos_embed, *tower.blocks]
        )

    def vision_blocks(self):
        tower = self.backbone.vision_encoder
        return [] if tower is None else tower.blocks

    def image_projector(self):
        tower = self.backbone.vision_encoder
        return None if tower is None else tower.merger
