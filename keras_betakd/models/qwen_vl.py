"""The view of Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from keras import ops

from keras_betakd.models.base import CausalLMView


class QwenVLView(CausalLMView):
    """`keras_betakd.qwen_vl.QwenVLCausalLM`, whose images have any size."""

    images_vary = True
    decodes_at_numbers = True

    def vision_tower(self):
        return [self.backbone.vision_encoder]

    def vision_blocks(self):
        return self.backbone.vision_encoder.blocks

    def image_projector(self):
        return self.backbone.projector

    def projector(self):
        return [self.backbone.projector, *self.backbone.deepstack_projectors]

    def text_mask(self, inputs):
        return ops.logical_and(self.padding_mask(inputs), inputs["image_sources"] < 0)

    def image_layout(self, inputs):
        sources = ops.cast(inputs["image_sources"], "int32")
        batch, length = ops.shape(sources)
        images, patches = ops.shape(inputs["pixel_values"])[1:3]
        tokens = patches // self.backbone.spatial_merge_size**2
        # Each position is written to the place of its token, those of text behind all.
        behind = images * tokens
        rows = ops.arange(batch, dtype="int32")[:, None] * (behind + 1)
        where = rows + ops.where(sources < 0, behind, sources)
        places = ops.arange(length, dtype="int32")[None]
        places = ops.broadcast_to(places, ops.shape(sources))
        found = ops.scatter_update(
            ops.zeros((batch * (behind + 1),), dtype="int32"),
            ops.reshape(where, (-1, 1)),
            ops.reshape(places, (-1,)),
        )
        found = ops.reshape(found, (batch, behind + 1))[:, :behind]
        positions = ops.reshape(found, (batch, images, tokens))
        return positions, inputs["image_grid_thw"][..., 1] > 0

    def image_grids(self, inputs):
        merge = self.backbone.spatial_merge_size
        return ops.cast(inputs["image_grid_thw"][..., 1:], "int32") // merge

    def attention_layers(self):
        return [block.self_attention for block in self.backbone.transformer_layers]
