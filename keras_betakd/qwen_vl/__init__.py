"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL in Keras, in keras-hub's style."""

from keras_betakd.qwen_vl.image_converter import QwenVLImageConverter
from keras_betakd.qwen_vl.tokenizer import QwenVLTokenizer

__all__ = [
    "QwenVLImageConverter",
    "QwenVLTokenizer",
]
