"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL in Keras, in keras-hub's style."""

from keras_betakd.qwen_vl.backbone import QwenVLBackbone
from keras_betakd.qwen_vl.causal_lm import QwenVLCausalLM
from keras_betakd.qwen_vl.checkpoints import load_qwen_vl
from keras_betakd.qwen_vl.image_converter import QwenVLImageConverter
from keras_betakd.qwen_vl.image_tokens import PatchMerger
from keras_betakd.qwen_vl.preprocessor import QwenVLCausalLMPreprocessor
from keras_betakd.qwen_vl.tokenizer import QwenVLTokenizer
from keras_betakd.qwen_vl.vision import QwenVLVisionEncoder

__all__ = [
    "PatchMerger",
    "QwenVLBackbone",
    "QwenVLCausalLM",
    "QwenVLCausalLMPreprocessor",
    "QwenVLImageConverter",
    "QwenVLTokenizer",
    "QwenVLVisionEncoder",
    "load_qwen_vl",
]
