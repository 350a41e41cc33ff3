"""What the distiller needs to see of a model: hidden states, head, vision tower."""

from keras_betakd.models.heads import EmbeddingHead, HeadMatrix, LMHead
from keras_betakd.models.views import (
    CausalLMView,
    Gemma3View,
    LogitsView,
    ModelView,
    PaliGemmaView,
    register_view,
    view_of,
)
