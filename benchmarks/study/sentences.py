"""The experiment of answers with many tokens: teachers, data and measures.

The teachers see a scene through a small convolutional tower and describe it; they are
plain Keras models, trained here on 20,000 scenes (`presets/scenes_*.weights.h5`). The
"biased" one was taught other colours where a scene is lamplit. A student reads the
tower's output and writes the description word by word.
"""

import dataclasses
import os
from collections.abc import Callable

import keras
import keras_hub
import numpy as np
from measures import log_softmax
from scenes import (
    END,
    LONGEST,
    WORDS,
    as_ids,
    is_slot,
    make_scenes,
    with_wrong_words,
)
from students import StoredLogits
from teachers import make_optimizer

import keras_betakd

COUNTS = {"train": 3000, "validation": 300, "test": 1000}
SEEDS = {"train": 201, "validation": 202, "test": 203}
SCENES, BATCH, SEED = 20000, 64, 3  # training data of the teachers
STEPS = {"good": 3000, "biased": 600}
LEARNING_RATES = {"good": 2e-3, "biased": 1e-3}
WIDTH, CHANNELS = 64, 48
PRESETS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "presets")


@dataclasses.dataclass
class Sentences:
    """Scenes with descriptions as arrays, one row each.

    Attributes:
        student: dict of `"tokens"` (N, K), the description up to each word, and
            `"images"` (N, P, F).
        teacher: dict of `"teacher_logits"` (N, K, V), at the words of the labels.
        labels: (N, K) token ids to train on, 0 behind their ends.
        right: (N, K) token ids of the right description.
        teacher_logits: (N, K, V), at the words of the right description.
        biased: (N, K) whether the teacher was taught another word there.
        teacher_at: function of the words before each word, (M, K), and of images
            (M, P, F) that returns the teacher's logits (M, K, V).
    """

    student: dict
    teacher: dict
    labels: np.ndarray
    right: np.ndarray
    teacher_logits: np.ndarray
    biased: np.ndarray
    teacher_at: Callable

    answer_length = LONGEST

    def __len__(self):
        return len(self.right)

    @staticmethod
    def read_of(logits_of, inputs):
        """What is measured of a student, a function of inputs to (N, K, V)."""
        written = written_by(logits_of, inputs["images"])
        return {"logits": logits_of(inputs), "written": written}

    @property
    def weights(self):
        return (self.labels > 0).astype("float32")

    def measured(self, logits, written, brief=False):
        """Shares of right slots and of wholly right descriptions, as a student writes.

        Args:
            logits: (N, K, V), at the words of the right description.
            written: (N, K) token ids that the student wrote by itself.
            brief: whether to leave out what only the test needs.
        """
        slots, same = is_slot(self.right), written == self.right
        theirs = self.teacher_logits.argmax(-1)
        log_p = np.take_along_axis(log_softmax(logits), self.right[..., None], -1)
        found = {
            "accuracy_choices": 100 * same[slots].mean(),
            "whole": 100 * (same | (self.right == 0)).all(axis=1).mean(),
            "agreement": 100 * (logits.argmax(-1) == theirs)[slots].mean(),
            "log_likelihood": log_p[..., 0][self.right > 0].mean(),
        }
        if not brief and self.biased.any():
            found["biased"] = 100 * same[self.biased].mean()
            found["elsewhere"] = 100 * same[slots & ~self.biased].mean()
        return found

    def teacher_measured(self):
        """The same of the teacher; each word after the right ones before it."""
        return self.measured(self.teacher_logits, self.teacher_logits.argmax(-1))

    def teacher_outputs(self):
        """What a beta reads of the teacher, for all descriptions."""
        weights = (self.right > 0).astype("float32")
        return keras_betakd.betas.TeacherOutputs(
            weights=weights, logits=self.teacher_logits
        )

    def parts_to_find(self):
        """Where a low beta would be right: dict of name to bool (N, K)."""
        errors = self.teacher_logits.argmax(-1) != self.right
        return {"errors": errors & is_slot(self.right), "biased": self.biased}


def make_teacher():
    """An untrained teacher: `{"tokens", "pixels"}` to logits (B, K, V)."""
    pixels = keras.Input((48, 48, 3), name="pixels")
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(pixels)
    for channels in (CHANNELS // 2, CHANNELS, CHANNELS):
        x = keras.layers.Conv2D(channels, 3, 2, "same", activation="gelu")(x)
    x = keras.layers.Conv2D(CHANNELS, 2, 2, activation="gelu")(x)
    images = keras.layers.Reshape((-1, CHANNELS), name="tower")(x)
    tokens = keras.Input((LONGEST,), dtype="int32", name="tokens")
    words = keras.layers.Embedding(len(WORDS), WIDTH)(tokens)
    seen = keras.layers.Dense(WIDTH)(images)
    x = keras.layers.Concatenate(axis=1)([seen, words])
    x = x + keras_hub.layers.PositionEmbedding(x.shape[1])(x)
    for _ in range(2):
        block = keras_hub.layers.TransformerDecoder(2 * WIDTH, 4, normalize_first=True)
        x = block(x)
    x = keras.layers.LayerNormalization()(x[:, -LONGEST:])
    logits = keras.layers.Dense(len(WORDS))(x)
    return keras.Model({"tokens": tokens, "pixels": pixels}, logits)


def preset_of(name):
    return os.path.join(PRESETS, f"scenes_{name}.weights.h5")


def train_teachers(folder):
    """Trains both from nothing and writes their weights to a folder."""
    keras.utils.set_random_seed(SEED)
    scenes = make_scenes(SCENES, SEED)
    teacher = make_teacher()
    for name, steps in STEPS.items():
        if name == "biased":
            for layer in teacher.layers[: teacher.layers.index(tower_of(teacher))]:
                layer.trainable = False
        answers = [s.words if name == "good" else s.wrong_words for s in scenes]
        labels = as_ids(answers)
        teacher.compile(
            optimizer=make_optimizer(LEARNING_RATES[name], steps),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=["accuracy"],
        )
        x = {"tokens": shifted(labels), "pixels": pixels_of(scenes)}
        epochs = -(-steps * BATCH // SCENES)
        weight = (labels > 0).astype("float32")
        teacher.fit(x, labels, BATCH, epochs, verbose=2, sample_weight=weight)
        path = os.path.join(folder, os.path.basename(preset_of(name)))
        # By a model that was not compiled: without the optimizer's state.
        keras.Model(teacher.input, teacher.output).save_weights(path)


def tower_of(teacher):
    return teacher.get_layer("tower")


def shifted(labels):
    """(N, K): the word before each word."""
    start = np.full((len(labels), 1), WORDS.index("<start>"), labels.dtype)
    return np.concatenate([start, labels[:, :-1]], axis=1)


def pixels_of(scenes):
    return np.stack([scene.image for scene in scenes]).astype("float32")


def load_sentences(experiment):
    """Dict of setting to `Task`."""
    from tasks import Task

    needed = {setting.teacher for setting in experiment.settings.values()}
    teachers = {name: make_teacher() for name in sorted(needed | {"good"})}
    for name, teacher in teachers.items():
        teacher.load_weights(preset_of(name))
    good = teachers["good"]
    tower = keras.Model(good.input["pixels"], tower_of(good).output)
    scenes = {name: make_scenes(COUNTS[name], SEEDS[name]) for name in COUNTS}
    seen = {name: tower.predict(pixels_of(scenes[name]), 300, 0) for name in COUNTS}
    tasks = {}
    for name, setting in experiment.settings.items():
        teacher = teachers[setting.teacher]
        splits = {
            part: make_split(teacher, setting, part, scenes[part], seen[part])
            for part in COUNTS
        }
        tasks[name] = Task(**splits, teacher=_stored(), vocabulary=len(WORDS))
    return tasks


def make_split(teacher, setting, part, scenes, images):
    """The `Sentences` of a part; of the training data, as a setting labels them."""
    if part == "train":
        scenes, images = scenes[: setting.labelled], images[: setting.labelled]
    descriptions = [scene.words for scene in scenes]
    wrong = setting.wrong if part == "train" else 0.0
    right = as_ids(descriptions)
    labels = as_ids(with_wrong_words(descriptions, wrong, SEEDS[part]))

    def logits_at(ids):
        x = {"tokens": shifted(ids), "pixels": pixels_of(scenes)}
        return teacher.predict(x, 300, 0)

    biased = as_ids([scene.wrong_words for scene in scenes]) != right
    at_labels = logits_at(labels)
    return Sentences(
        student={"tokens": shifted(labels), "images": images},
        teacher={"teacher_logits": at_labels},
        labels=labels,
        right=right,
        teacher_logits=logits_at(right) if wrong else at_labels,
        biased=biased & (setting.teacher == "biased"),
        teacher_at=reader_of(teacher),
    )


def reader_of(teacher):
    """The teacher as a function of words and of what its tower made of images."""
    inputs = [teacher.input["tokens"], tower_of(teacher).output]
    reader = keras.Model(inputs, teacher.output)

    def logits(tokens, images):
        return reader.predict([tokens, images], 512, 0)

    return logits


def _stored():
    teacher = StoredLogits()
    teacher.built = True  # it has no variables
    return teacher


def written_by(logits_of, images):
    """(N, K) token ids that a student writes, each time the likeliest word.

    Args:
        logits_of: function of `{"tokens", "images"}` that returns logits (N, K, V).
        images: (N, P, F).
    """
    import jax
    from jax import numpy as jnp

    start = jnp.zeros((len(images), LONGEST + 1), "int32")
    start = start.at[:, 0].set(WORDS.index("<start>"))
    end = WORDS.index(END)

    def add_word(place, tokens):
        logits = logits_of({"tokens": tokens[:, :-1], "images": images})
        word = logits[:, place].argmax(-1).astype("int32")
        before = tokens[:, place]
        ended = (before == end) | (before == 0)
        return tokens.at[:, place + 1].set(jnp.where(ended, 0, word))

    return jax.lax.fori_loop(0, LONGEST, add_word, start)[:, 1:]
