"""`TextFormat`: the record format of text families, and the base of the others."""

import keras
import numpy as np

from keras_betakd.preprocessing import image_inputs
from keras_betakd.preprocessing.image_inputs import layer_settings

# The inputs that hold pictures, of all families.
IMAGE_KEYS = {"images", "pixel_values", "pixel_position_ids", "image_grid_thw"}


class TextFormat:
    """A family that takes text alone; the base of the others.

    Args:
        preprocessor: the family's keras-hub preprocessor.

    Attributes:
        image_keys: the inputs that hold pictures.
        mark: the text that announces a picture, if the family has one.
        sees_whole_prompt: whether prompt tokens see each other both ways.
        answer_length: the preprocessor's attribute that limits what is decoded.
        decodes_cached: whether keras-hub's `generate` can be relied on.
        takes_turns: whether a record may be a conversation of several turns.
    """

    image_keys = ()
    mark = None
    sees_whole_prompt = False
    answer_length = "sequence_length"
    decodes_cached = True
    takes_turns = False

    def __init__(self, preprocessor):
        self.preprocessor = preprocessor

    def prepared(self, prompts, images, ids):
        """Prompts with the family's marks, and pictures in its form."""
        image_inputs.expect_no_images(images, ids)
        return {"prompts": prompts}

    def image_form(self):
        """Two formats of one form make the same arrays of the same pictures."""
        converter = getattr(self.preprocessor, "image_converter", None)
        if converter is None:
            return None
        count = getattr(self.preprocessor, "max_images_per_prompt", None)
        return type(self), type(converter), count, layer_settings(converter)

    def training(self, inputs, sequence_length=None):
        """`(x, y, sample_weight)`: the response and its end mark are weighted."""
        import keras_hub

        base = keras_hub.models.CausalLMPreprocessor
        if type(self.preprocessor).call is not base.call:
            return self.preprocessor(inputs, sequence_length=sequence_length)
        # keras-hub's text families take one text and weigh all of it.
        tokenizer = self.preprocessor.tokenizer
        pair = tokenizer(inputs["prompts"]), tokenizer(inputs["responses"])
        return packed(self.preprocessor, *pair, sequence_length)

    def generation(self, inputs):
        """What `generate` and `generate_preprocess` take."""
        pictures_in = {k: inputs[k] for k in self.image_keys if k in inputs}
        if not pictures_in:
            return inputs["prompts"]
        return {"prompts": inputs["prompts"], **pictures_in}

    def prompt_lengths(self, inputs, limit):
        """Tokens of each prompt: dict of attribute that limits them to B ints.

        keras-hub's packers cut in silence, so the prompts are packed with more and
        more space, from `limit` on, until none fills it.
        """
        length = limit + 1
        while True:
            packed = self.preprocessor.generate_preprocess(
                self.generation(inputs), sequence_length=length
            )
            mask = keras.ops.convert_to_numpy(packed["padding_mask"])
            lengths = mask.astype("int64").sum(axis=-1)
            if lengths.max() < length:
                return {self.answer_length: lengths.tolist()}
            length *= 2

    def lengths(self, x, weight):
        """How much of each limit the records fill.

        Returns:
            Dict of attribute of the preprocessor to `(tokens, limit)`: int (B,), and
            the length of the sequences as they are.
        """
        end = weight.shape[1] - np.argmax(weight[:, ::-1] > 0, axis=1)
        return {"sequence_length": (end * (weight > 0).any(axis=1), weight.shape[1])}


def packed(preprocessor, prompts, responses, sequence_length=None):
    """Tokens of prompts and responses as `(x, y, sample_weight)`, y shifted by one.

    Args:
        preprocessor: whose special tokens and lengths to use.
        prompts, responses: token ids, one list each a record.
        sequence_length: the preprocessor's if `None`.
    """
    import keras_hub

    tokenizer = preprocessor.tokenizer
    start = tokenizer.start_token_id
    packer = keras_hub.layers.MultiSegmentPacker(
        # Some families have no start token, and then do not add it either.
        start_value=tokenizer.end_token_id if start is None else start,
        end_value=tokenizer.end_token_id,
        pad_value=tokenizer.pad_token_id,
        sep_value=[],
        sequence_length=(sequence_length or preprocessor.sequence_length) + 1,
    )
    token_ids, segment_ids = packer(
        (prompts, responses),
        add_start_value=preprocessor.add_start_token,
        add_end_value=preprocessor.add_end_token,
    )
    token_ids = keras.ops.convert_to_numpy(token_ids)
    is_response = keras.ops.convert_to_numpy(segment_ids) == 1
    # Up to the last token of the response: the id that pads (GPT-2's is that of "!")
    # may be a token of the text as well.
    padding_mask = np.maximum.accumulate(is_response[:, ::-1], axis=1)[:, ::-1]
    x = {"token_ids": token_ids[:, :-1], "padding_mask": padding_mask[:, :-1]}
    return x, token_ids[:, 1:], is_response[:, 1:]
