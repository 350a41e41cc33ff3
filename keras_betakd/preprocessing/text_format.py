"""`TextFormat`: the record format of text families, base class of the other formats."""

import dataclasses

import keras
import numpy as np

from keras_betakd.data.images import IMAGE_MARK
from keras_betakd.preprocessing import image_inputs
from keras_betakd.preprocessing.byte_pairs import encode, encode_all, rule_of
from keras_betakd.preprocessing.changed_preprocessor import changed_preprocessor
from keras_betakd.preprocessing.chat_packing import (
    expect_marks_in_text,
    packed_chats,
    with_earlier_answers,
)
from keras_betakd.preprocessing.chat_tokens import chat_tokens
from keras_betakd.preprocessing.image_inputs import layer_settings
from keras_betakd.preprocessing.segment_packer import SegmentPacker

# The model inputs that hold images, of all families.
IMAGE_KEYS = {"images", "pixel_values", "pixel_position_ids", "image_grid_thw"}


class TextFormat:
    """Converts records for a family that takes text only; base class of the formats.

    Args:
        preprocessor: the family's keras-hub preprocessor.

    Attributes:
        image_keys: the names of the model inputs that hold images.
        own_marks: the texts that mark an image in a prepared prompt.
        bidirectional_prompt: whether prompt tokens attend to later prompt tokens.
        answer_length: the attribute of the preprocessor that limits the length of the
            sequence that is decoded.
        decodes_cached: whether keras-hub's `generate`, which caches keys and values,
            is correct for the family.
        packs_prompts: whether `generate` is given prompts as arrays even without a chat
            template, since the preprocessor would write its own, or tokenize them
            otherwise than they are trained.
        takes_turns: whether a record may be a conversation of several turns.
        repeats_prompt: whether what `generate` decodes begins with the prompt.
    """

    image_keys: tuple[str, ...] = ()
    own_marks: tuple[str, ...] = ()
    bidirectional_prompt = False
    answer_length = "sequence_length"
    decodes_cached = True
    takes_turns = False
    repeats_prompt = True

    def __init__(self, preprocessor):
        self.preprocessor = preprocessor

    @property
    def chat_form(self):
        """How chats are given to the family: as `"ids"`, or as `"text"`.

        Where keras-hub's preprocessor packs tokens, images and masks at once, it takes
        text alone. `None` where no chat template is known.
        """
        import keras_hub

        base = keras_hub.models.CausalLMPreprocessor
        if not isinstance(self.preprocessor, base):
            return None
        return "ids" if type(self.preprocessor).call is base.call else "text"

    @property
    def packs_prompts(self):
        return self.chat_form == "ids" and self._splits

    @property
    def _splits(self):
        """Whether texts are split by a published rule that keras-hub does not apply."""
        return rule_of(self.preprocessor.tokenizer) is not None

    @property
    def marks_of_images(self):
        """All texts that mark an image in the prompt of a record."""
        takes_images = getattr(self.preprocessor, "image_converter", None) is not None
        return (*self.own_marks, IMAGE_MARK) if takes_images else ()

    def token_ids(self, text):
        """The token ids of a text, special tokens included: a list of ints."""
        return encode(self.preprocessor.tokenizer, text)

    def prepared(self, prompts, images, ids):
        """The records as the family's keras-hub preprocessor takes them.

        Args:
            prompts: list of strings, or of lists of strings if `takes_turns`.
            images: list with a list of (H, W, 3) arrays for each record.
            ids: strings that name the records in errors.

        Returns:
            Dict of `"prompts"`, with the family's marks, and images in its form.
        """
        image_inputs.expect_no_images(images, ids)
        return {"prompts": prompts}

    @property
    def mark_text(self):
        """What is written in a prompt for an image."""
        return IMAGE_MARK

    def marked(self, chat):
        """A `Chat` with the family's own marks of images."""
        segments = [
            (t.replace(IMAGE_MARK, self.mark_text), w) for t, w in chat.segments
        ]
        return dataclasses.replace(chat, segments=tuple(segments))

    def without_start(self, chat):
        """The prompt of a `Chat` as `prepared` takes it.

        The start token is left out where keras-hub's packer puts it.
        """
        if self.chat_form != "text":
            return chat.prompt
        expect_marks_in_text(chat.template, self)
        return chat.prompt.removeprefix(self.preprocessor.tokenizer.start_token or "")

    def chat_tokens(self, inputs):
        """The `ChatTokens` of the chats in what `model_inputs` returned."""
        tokenizer = self.preprocessor.tokenizer
        return [chat_tokens(chat, tokenizer) for chat in inputs["chats"]]

    def image_form(self):
        """A value that is equal for formats that make equal arrays of equal images.

        `None` for a preprocessor without image converter.
        """
        converter = getattr(self.preprocessor, "image_converter", None)
        if converter is None:
            return None
        count = getattr(self.preprocessor, "max_images_per_prompt", None)
        return type(self), type(converter), count, layer_settings(converter)

    def training(self, inputs, sequence_length=None):
        """`(x, y, sample_weight)` of records from `model_inputs`, y shifted by one.

        The response and its end mark have weight, and nothing else.
        """
        if "chats" in inputs:
            return self._chat_training(inputs, sequence_length)
        if self.chat_form != "ids":
            return self._packed_by_hub(inputs, sequence_length)
        # keras-hub's text families take one text and give all of it weight.
        return packed(self.preprocessor, *self._pair(inputs), sequence_length)

    def _pair(self, inputs):
        """The token ids of prompts and responses: two lists of lists."""
        tokenizer = self.preprocessor.tokenizer
        return [encode_all(tokenizer, inputs[k]) for k in ("prompts", "responses")]

    def _chat_training(self, inputs, sequence_length):
        """`training` of chats, which end by their own mark instead of an end token."""
        if self.chat_form == "ids":
            chats = self.chat_tokens(inputs)
            return packed_chats(self.preprocessor, chats, sequence_length)
        rest = {key: value for key, value in inputs.items() if key != "chats"}
        x, y, weight = self._packed_by_hub(
            rest, sequence_length, add_start_token=True, add_end_token=False
        )
        return x, y, with_earlier_answers(inputs["chats"], y, weight, self)

    def _packed_by_hub(self, inputs, sequence_length, **changes):
        """What keras-hub's preprocessor makes, with some of its settings changed."""
        preprocessor = changed_preprocessor(self.preprocessor, **changes)
        return preprocessor(inputs, sequence_length=sequence_length)

    def resized_images(self, images):
        """Images as the family's converter resizes them, not scaled.

        For another model with an equal `image_form`, which need not resize them again.

        Args:
            images: list of images of each record.
        """
        return images

    def generation(self, inputs):
        """The argument of `generate` and `generate_preprocess`, from `model_inputs`."""
        images = {k: inputs[k] for k in self.image_keys if k in inputs}
        if not images:
            return inputs["prompts"]
        return {"prompts": inputs["prompts"], **images}

    def gives_ids(self, inputs):
        """Whether `generate` is given token ids of these inputs, not their texts."""
        return self.packs_prompts or ("chats" in inputs and self.chat_form == "ids")

    def packs_once(self, inputs):
        """Whether `hub_packed` of these inputs is what `generate` is given."""
        plain = type(self).prompt_lengths is TextFormat.prompt_lengths
        return plain and not self.gives_ids(inputs)

    def hub_packed(self, inputs, length):
        """What keras-hub packs of inputs: NumPy arrays, padded to `length`."""
        packed = self.preprocessor.generate_preprocess(
            self.generation(inputs), sequence_length=length
        )
        return {k: keras.ops.convert_to_numpy(v) for k, v in packed.items()}

    def step_inputs(self, inputs, length):
        """The inputs of the model's `generate_step`, padded to `length`: NumPy arrays.

        Args:
            inputs: what `prompt_inputs` returned.
            length: the number of tokens of prompt and answer.
        """
        if self.gives_ids(inputs):
            return self.packed_prompts(inputs, length)
        return self.hub_packed(inputs, length)

    def packed_prompts(self, inputs, length):
        """The inputs of the model's `generate_step`, prompts padded to `length`."""
        prompts = self._prompt_ids(inputs)
        padding = self.preprocessor.tokenizer.pad_token_id
        ids = np.full((len(prompts), length), padding, "int32")
        mask = np.zeros(ids.shape, bool)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)] = prompt
            mask[i, : len(prompt)] = True
        return {"token_ids": ids, "padding_mask": mask}

    def _prompt_ids(self, inputs):
        """The token ids of each prompt, as it is trained: a list of lists."""
        if "chats" in inputs:
            return [chat.ids for chat in self.chat_tokens(inputs)]
        start = start_ids(self.preprocessor)
        return [start + self.token_ids(prompt) for prompt in inputs["prompts"]]

    def prompt_lengths(self, inputs, limit):
        """The number of tokens of each prompt.

        keras-hub's packers cut silently, so the prompts are packed in longer and longer
        sequences, from `limit` on, until none is full.

        Returns:
            Dict of the preprocessor's attribute that limits the number to B ints.
        """
        if self.gives_ids(inputs):
            return {self.answer_length: [len(p) for p in self._prompt_ids(inputs)]}
        return {self.answer_length: self.packed_with_lengths(inputs, limit)[1]}

    def packed_with_lengths(self, inputs, limit):
        """`hub_packed`, with padding behind all prompts, and the tokens of each.

        Returns:
            `(packed, lengths)`: dict of arrays, list of B ints.
        """
        length = limit + 1
        while True:
            packed = self.hub_packed(inputs, length)
            lengths = packed["padding_mask"].astype("int64").sum(axis=-1)
            if lengths.max() < length:
                return packed, lengths.tolist()
            length *= 2

    def lengths(self, x, weight):
        """The number of tokens of each packed record, end mark included.

        Args:
            x, weight: inputs and sample weights as `training` returns them.

        Returns:
            Dict of the preprocessor's attribute that limits the number to
            `(tokens, limit)`: int (B,), and the length of the packed sequences.
        """
        end = weight.shape[1] - np.argmax(weight[:, ::-1] > 0, axis=1)
        return {"sequence_length": (end * (weight > 0).any(axis=1), weight.shape[1])}


def cut(packed, length):
    """What `hub_packed` returned, in shorter sequences that hold all prompts."""
    width = packed["padding_mask"].shape[1]
    return {
        key: value[:, :length] if value.shape[1:2] == (width,) else value
        for key, value in packed.items()
    }


def start_ids(preprocessor):
    """The token ids that a row begins with: one, or none.

    Some families, such as Qwen, have no start token, although keras-hub's preprocessors
    are set to add it.
    """
    start = preprocessor.tokenizer.start_token_id
    return [start] if preprocessor.add_start_token and start is not None else []


def packed(preprocessor, prompts, responses, sequence_length=None):
    """Packs prompts and responses to `(x, y, sample_weight)`, y shifted by one.

    Args:
        preprocessor: keras-hub preprocessor with the special tokens and lengths to use.
        prompts, responses: lists of token ids, one for each record.
        sequence_length: length of the sequences; the preprocessor's if `None`.
    """
    tokenizer = preprocessor.tokenizer
    packer = SegmentPacker(
        (sequence_length or preprocessor.sequence_length) + 1,
        start_value=start_ids(preprocessor),
        end_value=[tokenizer.end_token_id],
        pad_value=tokenizer.pad_token_id,
    )
    token_ids, segment_ids = packer(
        (prompts, responses),
        add_end_value=preprocessor.add_end_token,
    )
    is_response = segment_ids == 1
    # Up to the last token of the response, not by the id that pads, which may be that
    # of a token of the text as well (GPT-2's is that of "!").
    padding_mask = np.maximum.accumulate(is_response[:, ::-1], axis=1)[:, ::-1]
    x = {"token_ids": token_ids[:, :-1], "padding_mask": padding_mask[:, :-1]}
    return x, token_ids[:, 1:], is_response[:, 1:]
