"""The views of keras-hub's BLIP-2 with OPT and with Flan-T5."""

from keras_betakd.models.base import CausalLMView, PrefixView
from keras_betakd.models.heads import DenseHead


class _QFormer:
    """Common parts of both views: a vision tower and a Q-Former before the text."""

    def vision_tower(self):
        tower = self.backbone.vision_encoder
        return [] if tower is None else [tower]

    def image_projector(self):
        if self.backbone.vision_encoder is None:
            return None
        return self.backbone.language_model.language_projection

    def vision_blocks(self):
        if self.backbone.vision_encoder is None:
            return []
        tower = self.backbone.vision_encoder.get_layer("encoder")
        return [*tower.encoder_layers, *self.backbone.qformer.transformer_layers]

    def projector(self):
        if self.backbone.vision_encoder is None:
            return []
        return [self.backbone.qformer, self.image_projector()]


class BLIP2View(_QFormer, PrefixView):
    """`keras_hub.models.BLIP2CausalLM` (OPT): Q-Former tokens before the text."""

    @property
    def image_tokens(self):
        return self.backbone.num_query_tokens

    def blocks(self):
        model = self.backbone.language_model
        return [*self.vision_blocks(), *model.transformer_layers]


class BLIP2Seq2SeqView(_QFormer, CausalLMView):
    """`keras_hub.models.BLIP2Seq2SeqLM` (Flan-T5).

    Its hidden states are the decoder's: of the answer alone, without prompt or image.
    """

    def __init__(self, model):
        super().__init__(model)
        self.head = DenseHead(self.backbone.language_model.lm_head)

    @property
    def vocabulary_size(self):
        return self.backbone.language_model.vocabulary_size

    def blocks(self):
        t5 = self.backbone.language_model.t5
        coders = t5.encoder_transformer_layers, t5.decoder_transformer_layers
        return [*self.vision_blocks(), *coders[0], *coders[1]]

    def padding_mask(self, inputs):
        return super().padding_mask({"padding_mask": inputs["decoder_padding_mask"]})
