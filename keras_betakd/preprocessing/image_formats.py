"""The record formats of keras-hub's image-text families: marks, images, packing.

`format_of` finds the format of a preprocessor.
"""

import functools

import keras
import numpy as np

from keras_betakd.data.images import IMAGE_MARK
from keras_betakd.preprocessing import image_inputs
from keras_betakd.preprocessing.changed_preprocessor import changed_preprocessor
from keras_betakd.preprocessing.qwen3_5_format import Qwen3_5Format
from keras_betakd.preprocessing.qwen_vl_format import QwenVLFormat
from keras_betakd.preprocessing.text_format import TextFormat, packed


class MarkedFormat(TextFormat):
    """Several images per record, each at its mark in the prompt: Gemma 3 and 3n."""

    image_keys: tuple[str, ...] = ("images",)

    @property
    def mark(self):
        return self.preprocessor.start_of_image_token

    @property
    def own_marks(self):
        return () if self.preprocessor.image_converter is None else (self.mark,)

    @property
    def mark_text(self):
        return self.own_marks[0] if self.own_marks else IMAGE_MARK

    def prepared(self, prompts, images, ids):
        if self.preprocessor.image_converter is None:
            return super().prepared(prompts, images, ids)
        prompts = [p.replace(IMAGE_MARK, self.mark) for p in prompts]
        limit = self.preprocessor.max_images_per_prompt
        image_inputs.check_marks(prompts, images, self.mark, limit, ids)
        return {"prompts": prompts, **self._image_inputs(images, limit)}

    def _image_inputs(self, images, limit):
        """The model inputs of the images of all records, up to `limit` per record."""
        converter = self.preprocessor.image_converter
        size = (limit, *converter.image_size, 3)
        return {"images": image_inputs.stack_padded(images, converter, size)}

    def resized_images(self, images):
        return image_inputs.all_resized(images, self.preprocessor.image_converter)

    def _packed_by_hub(self, inputs, sequence_length, **changes):
        if not self._takes_small(inputs):
            return super()._packed_by_hub(inputs, sequence_length, **changes)
        preprocessor, small = self._with_small_images(inputs, **changes)
        x, y, weight = preprocessor(small, sequence_length=sequence_length)
        return self._with_images(x, inputs), y, weight

    def hub_packed(self, inputs, length):
        if not self._takes_small(inputs):
            return super().hub_packed(inputs, length)
        preprocessor, small = self._with_small_images(inputs)
        packed = TextFormat.hub_packed(type(self)(preprocessor), small, length)
        return self._with_images(packed, inputs)

    def _with_images(self, packed, inputs):
        converter = self.preprocessor.image_converter
        return {**packed, "images": image_inputs.scaled(inputs["images"], converter)}

    def _takes_small(self, inputs):
        converter = self.preprocessor.image_converter
        return "images" in inputs and image_inputs.is_scaled_alone(converter)

    def _with_small_images(self, inputs, **changes):
        """`(preprocessor, inputs)` for the text; keras-hub copies images many times."""
        converter = _small(type(self.preprocessor.image_converter))
        preprocessor = changed_preprocessor(
            self.preprocessor, image_converter=converter, **changes
        )
        small = np.zeros((*inputs["images"].shape[:2], 1, 1, 3), "float32")
        return preprocessor, {**inputs, "images": small}


@functools.lru_cache
def _small(converter_class):
    return converter_class(image_size=(1, 1))


class PatchFormat(MarkedFormat):
    """Gemma 4: the number of patches depends on the image's shape, up to a maximum.

    Missing images are zeros, whose patches have position -1.
    """

    image_keys = ("pixel_values", "pixel_position_ids")
    mark = "<|image|>"

    def resized_images(self, images):
        return images  # patches depend on the size of the image

    def _image_inputs(self, images, limit):
        converter = self.preprocessor.image_converter
        tokens = self.preprocessor.num_vision_tokens_per_image
        if converter.max_soft_tokens != tokens:
            raise ValueError(
                "The preprocessor has room for num_vision_tokens_per_image="
                f"{tokens}, but its image_converter makes max_soft_tokens="
                f"{converter.max_soft_tokens}. keras-hub's preset files do not hold "
                "the latter: give the loaded preprocessor a new "
                "`Gemma4ImageConverter` with the sizes it was made with."
            )
        patches = tokens * converter.pooling_kernel_size**2
        width = 3 * converter.patch_size**2
        shape = (len(images), limit, patches)
        values = np.zeros((*shape, width), dtype="float32")
        places = np.full((*shape, 2), -1, dtype="int32")
        for i, found in enumerate(images):
            for j, image in enumerate(found):
                parts = image_inputs.converted(image[None], converter)
                values[i, j] = parts["pixel_values"][0]
                places[i, j] = parts["pixel_position_ids"][0]
        return {"pixel_values": values, "pixel_position_ids": places}

    def image_form(self):
        converter = self.preprocessor.image_converter
        if converter is None:
            return None
        # These are not part of the converter's config.
        sizes = converter.max_soft_tokens, converter.pooling_kernel_size
        return *super().image_form(), *sizes

    def training(self, inputs, sequence_length=None):
        x, y, weight = super().training(inputs, sequence_length)
        if self.preprocessor.audio_converter is None:
            # Empty inputs for the audio encoder, which this model does not have.
            x = {k: v for k, v in x.items() if not k.startswith("audio_")}
        return x, y, weight


class PrefixFormat(TextFormat):
    """PaliGemma: one image per record, at a fixed place; prompts have no mark."""

    image_keys = ("images",)
    bidirectional_prompt = True
    chat_form = None

    def prepared(self, prompts, images, ids):
        converter = self.preprocessor.image_converter
        if converter is None:
            return super().prepared(prompts, images, ids)
        image_inputs.expect_one_image(prompts, images, ids)
        return {
            "prompts": [image_inputs.drop_mark(p) for p in prompts],
            "images": np.stack([image_inputs.resized(i[0], converter) for i in images]),
        }

    def resized_images(self, images):
        return image_inputs.all_resized(images, self.preprocessor.image_converter)


class BLIP2Format(PrefixFormat):
    """BLIP-2 with OPT, whose preprocessor takes one text and gives all of it weight."""

    bidirectional_prompt = False

    @property
    def packs_prompts(self):
        return self._splits

    def training(self, inputs, sequence_length=None):
        pair = self._pair(inputs)
        x, y, weight = packed(self.preprocessor, *pair, sequence_length)
        return {**x, **self._converted(inputs)}, y, weight

    def _converted(self, inputs):
        if "images" not in inputs:
            return {}
        return {"images": self.preprocessor.image_converter(inputs["images"])}

    def generation(self, inputs):
        images = {"images": inputs["images"]} if "images" in inputs else {}
        return {"text": inputs["prompts"], **images}

    def packed_prompts(self, inputs, length):
        images = self._converted(inputs)
        images = {k: keras.ops.convert_to_numpy(v) for k, v in images.items()}
        return {**super().packed_prompts(inputs, length), **images}


class BLIP2Seq2SeqFormat(PrefixFormat):
    """BLIP-2 with Flan-T5: prompts go to its encoder, responses to its decoder."""

    bidirectional_prompt = False
    chat_form = None
    answer_length = "decoder_sequence_length"
    repeats_prompt = False

    def prompt_lengths(self, inputs, limit):
        tokens = [len(self.preprocessor.tokenizer(p)) + 1 for p in inputs["prompts"]]
        return {
            "encoder_sequence_length": tokens,
            "decoder_sequence_length": [1] * len(tokens),  # its start token
        }

    def _named(self, inputs):
        names = {"prompts": "encoder_text", "responses": "decoder_text"}
        return {names.get(key, key): value for key, value in inputs.items()}

    def training(self, inputs, sequence_length=None):
        return self.preprocessor(
            self._named(inputs),
            encoder_sequence_length=sequence_length,
            decoder_sequence_length=sequence_length,
        )

    def generation(self, inputs):
        return self._named({k: v for k, v in inputs.items() if k != "responses"})

    def lengths(self, x, weight):
        decoder = super().lengths(x, weight)["sequence_length"]
        mask = np.asarray(x["encoder_padding_mask"])
        encoder = mask.astype("int32").sum(axis=1), mask.shape[1]
        return {
            "encoder_sequence_length": encoder,
            "decoder_sequence_length": decoder,
        }


class MobileVLMFormat(MarkedFormat):
    """MobileVLM V2 and LLaVA-1.5: records may be conversations.

    Their preprocessor checks the number of images and marks, resizes the images, and
    cuts nothing, so records are passed on unchanged.
    """

    takes_turns = True
    mark = IMAGE_MARK
    chat_form = None  # the preprocessor has a template of its own

    def token_ids(self, text):
        return self.preprocessor.tokenizer.encode_prompt(text)[1:]

    def prepared(self, prompts, images, ids):
        return {"prompts": prompts, "images": images, "names": ids}

    def generation(self, inputs):
        earlier = {k: inputs[k] for k in ("responses", "names") if k in inputs}
        return {**super().generation(inputs), **earlier}

    def prompt_lengths(self, inputs, limit):
        return {self.answer_length: self.preprocessor.prompt_lengths(inputs)}


_FORMATS = {
    "BLIP2CausalLMPreprocessor": BLIP2Format,
    "BLIP2Seq2SeqLMPreprocessor": BLIP2Seq2SeqFormat,
    "Gemma4CausalLMPreprocessor": PatchFormat,
    "MobileVLMCausalLMPreprocessor": MobileVLMFormat,
    "Qwen3_5CausalLMPreprocessor": Qwen3_5Format,
    "Qwen3_5MoeCausalLMPreprocessor": Qwen3_5Format,
    "QwenVLCausalLMPreprocessor": QwenVLFormat,
}


def format_of(preprocessor):
    """The record format of a keras-hub preprocessor's family.

    It is found by the name of the preprocessor's class or of one of its bases, and for
    other classes by whether, and how many, images they take.

    Args:
        preprocessor: a keras-hub preprocessor of a `CausalLM` or `Seq2SeqLM`.

    Returns:
        A `keras_betakd.preprocessing.text_format.TextFormat`.
    """
    for base in type(preprocessor).__mro__:
        if base.__name__ in _FORMATS:
            return _FORMATS[base.__name__](preprocessor)
    if getattr(preprocessor, "image_converter", None) is None:
        return TextFormat(preprocessor)
    if hasattr(preprocessor, "max_images_per_prompt"):
        return MarkedFormat(preprocessor)
    return PrefixFormat(preprocessor)
