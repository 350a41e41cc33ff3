"""Arrays and batches to train the easy-VQA teacher on (see `train_teacher.py`)."""

import keras
import numpy as np
from easy_vqa_data import COLORS, SHAPES

from keras_betakd.data import (
    IMAGE_MARK,
    load_image,
    load_scienceqa,
    scienceqa_prompt,
    scienceqa_response,
)

# Pixels become -1..1. The preset's image converter does the same.
PIXEL_SCALE = 1 / 127.5
PIXEL_OFFSET = -1.0

# A pixel this far from the background belongs to the shape.
BACKGROUND_TOLERANCE = 4


class Questions:
    """One split of the data, in memory.

    Attributes:
        prompts: The prompts, with Gemma's image mark.
        answers: The texts to answer with.
        skills: The kind of each question.
        images: `ShapeImages`; about ten questions share one.
        image_ids: For each question, the index of its image.
    """

    def __init__(self, directory, split, image_mark):
        records = load_scienceqa(directory, split)
        self.prompts = [
            scienceqa_prompt(r, form="llava-1.0").replace(IMAGE_MARK, image_mark)
            for r in records
        ]
        self.answers = [scienceqa_response(r, "text") for r in records]
        self.skills = np.array([r.skill for r in records])
        # Identified by their bytes, since the layout has one file for each question.
        known, self.image_ids = {}, np.zeros(len(records), "int32")
        for i, record in enumerate(records):
            with open(record.image, "rb") as file:
                self.image_ids[i] = known.setdefault(file.read(), len(known))
        self.images = ShapeImages(np.stack([load_image(data) for data in known]))

    def __len__(self):
        return len(self.prompts)


class ShapeImages:
    """Images of one shape each on a plain background.

    The answers stay right when the shape moves or is mirrored, so `draw` can make
    many different images of the few there are.
    """

    def __init__(self, pixels):
        self.pixels = pixels
        limits = np.array([_free_space(image) for image in pixels])
        self.lowest, self.highest = limits[:, 0], limits[:, 1]

    def draw(self, ids, rng=None):
        """Model inputs of some images: `(B, 1, height, width, 3)` floats.

        Args:
            ids: Indices of the images.
            rng: A NumPy generator to move and mirror with; `None` to do neither.
        """
        pixels = self.pixels[ids]
        if rng is not None:
            moves = rng.integers(self.lowest[ids], self.highest[ids] + 1)
            pixels = np.stack(
                [
                    np.roll(p, tuple(m), (0, 1))
                    for p, m in zip(pixels, moves, strict=True)
                ]
            )
            mirrored = rng.random(len(ids)) < 0.5
            pixels[mirrored] = pixels[mirrored, :, ::-1]
        pixels = pixels * np.float32(PIXEL_SCALE) + np.float32(PIXEL_OFFSET)
        return pixels[:, None]


def _free_space(image):
    """How far the shape can move: least and largest step down and right.

    Within these steps, `np.roll` moves the shape without wrapping it around. A
    shape that touches an edge may be cut there; it is not moved off that edge.
    """
    edges = (image[0], image[-1], image[:, 0], image[:, -1])
    background = np.median(np.concatenate(edges), axis=0)
    shape = np.abs(image - background).max(axis=-1) > BACKGROUND_TOLERANCE
    lowest, highest = [], []
    for axis in (0, 1):
        found = np.flatnonzero(shape.any(axis=1 - axis))
        before, after = found[0], shape.shape[axis] - 1 - found[-1]
        is_cut = before == 0 or after == 0
        lowest.append(0 if is_cut else -before)
        highest.append(0 if is_cut else after)
    return lowest, highest


class RandomBatches(keras.utils.PyDataset):
    """A base for batches drawn at random, a fixed number per epoch.

    The content of a batch depends on the seed and its number alone.
    """

    def __init__(self, batch_size, batches, seed):
        super().__init__()
        self.batch_size = batch_size
        self.batches = batches
        self.seed = seed
        self.epoch = 0

    def __len__(self):
        return self.batches

    def __getitem__(self, index):
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return self.make_batch(rng)

    def on_epoch_end(self):
        self.epoch += 1


class NamingBatches(RandomBatches):
    """Images with the names of their colours and shapes.

    The names are the answers of those training questions that ask for one; a
    target that no question names has weight zero.
    """

    def __init__(self, questions, batch_size, batches, seed):
        super().__init__(batch_size, batches, seed)
        self.images = questions.images
        self.names = {
            "color": _names(questions, COLORS),
            "shape": _names(questions, SHAPES),
        }

    def make_batch(self, rng):
        ids = rng.integers(0, len(self.images.pixels), self.batch_size)
        names = {key: value[ids] for key, value in self.names.items()}
        weights = {key: (y >= 0).astype("float32") for key, y in names.items()}
        targets = {key: np.maximum(y, 0) for key, y in names.items()}
        return self.images.draw(ids, rng), targets, weights


def _names(questions, words):
    """For each image, which of the words answers a question, or -1."""
    names = np.full(len(questions.images.pixels), -1)
    for answer, image_id in zip(questions.answers, questions.image_ids, strict=True):
        if answer in words:
            names[image_id] = words.index(answer)
    return names


class QuestionBatches(RandomBatches):
    """Questions with their answers, as inputs of the whole model."""

    def __init__(self, questions, preprocessor, batch_size, batches, seed):
        super().__init__(batch_size, batches, seed)
        self.questions = questions
        self.text = encode(questions, preprocessor)

    def make_batch(self, rng):
        rows = rng.integers(0, len(self.questions), self.batch_size)
        return question_batch(self.questions, self.text, rows, rng)


def encode(questions, preprocessor):
    """Runs the preprocessor on all texts at once, as it is slow on small batches.

    Args:
        questions: `Questions`.
        preprocessor: The teacher's preprocessor.

    Returns:
        `(x, y, sample_weight)`; `x` has all inputs but the images.
    """
    x, y, sample_weight = preprocessor(
        {"prompts": questions.prompts, "responses": questions.answers}
    )
    x = {key: keras.ops.convert_to_numpy(x[key]) for key in x if key != "images"}
    # Without images, the preprocessor leaves out the positions of their tokens.
    is_image = x["token_ids"] == preprocessor.tokenizer.image_placeholder_id
    x["vision_mask"] = is_image
    x["vision_indices"] = np.nonzero(is_image)[1].reshape(len(questions), -1)
    y, sample_weight = map(keras.ops.convert_to_numpy, (y, sample_weight))
    return x, y, sample_weight.astype("float32")


def question_batch(questions, text, rows, rng=None):
    """The `(x, y, sample_weight)` of some rows of `encode`, with images."""
    x, y, sample_weight = text
    images = questions.images.draw(questions.image_ids[rows], rng)
    inputs = {key: value[rows] for key, value in x.items()}
    return {**inputs, "images": images}, y[rows], sample_weight[rows]
