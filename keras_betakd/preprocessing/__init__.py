"""Converts raw records to the batches that a distiller computes on."""

from keras_betakd.preprocessing.chat_template import ChatTemplate
from keras_betakd.preprocessing.chat_templates import chat_template
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.model_inputs import model_inputs
from keras_betakd.preprocessing.preprocessor import DistillationPreprocessor
from keras_betakd.preprocessing.process_share import ProcessShare

__all__ = [
    "ChatTemplate",
    "DistillationPreprocessor",
    "ProcessShare",
    "chat_template",
    "format_of",
    "model_inputs",
]
