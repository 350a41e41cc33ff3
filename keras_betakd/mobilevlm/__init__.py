"""MobileVLM V2 and LLaVA-1.5 in Keras, in keras-hub's style."""

from keras_betakd.mobilevlm.backbone import IMAGE_TOKEN_ID, MobileVLMBackbone
from keras_betakd.mobilevlm.causal_lm import MobileVLMCausalLM
from keras_betakd.mobilevlm.checkpoints import load_mobilevlm
from keras_betakd.mobilevlm.image_converter import MobileVLMImageConverter
from keras_betakd.mobilevlm.preprocessor import MobileVLMCausalLMPreprocessor
from keras_betakd.mobilevlm.projectors import LDPv2Projector, MLPProjector
from keras_betakd.mobilevlm.tokenizer import MobileVLMTokenizer
from keras_betakd.mobilevlm.vision import CLIPVisionTower

__all__ = [
    "CLIPVisionTower",
    "IMAGE_TOKEN_ID",
    "LDPv2Projector",
    "MLPProjector",
    "MobileVLMBackbone",
    "MobileVLMCausalLM",
    "MobileVLMCausalLMPreprocessor",
    "MobileVLMImageConverter",
    "MobileVLMTokenizer",
    "load_mobilevlm",
]
