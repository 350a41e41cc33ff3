"""Turns records into inputs of `QwenVLCausalLM`."""

from typing import Any

import keras
from keras import ops

from keras_betakd.preprocessing.chat_templates import chat_template
from keras_betakd.preprocessing.checks import check_lengths
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.model_inputs import model_inputs, without_last_answers
from keras_betakd.preprocessing.prompt_templates import (
    PromptTemplate,
    remember_template,
    remembered_template,
    serialized_template,
)
from keras_betakd.preprocessing.record_checks import checked_records
from keras_betakd.qwen_vl.backbone import QwenVLBackbone
from keras_betakd.qwen_vl.image_converter import QwenVLImageConverter
from keras_betakd.qwen_vl.tokenizer import QwenVLTokenizer
from keras_betakd.vision_language.preprocessor import ImageTextPreprocessor


@keras.saving.register_keras_serializable(package="keras_betakd")
class QwenVLCausalLMPreprocessor(ImageTextPreprocessor):
    """Writes records in the chat template, tokenizes them and makes patches of images.

    Args:
        tokenizer: a `QwenVLTokenizer`.
        image_converter: a `QwenVLImageConverter`.
        sequence_length: int, T, tokens of a sequence, those of its images included.
        prompt_template: the name of the chat template that the model was tuned with,
            `"qwen2.5_vl"` (Qwen2-VL, too) or `"qwen3_vl"`; a `ChatTemplate`; or `None`
            for prompts as they are.
        **kwargs: as for any `keras_hub.models.CausalLMPreprocessor`.

    Call arguments:
        x: dict of `"prompts"`, B strings, or for conversations B lists of strings;
            `"responses"`, the same; optional `"images"`, for each record what
            `keras_betakd.data.load_image` reads, a list of that, or `None`; optional
            `"system"` and `"ids"`. A prompt marks each image with `<image>`.

    Returns:
        `(x, y, sample_weight)`: the inputs of `QwenVLBackbone`, the next tokens (B, T),
        and weights (B, T), 1 for the answers and the mark that ends each, else 0.

    Raises:
        ValueError: as for `keras_betakd.preprocessing.model_inputs`, or a record is
            longer than `sequence_length`: nothing is cut. The message names the record.

    Example:

    ```python
    x, y, sample_weight = model.preprocessor(
        {"images": [image], "prompts": ["<image>What is this?"], "responses": ["A cat"]}
    )
    ```

    Source: the chat template and the image processor that the models are published
    with.
    """

    backbone_cls = QwenVLBackbone
    tokenizer_cls = QwenVLTokenizer
    image_converter_cls = QwenVLImageConverter

    def __init__(
        self,
        tokenizer: QwenVLTokenizer,
        image_converter: QwenVLImageConverter | None = None,
        sequence_length: int = 2048,
        prompt_template: PromptTemplate | dict = None,
        **kwargs,
    ):
        kwargs.setdefault("add_start_token", False)
        super().__init__(tokenizer, sequence_length=sequence_length, **kwargs)
        self.image_converter = image_converter
        if type(sequence_length) is not int or sequence_length < 1:
            raise ValueError(
                "`sequence_length` must be a whole number, 1 or more. Received: "
                f"sequence_length={sequence_length!r}"
            )
        if isinstance(prompt_template, dict):
            prompt_template = keras.saving.deserialize_keras_object(prompt_template)
        if isinstance(prompt_template, str):
            chat_template(prompt_template)  # which raises for an unknown one
        if prompt_template is not None:
            remember_template(self, prompt_template)

    @property
    def prompt_template(self) -> PromptTemplate:
        return remembered_template(self)

    def _training(self, x, sequence_length):
        records = checked_records(x)
        inputs = model_inputs(self, records, self.prompt_template)
        x, y, weight = format_of(self).training(inputs, sequence_length)
        check_lengths(self, inputs, (x, weight), records.names, "model")
        return x, y, weight.astype("float32")

    def generate_preprocess(
        self, x: Any, sequence_length: int | None = None
    ) -> dict[str, Any]:
        """The inputs of `generate_step`: the prompts alone.

        Args:
            x: a list of prompts, or a dict as for a call. A conversation has one
                response fewer than prompts.
            sequence_length: int; the preprocessor's if `None`.

        Returns:
            Dict of the inputs of `QwenVLBackbone`.
        """
        records = checked_records(x if isinstance(x, dict) else {"prompts": x})
        inputs = model_inputs(self, without_last_answers(records), self.prompt_template)
        family, limit = format_of(self), sequence_length or self.sequence_length
        lengths = family.prompt_lengths(inputs, limit)[family.answer_length]
        for name, length in zip(records.names, lengths, strict=True):
            if length >= limit:
                raise ValueError(
                    f"Record {name}: its prompt has {length} tokens, those of its "
                    f"images included, which leaves no room in {limit}. Give a greater "
                    "`max_length` or `preprocessor.sequence_length`, or smaller images "
                    "(`max_pixels` of the image converter)."
                )
        found = family.packed_prompts(inputs, limit)
        return {key: ops.convert_to_tensor(value) for key, value in found.items()}

    def _specs(self, sequence_length):
        """Shapes and dtypes of what a call returns, inside `tf.data`."""
        length = sequence_length or self.sequence_length
        width = 3 * self.image_converter.patch_size**2
        x = {
            "image_grid_thw": ((None, None, 3), "int32"),
            "image_sources": ((None, length), "int32"),
            "padding_mask": ((None, length), "bool"),
            "pixel_values": ((None, None, None, width), "float32"),
            "position_ids": ((None, 3, length), "int32"),
            "token_ids": ((None, length), "int32"),
        }
        return x, ((None, length), "int32"), ((None, length), "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "prompt_template": serialized_template(self.prompt_template),
        }
