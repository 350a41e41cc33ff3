"""`view_of` and `register_view`: find the view of a model by its class name."""

import sys

import keras

from keras_betakd.models.base import CausalLMView, LogitsView, ModelView
from keras_betakd.models.blip2 import BLIP2Seq2SeqView, BLIP2View
from keras_betakd.models.gemma import (
    Gemma3nView,
    Gemma3View,
    Gemma4View,
    PaliGemmaView,
)
from keras_betakd.models.mobilevlm import MobileVLMView
from keras_betakd.models.qwen import Qwen3_5View
from keras_betakd.models.qwen_vl import QwenVLView

# The inputs of text-only backbones of keras-hub. Any other input (images, audio) means
# a multimodal model, whose layout of positions cannot be guessed.
TEXT_INPUTS = {"token_ids", "padding_mask", "segment_ids", "position_ids"}

_VIEWS: dict[str, type[ModelView]] = {
    "BLIP2CausalLM": BLIP2View,
    "BLIP2Seq2SeqLM": BLIP2Seq2SeqView,
    "Gemma3CausalLM": Gemma3View,
    "Gemma3nCausalLM": Gemma3nView,
    "Gemma4CausalLM": Gemma4View,
    "MobileVLMCausalLM": MobileVLMView,
    "PaliGemmaCausalLM": PaliGemmaView,
    "Qwen3_5CausalLM": Qwen3_5View,
    "Qwen3_5MoeCausalLM": Qwen3_5View,
    "QwenVLCausalLM": QwenVLView,
}


def register_view(class_name: str, view: type[ModelView]) -> None:
    """Uses `view` for models whose class (or a base of it) is named `class_name`.

    Args:
        class_name: string, e.g. `"MyCausalLM"`. It is the name and not the class, so
            that registering a view does not import the model.
        view: a subclass of `ModelView`.

    Example:

    >>> from keras_betakd.models import CausalLMView, register_view
    >>> class MyView(CausalLMView):
    ...     def vision_tower(self):
    ...         return [self.backbone.image_encoder]
    >>> register_view("MyCausalLM", MyView)
    """
    if not (isinstance(view, type) and issubclass(view, ModelView)):
        raise ValueError(
            "`view` must be a subclass of `keras_betakd.models.ModelView`. "
            f"Received: view={view}"
        )
    _VIEWS[class_name] = view


def view_of(model: keras.Model) -> ModelView:
    """The view of a model.

    Args:
        model: a `keras_hub.models.CausalLM` of a known family, or any
            `keras.Model` whose output is logits.

    Returns:
        A `ModelView`.

    Raises:
        ValueError: `model` is no `keras.Model`, or a multimodal keras-hub model of
            a family without a view.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> type(view_of(model)).__name__
    'LogitsView'
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Teacher and student must be `keras.Model`s, for example "
            "`keras_hub.models.Gemma3CausalLM.from_preset(...)`, and not what "
            "`torch.compile` and the like make of them. Received: "
            f"{model} of type {type(model)}"
        )
    for base in type(model).__mro__:
        if base.__name__ in _VIEWS:
            return _VIEWS[base.__name__](model)
    if not _is_keras_hub_causal_lm(model):
        return LogitsView(model)
    inputs = model.backbone.input
    names = set(inputs) if isinstance(inputs, dict) else {"token_ids"}
    if names - TEXT_INPUTS:
        raise ValueError(
            f"No view is known for the multimodal model {type(model).__name__}, "
            f"whose backbone takes {sorted(names)}. Known multimodal families: "
            f"{sorted(_VIEWS)}. Write a subclass of "
            "`keras_betakd.models.CausalLMView` and pass it to "
            "`keras_betakd.models.register_view`."
        )
    return CausalLMView(model)


def _is_keras_hub_causal_lm(model):
    # A model can only be of keras-hub if keras-hub is imported already; looking it up
    # avoids the import in projects that do not use it.
    keras_hub = sys.modules.get("keras_hub")
    return keras_hub is not None and isinstance(model, keras_hub.models.CausalLM)
