"""Turns records into inputs of `MobileVLMCausalLM`, as the released code does."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_betakd.mobilevlm.backbone import IMAGE_TOKEN_ID, MobileVLMBackbone
from keras_betakd.mobilevlm.conversation import TEMPLATES, check_conversation
from keras_betakd.mobilevlm.image_converter import MobileVLMImageConverter
from keras_betakd.mobilevlm.tokenizer import MobileVLMTokenizer
from keras_betakd.preprocessing.image_inputs import check_marks
from keras_betakd.preprocessing.record_images import images_by_record
from keras_betakd.preprocessing.records import record_ids, turns_by_record
from keras_betakd.vision_language.preprocessor import ImageTextPreprocessor


@keras.saving.register_keras_serializable(package="keras_betakd")
class MobileVLMCausalLMPreprocessor(ImageTextPreprocessor):
    """Applies the prompt template to records, tokenizes them and weights the responses.

    Args:
        tokenizer: a `MobileVLMTokenizer`.
        image_converter: a `MobileVLMImageConverter`.
        num_image_tokens: int, the number of tokens of an image: the backbone's
            `num_image_tokens`.
        sequence_length: int, T, tokens of a sequence, those of its images included.
        max_images_per_prompt: int, P, the largest number of images of a record.
        template: `"v1"` for questions and answers, `"plain"` for captions.
        **kwargs: as for any `keras_hub.models.CausalLMPreprocessor`.

    Call arguments:
        x: dict of `"prompts"`, B strings, or for conversations B lists of strings;
            `"responses"`, the same; optional `"images"`, for each record a
            (H, W, 3) array, a list of them, or `None`; optional `"ids"`, for error
            messages. A prompt marks each image with `<image>`; a single mark is moved
            before the question.

    Returns:
        `(x, y, sample_weight)`: the inputs of `MobileVLMBackbone`, the next tokens
        (B, T), and weights (B, T), 1 for the tokens that are trained (the responses and
        the end mark after each) and 0 for the others.

    Raises:
        ValueError: a record is longer than `sequence_length` (it is never truncated); a
            prompt or response is empty; a text contains the template's own marks, so
            that the trained tokens would be ambiguous; images and marks do not match.

    Example:

    ```python
    x, y, sample_weight = model.preprocessor(
        {
            "images": [image],
            "prompts": [["<image>\\nWhat is this?", "What colour is it?"]],
            "responses": [["A bird.", "Red."]],
        }
    )
    ```

    Source: the released training code of LLaVA-1.5 and MobileVLM V2.
    """

    backbone_cls = MobileVLMBackbone
    tokenizer_cls = MobileVLMTokenizer
    image_converter_cls = MobileVLMImageConverter

    def __init__(
        self,
        tokenizer: MobileVLMTokenizer,
        image_converter: MobileVLMImageConverter | None = None,
        num_image_tokens: int = 144,
        sequence_length: int = 2048,
        max_images_per_prompt: int = 1,
        template: str = "v1",
        **kwargs,
    ):
        super().__init__(tokenizer, sequence_length=sequence_length, **kwargs)
        if template not in TEMPLATES:
            raise ValueError(
                f"`template` must be one of {sorted(TEMPLATES)}. Received: "
                f"template={template!r}"
            )
        self.image_converter = image_converter
        self.num_image_tokens = num_image_tokens
        self.max_images_per_prompt = max_images_per_prompt
        self.template = template

    def _training(self, x, sequence_length):
        prompts, ids = self._prompts(x)
        # One token more: the labels are the same tokens, shifted by one.
        limit = sequence_length or self.sequence_length
        encoded = self._conversations(x)
        token_ids, padding_mask, trained = self._packed(encoded, limit, 1, ids)
        x = {
            "images": self._images(x, prompts, ids),
            "token_ids": token_ids[:, :-1],
            "padding_mask": padding_mask[:, :-1],
        }
        labels = np.where(trained, token_ids, self.tokenizer.pad_token_id)[:, 1:]
        return x, labels, trained[:, 1:].astype("float32")

    def generate_preprocess(
        self, x: Any, sequence_length: int | None = None
    ) -> dict[str, Any]:
        """The inputs of `generate_step`: the prompts alone.

        Args:
            x: a list of prompts, or a dict as for a call. A conversation has one
                response fewer than prompts.
            sequence_length: int; the preprocessor's if `None`.

        Returns:
            Dict of `"images"`, `"token_ids"` and `"padding_mask"`.
        """
        x = x if isinstance(x, dict) else {"prompts": x}
        prompts, ids = self._prompts(x)
        limit = sequence_length or self.sequence_length
        token_ids, padding_mask, _ = self._packed(self._encoded(x), limit, 0, ids)
        result = {
            "images": self._images(x, prompts, ids),
            "token_ids": token_ids,
            "padding_mask": padding_mask,
        }
        return {key: ops.convert_to_tensor(value) for key, value in result.items()}

    def prompt_lengths(self, x: Any) -> list[int]:
        """The number of tokens of each prompt, those of its images included: B ints."""
        return [len(self._spread(ids, ids)) for ids, _ in self._encoded(x)]

    def token_counts(self, x: Any) -> list[tuple[int, int]]:
        """Counts the tokens of records, to find those that are too long beforehand.

        Args:
            x: as for a call; images are not read.

        Returns:
            For each record `(sequence_length, trained)`: the number of its tokens, with
            those of its images and without the last one, which is a label alone; and
            the number of those that are trained.
        """
        return [
            (len(self._spread(ids, ids)) - 1, sum(trained))
            for ids, trained in self._conversations(x)
        ]

    def _conversations(self, x):
        """`(token_ids, is_trained)` of each conversation, with its last response."""
        prompts, names = self._prompts(x)
        template = TEMPLATES[self.template]()
        responses = turns_by_record(x["responses"], names, "response")
        encoded = []
        for turns, answers, name in zip(prompts, responses, names, strict=True):
            check_conversation(turns, answers, name)
            template.check(turns, answers, name)
            encoded.append(template.encode(turns, answers, self.tokenizer))
        return encoded

    def _encoded(self, x):
        """`(token_ids, is_trained)` of each prompt, up to where its answer begins.

        The earlier responses of a conversation belong to the prompt; a record of one
        turn beside it has an empty list of them.
        """
        prompts, names = self._prompts(x)
        template = TEMPLATES[self.template]()
        responses = [()] * len(prompts)
        if x.get("responses"):
            responses = [
                turns_by_record([found], [name], "response")[0] if found != [] else []
                for found, name in zip(x["responses"], names, strict=True)
            ]
        return [
            template.encode(turns, answers, self.tokenizer)
            for turns, answers in zip(prompts, responses, strict=True)
        ]

    def _specs(self, sequence_length):
        """Shapes and dtypes of what a call returns, inside `tf.data`."""
        length = sequence_length or self.sequence_length
        size = self.image_converter.image_size
        x = {
            "images": ((None, self.max_images_per_prompt, *size, 3), "float32"),
            "padding_mask": ((None, length), "bool"),
            "token_ids": ((None, length), "int32"),
        }
        return x, ((None, length), "int32"), ((None, length), "float32")

    def _prompts(self, x):
        names = x.get("names") or record_ids(x, len(x["prompts"]))
        return turns_by_record(x["prompts"], names, "prompt"), names

    def _images(self, x, prompts, ids):
        images = images_by_record(x.get("images"), len(prompts), ids)
        texts = ["\n".join(turns) for turns in prompts]
        check_marks(texts, images, "<image>", self.max_images_per_prompt, ids)
        size = (self.max_images_per_prompt, *self.image_converter.image_size, 3)
        stacked = np.zeros((len(prompts), *size), dtype="float32")
        for i, found in enumerate(images):
            for j, image in enumerate(found):
                stacked[i, j] = self.image_converter(image)
        return stacked

    def _spread(self, values, token_ids):
        """The values, with that of an image mark repeated for each of its tokens."""
        spread = []
        for value, token in zip(values, token_ids, strict=True):
            times = self.num_image_tokens if token == IMAGE_TOKEN_ID else 1
            spread += [value] * times
        return spread

    def _packed(self, encoded, limit, more, names):
        """Token ids, padding mask and trained mask: arrays (B, limit + more)."""
        length = limit + more
        token_ids = np.full(
            (len(encoded), length), self.tokenizer.pad_token_id, "int32"
        )
        padding_mask, trained = (np.zeros(token_ids.shape, bool) for _ in range(2))
        for i, (ids, is_trained) in enumerate(encoded):
            is_trained = self._spread(is_trained, ids)
            ids = self._spread(ids, ids)
            if len(ids) > length:
                needed = len(ids) - more
                raise ValueError(
                    f"Record {names[i]} needs a sequence_length of {needed} with the "
                    f"tokens of its images, more than {limit}: nothing is cut. Raise "
                    "`preprocessor.sequence_length`, shorten the record, or leave it "
                    "out."
                )
            token_ids[i, : len(ids)] = ids
            padding_mask[i, : len(ids)] = True
            trained[i, : len(ids)] = is_trained
        return token_ids, padding_mask, trained

    def get_config(self):
        config = super().get_config()
        del config["add_start_token"], config["add_end_token"]
        return {
            **config,
            "num_image_tokens": self.num_image_tokens,
            "max_images_per_prompt": self.max_images_per_prompt,
            "template": self.template,
        }
