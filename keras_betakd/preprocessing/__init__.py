"""Converts raw records to the batches that a distiller computes on."""

from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.model_inputs import model_inputs
from keras_betakd.preprocessing.preprocessor import DistillationPreprocessor
from keras_betakd.preprocessing.process_share import ProcessShare

__all__ = [
    "DistillationPreprocessor",
    "ProcessShare",
    "format_of",
    "model_inputs",
]
