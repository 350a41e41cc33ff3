"""Pictures of raw records: read, counted against their marks, resized, stacked.

keras-hub's preprocessors would do it, but for two traps that this module steps around:
lists of pictures go through a very slow conversion, and pictures of different size are
padded to the largest of the batch before they are resized, so that a record would
depend on its neighbours.
"""

import functools

import numpy as np

from keras_betakd.data.images import IMAGE_MARK


def images_by_record(images, size, ids):
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


def drop_mark(prompt):
    return prompt.replace(IMAGE_MARK + "\n", "").replace(IMAGE_MARK, "")


def expect_no_images(images, ids):
    for found, name in zip(images, ids, strict=True):
        if found:
            raise ValueError(
                f"Record {name} has {len(found)} picture(s), but this model's "
                "preprocessor has no `image_converter`: it would never see them. "
                "Use a model that takes images, records without, or, for a student "
                "that is to answer without them, "
                "`DistillationPreprocessor(..., blind_student=True)`."
            )


def expect_one_image(prompts, images, ids):
    for prompt, found, name in zip(prompts, images, ids, strict=True):
        if len(found) != 1:
            raise ValueError(
                f"Record {name} has {len(found)} pictures, but this model takes "
                "exactly one with every prompt. Leave the record out, or use a "
                "family that also takes text alone (for example Gemma 3)."
            )
        if prompt.count(IMAGE_MARK) > 1:
            raise ValueError(
                f"Record {name} has 1 picture and {prompt.count(IMAGE_MARK)} image "
                "marks in its prompt. Put one or none: this model has a fixed place "
                f"for its picture. Received: prompt={prompt!r}"
            )


def check_marks(prompts, images, mark, limit, ids):
    for prompt, found, name in zip(prompts, images, ids, strict=True):
        marks = prompt.count(mark)
        if marks != len(found):
            raise ValueError(
                f"Record {name} has {len(found)} picture(s) and {marks} image "
                f"mark(s) in its prompt. Put one '{IMAGE_MARK}' (or the model's "
                f"own '{mark}') where each picture belongs. Received: "
                f"prompt={prompt!r}"
            )
        if limit is not None and len(found) > limit:
            raise ValueError(
                f"Record {name} has {len(found)} pictures, but the preprocessor "
                f"takes at most max_images_per_prompt={limit}."
            )


def expect_no_mark_in(responses, mark, ids):
    for response, name in zip(responses, ids, strict=True):
        # A string, or for a conversation a list of them.
        if any(mark in text for text in np.atleast_1d(response)):
            raise ValueError(
                f"Record {name} has the image mark '{mark}' in its response, where no "
                "picture can stand: the model would learn to answer with one. "
                "`keras_betakd.data.neutralize_image_marks` takes its meaning away. "
                f"Received: response={response!r}"
            )


def stack_padded(images, converter, size):
    stacked = np.zeros((len(images), *size), dtype="float32")
    for i, found in enumerate(images):
        for j, image in enumerate(found):
            stacked[i, j] = resized(image, converter)
    return stacked


def resized(image, converter):
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


def converted(image, converter):
    """What a converter makes that gives more than a resized picture.

    Args:
        image: (H, W, 3) or (B, H, W, 3), 0 to 255.
        converter: a keras-hub `ImageConverter` whose result depends on the shape.

    Returns:
        Dict of NumPy arrays.
    """
    graph = _graph_of(converter, image.ndim, repr(layer_settings(converter)))
    return {k: np.asarray(v) for k, v in graph(image.astype("float32")).items()}


@functools.lru_cache(maxsize=16)
def _graph_of(converter, rank, _settings):
    import tensorflow as tf

    signature = [tf.TensorSpec([*[None] * (rank - 1), 3], "float32")]
    graph = tf.function(converter.call, input_signature=signature)

    def convert(image):
        with tf.device("cpu"):
            return graph(image)

    return convert


def layer_settings(layer):
    """The config of a layer, but for what says nothing of what it computes."""
    return {
        k: v for k, v in layer.get_config().items() if k not in ("name", "trainable")
    }
