"""Turns neutral records into what one model's own preprocessor takes.

A record is neutral: its pictures have any size, and a picture's place in the
prompt is marked `<image>`. Each family wants its own mark, its own picture size
and its own container. keras-hub's preprocessors would do the rest, but for two
traps that this module steps around: lists of pictures go through a very slow
conversion, and pictures of different size are padded to the largest of the batch
before they are resized, so that a record would depend on its neighbours.
"""

import functools

import keras
import numpy as np

from keras_betakd.data.images import IMAGE_MARK


def model_inputs(preprocessor, records):
    """The records in the form that `preprocessor` takes.

    Args:
        preprocessor: a keras-hub `CausalLMPreprocessor`.
        records: dict of `"prompts"` (B strings), optional `"responses"` (B
            strings), optional `"images"` (a (B, H, W, 3) array, or for each record
            a picture, a list of pictures, or `None`) and optional `"ids"`, which
            errors then name.

    Returns:
        Dict with lists of strings and, for a model that sees, `"images"` as one
        float32 array: (B, N, H, W, 3) for families with several pictures a record,
        where missing ones are zero and unmarked, (B, H, W, 3) for the others.

    Raises:
        ValueError: pictures for a model that takes none, fewer or more pictures
            than marks, more pictures than the model takes. The record is named.
    """
    prompts = [as_text(p) for p in records["prompts"]]
    ids = record_ids(records, len(prompts))
    images = _images_by_record(records.get("images"), len(prompts), ids)
    result = {}
    converter = getattr(preprocessor, "image_converter", None)
    if converter is None:
        _expect_no_images(images, ids)
    elif hasattr(preprocessor, "max_images_per_prompt"):
        mark = preprocessor.start_of_image_token
        prompts = [p.replace(IMAGE_MARK, mark) for p in prompts]
        _check_marks(prompts, images, mark, preprocessor.max_images_per_prompt, ids)
        size = (preprocessor.max_images_per_prompt, *converter.image_size, 3)
        result["images"] = _stack_padded(images, converter, size)
    else:
        # One picture a record, at a fixed place: the prompt carries no mark.
        prompts = [_drop_mark(p) for p in prompts]
        _expect_one_image(images, ids)
        result["images"] = np.stack([_resize(i[0], converter) for i in images])
    result["prompts"] = prompts
    if "responses" in records:
        result["responses"] = [as_text(r) for r in records["responses"]]
    return result


def training_inputs(preprocessor, inputs, sequence_length=None):
    """Runs a preprocessor on `model_inputs`: `(x, y, sample_weight)`, y shifted by one.

    keras-hub's text families take one text and weigh all of it; for them the response
    is marked here as its multimodal families do, so that the prompt is never trained.
    """
    import keras_hub

    base = keras_hub.models.CausalLMPreprocessor
    if type(preprocessor).call is not base.call:
        return preprocessor(inputs, sequence_length=sequence_length)
    tokenizer = preprocessor.tokenizer
    length = sequence_length or preprocessor.sequence_length
    start = tokenizer.start_token_id
    packer = keras_hub.layers.MultiSegmentPacker(
        # Some families have no start token, and then do not add it either.
        start_value=tokenizer.end_token_id if start is None else start,
        end_value=tokenizer.end_token_id,
        pad_value=tokenizer.pad_token_id,
        sep_value=[],
        sequence_length=length + 1,
    )
    token_ids, segment_ids = packer(
        (tokenizer(inputs["prompts"]), tokenizer(inputs["responses"])),
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


def as_text(value):
    """A Python string out of a string, bytes, or a scalar array of either."""
    value = value.item() if hasattr(value, "item") else value
    if hasattr(value, "numpy"):
        value = value.numpy()
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def record_ids(records, size):
    """How to name each record in a message: its id, or its place in the batch."""
    if records.get("ids") is None:
        return [f"number {i} of the batch" for i in range(size)]
    return [f"'{as_text(i)}'" for i in records["ids"]]


def _images_by_record(images, size, ids):
    if images is None:
        return [[] for _ in range(size)]
    if hasattr(images, "to_list"):  # tf.RaggedTensor
        images = [row for row in images]
    if len(images) != size:
        raise ValueError(
            f"`images` must have one entry for each of the {size} prompts (an "
            f"empty list for a record without picture). Received: {len(images)}"
        )
    return [_images_of_record(i, name) for i, name in zip(images, ids, strict=True)]


def _images_of_record(images, name):
    if images is None:
        return []
    if not isinstance(images, (list, tuple)):
        images = np.asarray(images)
        images = [images] if images.ndim == 3 else list(images)
    images = [np.asarray(image) for image in images]
    for image in images:
        if image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"Record {name}: a picture must be a (height, width, 3) array with "
                "values from 0 to 255; `keras_betakd.data.load_image` makes one of "
                f"any file. Received: shape={image.shape}, dtype={image.dtype}"
            )
    return images


def _drop_mark(prompt):
    return prompt.replace(IMAGE_MARK + "\n", "").replace(IMAGE_MARK, "")


def _expect_no_images(images, ids):
    for found, name in zip(images, ids, strict=True):
        if found:
            raise ValueError(
                f"Record {name} has {len(found)} picture(s), but this model's "
                "preprocessor has no `image_converter`: it would never see them. "
                "Use a model that takes images, or records without."
            )


def _expect_one_image(images, ids):
    for found, name in zip(images, ids, strict=True):
        if len(found) != 1:
            raise ValueError(
                f"Record {name} has {len(found)} pictures, but this model takes "
                "exactly one with every prompt. Leave the record out, or use a "
                "family that also takes text alone (for example Gemma 3)."
            )


def _check_marks(prompts, images, mark, limit, ids):
    for prompt, found, name in zip(prompts, images, ids, strict=True):
        marks = prompt.count(mark)
        if marks != len(found):
            raise ValueError(
                f"Record {name} has {len(found)} picture(s) and {marks} image "
                f"mark(s) in its prompt. Put one '{IMAGE_MARK}' (or the model's "
                f"own '{mark}') where each picture belongs. Received: "
                f"prompt={prompt!r}"
            )
        if len(found) > limit:
            raise ValueError(
                f"Record {name} has {len(found)} pictures, but the preprocessor "
                f"takes at most max_images_per_prompt={limit}."
            )


def _stack_padded(images, converter, size):
    stacked = np.zeros((len(images), *size), dtype="float32")
    for i, found in enumerate(images):
        for j, image in enumerate(found):
            stacked[i, j] = _resize(image, converter)
    return stacked


def _resize(image, converter):
    """A picture in the model's size, not yet scaled: float32, 0 to 255."""
    if image.shape[:2] == tuple(converter.image_size):
        return image.astype("float32")
    resize = _resizer(
        type(converter),
        tuple(converter.image_size),
        converter.interpolation,
        converter.antialias,
        converter.crop_to_aspect_ratio,
        converter.pad_to_aspect_ratio,
    )
    return np.asarray(resize(image.astype("float32")))


@functools.lru_cache
def _resizer(cls, image_size, interpolation, antialias, crop, pad):
    """The family's own way of resizing, as one graph for pictures of any size.

    keras-hub depends on TensorFlow for its preprocessing; a graph with free height
    and width is traced once, where `keras.ops` would compile again for each size.
    """
    import tensorflow as tf

    converter = cls(
        image_size=image_size,
        interpolation=interpolation,
        antialias=antialias,
        crop_to_aspect_ratio=crop,
        pad_to_aspect_ratio=pad,
    )
    signature = [tf.TensorSpec([None, None, 3], "float32")]
    graph = tf.function(converter, input_signature=signature)

    def resize(image):
        with tf.device("cpu"):
            return graph(image)

    return resize
