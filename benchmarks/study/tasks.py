"""The students' training and test data as arrays, with the teacher's cached outputs.

A student is the language model of a vision-language model. Its images go through
the teacher's frozen vision tower, as in the paper; since the tower is frozen and images
are not augmented, the tower computes once, and a student reads its cached output.
An answer is one word, so the teacher's row for it does not depend on the label, and
one cache serves right and wrong labels.
"""

import dataclasses
import os

import keras
import numpy as np
from easy_vqa_problems import load_easy_vqa
from problems import make_problems
from settings import DATA
from teachers import PIXEL_OFFSET, PIXEL_SCALE, load_teachers, records_of

import keras_betakd

COUNTS = {"train": 3000, "validation": 600, "test": 3000}
SEEDS = {"train": 101, "validation": 102, "test": 103}


@dataclasses.dataclass
class Split:
    """Questions as arrays, one row each.

    Attributes:
        student: dict of `"tokens"` (N, T) and `"images"` (N, P, F).
        teacher: what a `CachedTeacher` reads, dict of arrays.
        labels: (N, 1) token ids to train on.
        right: (N,) token ids of the right answers.
        choices: (N, C) token ids, -1 behind the last choice.
        teacher_logits: (N, V).
        families: (N,) names.
        biased: (N,) whether the biased teacher was taught wrong here.
    """

    student: dict
    teacher: dict
    labels: np.ndarray
    right: np.ndarray
    choices: np.ndarray
    teacher_logits: np.ndarray
    families: np.ndarray
    biased: np.ndarray

    def __len__(self):
        return len(self.right)

    def first_rows(self, count):
        """The same of its first rows."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        cut = keras.tree.map_structure(lambda array: array[:count], fields)
        return Split(**cut)


@dataclasses.dataclass
class Task:
    """A setting: its data, and the teacher as the distiller takes it."""

    train: Split
    validation: Split
    test: Split
    teacher: keras.Model
    vocabulary: int


def load_tasks(folder, data="drawn"):
    """Dict of setting to `Task`; the teachers' caches are kept in `folder`."""
    teachers = load_teachers(data)
    if data == "drawn":
        problems = {name: make_problems(COUNTS[name], SEEDS[name]) for name in COUNTS}
    else:
        problems = load_easy_vqa(COUNTS, SEEDS, os.path.join(folder, data))
    tower_of = next(iter(teachers.values()))
    found = {
        name: teacher_splits(teacher, tower_of, problems, folder, name)
        for name, teacher in teachers.items()
    }
    tasks = {}
    for setting, (count, share, teacher) in DATA[data].items():
        splits, cached = found[teacher]
        train = splits["train"].first_rows(count)
        train.labels = noisy_labels(train, share)
        vocabulary = cached.preprocessor.settings.vocabulary_size
        held_out = splits["validation"], splits["test"]
        tasks[setting] = Task(train, *held_out, cached, vocabulary)
    return tasks


def teacher_splits(teacher, tower_of, problems, folder, name):
    """Dict of `Split` by name with a teacher's outputs, and the `CachedTeacher`."""
    everything = [p for part in problems.values() for p in part]
    records = records_of(everything, [p.answer for p in everything])
    cached = keras_betakd.cache_teacher(
        teacher,
        records,
        os.path.join(folder, f"{name}_cache"),
        batch_size=300,
        max_response_length=1,
    )
    outputs = cached.preprocessor.encode(records, records["ids"], 1).inputs
    tokenizer = teacher.preprocessor.tokenizer
    choices = choices_as_tokens(tokenizer, everything)
    head = cached.preprocessor.head()["kernel"].astype("float32")
    right = choices[np.arange(len(choices)), [p.answer for p in everything]]
    arrays = {
        "student": {
            "tokens": questions_as_tokens(tokenizer, everything),
            "images": seen_by(tower_of, everything),
        },
        "teacher": outputs,
        "labels": right[:, None],
        "right": right,
        "choices": choices,
        "teacher_logits": outputs["rows"][:, 0] @ head.T,
        "families": np.array([p.family for p in everything]),
        "biased": np.array([p.in_biased_part for p in everything]),
    }
    splits, first = {}, 0
    for part, found in problems.items():
        rows = slice(first, first + len(found))
        cut = keras.tree.map_structure(lambda a, rows=rows: a[rows], arrays)
        splits[part], first = Split(**cut), rows.stop
    return splits, cached


def noisy_labels(split, share):
    """Labels of which a share are wrong, each wrong choice being as likely."""
    rng = np.random.default_rng((SEEDS["train"], 1))
    labels = split.labels.copy()
    for row in np.flatnonzero(rng.random(len(labels)) < share):
        choices = split.choices[row]
        wrong = choices[(choices >= 0) & (choices != split.right[row])]
        labels[row] = rng.choice(wrong)
    return labels


def choices_as_tokens(tokenizer, problems):
    """(N, C) ids of the choices, each one token; -1 behind the last."""
    ids = {}
    for word in {choice for p in problems for choice in p.choices}:
        (ids[word],) = np.asarray(tokenizer(word))
    rows = np.full((len(problems), max(len(p.choices) for p in problems)), -1, "int32")
    for row, problem in zip(rows, problems, strict=True):
        row[: len(problem.choices)] = [ids[choice] for choice in problem.choices]
    return rows


def questions_as_tokens(tokenizer, problems):
    """(N, T) ids; padding stands before, so that every question ends at the last."""
    ids = {q: np.asarray(tokenizer(q)) for q in {p.question for p in problems}}
    longest = max(map(len, ids.values()))
    tokens = np.zeros((len(problems), longest), "int32")
    for row, problem in zip(tokens, problems, strict=True):
        found = ids[problem.question]
        row[-len(found) :] = found
    return tokens


def seen_by(teacher, problems):
    """(N, P, F): the images as they leave the teacher's vision tower."""
    pixels = np.stack([p.image for p in problems])[:, None]
    pixels = pixels.astype("float32") * PIXEL_SCALE + PIXEL_OFFSET
    return teacher.backbone.vision_encoder.predict(pixels, batch_size=300, verbose=0)
