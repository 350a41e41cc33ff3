"""Views of models: their hidden states, LM head and vision tower, for the distiller."""

from keras_betakd.models.base import CausalLMView, LogitsView, ModelView, PrefixView
from keras_betakd.models.blip2 import BLIP2Seq2SeqView, BLIP2View
from keras_betakd.models.gemma import (
    Gemma3nView,
    Gemma3View,
    Gemma4View,
    PaliGemmaView,
)
from keras_betakd.models.heads import EmbeddingHead, HeadMatrix, LMHead
from keras_betakd.models.mobilevlm import MobileVLMView
from keras_betakd.models.outputs import Features
from keras_betakd.models.presets import load_model
from keras_betakd.models.qwen import Qwen3_5View
from keras_betakd.models.student_presets import save_preset
from keras_betakd.models.views import register_view, view_of

__all__ = [
    "BLIP2Seq2SeqView",
    "BLIP2View",
    "CausalLMView",
    "EmbeddingHead",
    "Features",
    "Gemma3View",
    "Gemma3nView",
    "Gemma4View",
    "HeadMatrix",
    "LMHead",
    "LogitsView",
    "MobileVLMView",
    "ModelView",
    "PaliGemmaView",
    "PrefixView",
    "Qwen3_5View",
    "load_model",
    "register_view",
    "save_preset",
    "view_of",
]
