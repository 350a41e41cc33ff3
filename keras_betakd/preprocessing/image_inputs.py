"""Checks the image marks of records, resizes their images and stacks them.

keras-hub's preprocessors do this too, but convert lists of images very slowly, and pad
images of different size to the largest of the batch before they resize them, so that a
record would depend on the others of its batch.
"""

import functools

import numpy as np

from keras_betakd.data.images import IMAGE_MARK

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""The mean that CLIP's images are normalised with, of the three channels."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""The standard deviation likewise."""


def drop_mark(prompt):
    """The prompt without image marks, each removed with a line break after it."""
    return prompt.replace(IMAGE_MARK + "\n", "").replace(IMAGE_MARK, "")


def expect_no_images(images, ids):
    """Raises a `ValueError` if a record has images."""
    for found, name in zip(images, ids, strict=True):
        if found:
            raise ValueError(
                f"Record {name} has {len(found)} image(s), but this model's "
                "preprocessor has no `image_converter`: it would never see them. "
                "Use a model that takes images, records without, or, for a student "
                "that is to answer without them, "
                "`DistillationPreprocessor(..., blind_student=True)`."
            )


def expect_no_mark_without_image(prompts, ids):
    """Raises a `ValueError` if a prompt marks an image for a model that takes none."""
    for prompt, name in zip(prompts, ids, strict=True):
        # A string, or for a conversation a list of them.
        if any(IMAGE_MARK in text for text in np.atleast_1d(prompt)):
            raise ValueError(
                f"Record {name} has the image mark '{IMAGE_MARK}' in its prompt, but "
                "this model takes no images: the mark would be read as text. Take it "
                f"out. Received: prompt={prompt!r}"
            )


def expect_one_image(prompts, images, ids):
    """Raises a `ValueError` unless each record has one image and at most one mark."""
    for prompt, found, name in zip(prompts, images, ids, strict=True):
        if len(found) != 1:
            raise ValueError(
                f"Record {name} has {len(found)} images, but this model takes "
                "exactly one with every prompt. Leave the record out, or use a "
                "family that also takes text alone (for example Gemma 3)."
            )
        if prompt.count(IMAGE_MARK) > 1:
            raise ValueError(
                f"Record {name} has 1 image and {prompt.count(IMAGE_MARK)} image "
                "marks in its prompt. Put one or none: this model has a fixed place "
                f"for its image. Received: prompt={prompt!r}"
            )


def check_marks(prompts, images, mark, limit, ids):
    """Raises a `ValueError` unless each prompt has one mark for each of its images.

    Args:
        prompts: B strings.
        images: list of images of each record.
        mark: the text that marks an image in a prompt.
        limit: the maximum number of images per record; `None` for any number.
        ids: B strings that name the records in errors.
    """
    for prompt, found, name in zip(prompts, images, ids, strict=True):
        marks = prompt.count(mark)
        if marks != len(found):
            raise ValueError(
                f"Record {name} has {len(found)} image(s) and {marks} image "
                f"mark(s) in its prompt. Put one '{IMAGE_MARK}' (or the model's "
                f"own '{mark}') where each image belongs. Received: "
                f"prompt={prompt!r}"
            )
        if limit is not None and len(found) > limit:
            raise ValueError(
                f"Record {name} has {len(found)} images, but the preprocessor "
                f"takes at most max_images_per_prompt={limit}."
            )


def stack_padded(images, converter, size):
    """Resizes and stacks the images of B records, padded with zeros: (B, *size).

    Args:
        images: list of images of each record.
        converter: a keras-hub `ImageConverter`.
        size: (N, H, W, 3) for up to N images per record.
    """
    stacked = np.zeros((len(images), *size), dtype="float32")
    for i, found in enumerate(images):
        for j, image in enumerate(found):
            stacked[i, j] = resized(image, converter)
    return stacked


def resized(image, converter):
    """An image resized to a converter's size, not scaled: float32, 0 to 255."""
    if image.shape[:2] == tuple(converter.image_size):
        return image.astype("float32", copy=False)
    resize = _resizer(
        image.dtype.name,
        type(converter),
        tuple(converter.image_size),
        converter.interpolation,
        converter.antialias,
        converter.crop_to_aspect_ratio,
        converter.pad_to_aspect_ratio,
    )
    return np.asarray(resize(image))


@functools.lru_cache
def _resizer(dtype, cls, image_size, interpolation, antialias, crop, pad):
    """A converter's own resizing as a TensorFlow graph for images of any size.

    keras-hub depends on TensorFlow for its preprocessing. A graph with unknown height
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
    signature = [tf.TensorSpec([None, None, 3], dtype)]

    @functools.partial(tf.function, input_signature=signature)
    def graph(image):
        # Here, since a large image takes four times the memory as float32.
        return converter(tf.cast(image, "float32"))

    def resize(image):
        with tf.device("cpu"):
            return graph(image)

    return resize


def all_resized(images, converter):
    """The images of each record resized, where `resized` is what the converter does."""
    if converter is None or not is_scaled_alone(converter):
        return images
    return [[resized(image, converter) for image in found] for found in images]


def is_scaled_alone(converter):
    """Whether a converter resizes, scales and shifts images, and nothing else."""
    import keras_hub

    base = keras_hub.layers.ImageConverter
    is_float32 = converter.compute_dtype == "float32"
    return type(converter).call is base.call and is_float32


def scaled(images, converter):
    """What a converter makes of images of its size: scaled and shifted, float32."""
    for value, apply in ((converter.scale, np.multiply), (converter.offset, np.add)):
        if value is not None:
            images = apply(images, np.asarray(value, "float32"))
    return images


def converted(image, converter):
    """Applies a converter that returns several arrays, such as patches and positions.

    Args:
        image: (H, W, 3) or (B, H, W, 3), 0 to 255.
        converter: a keras-hub `ImageConverter` whose result depends on the image's
            shape.

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
    """The config of a layer without `name` and `trainable`, which change no output."""
    return {
        k: v for k, v in layer.get_config().items() if k not in ("name", "trainable")
    }


def normalised(image, mean, std):
    """An image as float32 (x / 255 - mean) / std.

    Args:
        image: (H, W, 3) uint8.
        mean, std: of the three channels, of values from 0 to 1.

    Example:

    >>> white = np.full((1, 1, 3), 255, "uint8")
    >>> normalised(white, [0.5, 0, 0], [0.5, 1, 0.5]).tolist()
    [[[1.0, 1.0, 2.0]]]
    """
    values = np.asarray(image, "float32") / np.float32(255)
    return (values - np.asarray(mean, "float32")) / np.asarray(std, "float32")


# The axes along which images of any size differ from batch to batch.
_OPEN_AXES = {"pixel_values": (1, 2), "image_grid_thw": (1,)}


def with_other_sizes(batch, first):
    """A batch of no use but for its shapes: images of any size have other sizes.

    Args:
        batch: `(x, y, sample_weight)`, of which x holds the inputs of both models.
        first: another such batch, whose sizes differ from those returned.

    Returns:
        The batch with more images, and more patches, in the inputs of models whose
        images have any size; itself if there are none.
    """
    if not isinstance(batch, tuple) or not isinstance(batch[0], dict):
        return batch
    (x, *rest), others = batch, first[0]
    found = {key: _with_other_sizes(value, others.get(key)) for key, value in x.items()}
    return (found, *rest)


def _with_other_sizes(inputs, others):
    if not isinstance(inputs, dict) or "image_grid_thw" not in inputs:
        return inputs
    longer = {k: _longer(inputs[k], others[k], axes) for k, axes in _OPEN_AXES.items()}
    return {**inputs, **longer}


def _longer(array, other, axes):
    """An array with zeros behind, so that along these axes its size is another one."""
    more = [0] * array.ndim
    for axis in axes:
        more[axis] = 1 + (array.shape[axis] + 1 == other.shape[axis])
    return np.pad(array, [(0, count) for count in more])
