"""The students' training and test data as arrays, with the teacher's cached outputs.

A student is the language model of a vision-language model. Its images go through
the teacher's frozen vision tower, as in the paper; since the tower is frozen and images
are not augmented, the tower computes once, and a student reads its cached output.
An answer is one word, so the teacher's row for it does not depend on the label, and
one cache serves right and wrong labels.
"""

import dataclasses
import os
from typing import Any

import keras
import numpy as np
from easy_vqa_problems import load_easy_vqa
from measures import best_choice, cosine, log_softmax
from problems import make_problems
from sentences import load_sentences
from settings import Setting
from teachers import (
    PIXEL_OFFSET,
    PIXEL_SCALE,
    load_teachers,
    records_of,
    taught_wrong,
)

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
        biased: (N,) whether the teacher was taught a wrong answer here.
        unsure: (N,) whether it was taught answers at random here.
    """

    student: dict
    teacher: dict
    labels: np.ndarray
    right: np.ndarray
    choices: np.ndarray
    teacher_logits: np.ndarray
    families: np.ndarray
    biased: np.ndarray
    unsure: np.ndarray

    answer_length = 1

    def __len__(self):
        return len(self.right)

    @property
    def weights(self):
        return np.ones(self.labels.shape, "float32")

    @staticmethod
    def read_of(logits_of, inputs):
        """What is measured of a student, a function of inputs to (N, 1, V)."""
        return {"logits": logits_of(inputs)}

    def measured(self, logits, brief=False):
        """Accuracy among the choices, agreement with the teacher, log-likelihood.

        Args:
            logits: (N, 1, V).
            brief: whether to leave out what only the test needs.
        """
        logits = logits[:, 0]
        answers = best_choice(logits, self.choices)
        right, same = answers == self.right, answers == self._teacher_answers()
        log_p = log_softmax(logits)[np.arange(len(logits)), self.right]
        found = {
            "accuracy_choices": 100 * right.mean(),
            "agreement": 100 * same.mean(),
            "log_likelihood": log_p.mean(),
            "logit_cosine": cosine(logits, self.teacher_logits).mean(),
        }
        if not brief:
            found["families"] = {
                name: 100 * right[self.families == name].mean()
                for name in sorted(set(self.families))
            }
            parts = {"biased": self.biased, "unsure": self.unsure}
            parts["elsewhere"] = ~(self.biased | self.unsure)
            for part, flags in parts.items():
                if flags.any():
                    found[part] = 100 * right[flags].mean()
        return found

    def teacher_measured(self):
        return self.measured(self.teacher_logits[:, None])

    def teacher_outputs(self):
        """What a beta reads of the teacher, for all questions."""
        return keras_betakd.betas.TeacherOutputs(
            weights=self.weights,
            logits=self.teacher_logits[:, None],
            rows=self.teacher["rows"],
            hidden_mean=self.teacher["hidden_mean"],
        )

    def parts_to_find(self):
        """Where a low beta would be right: dict of name to bool (N,)."""
        errors = self._teacher_answers() != self.right
        return {"errors": errors, "biased": self.biased, "unsure": self.unsure}

    def _teacher_answers(self):
        return best_choice(self.teacher_logits, self.choices)

    def rows(self, index):
        """The same of some of its rows."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Split(**keras.tree.map_structure(lambda array: array[index], fields))

    def of_families(self, names):
        return self.rows(np.flatnonzero(np.isin(self.families, names)))


@dataclasses.dataclass
class Task:
    """A setting: its data, and the teacher as the distiller takes it.

    Attributes:
        train, validation, test: `Split`, or `sentences.Sentences`.
        teacher: the model.
        vocabulary: V.
    """

    train: Any
    validation: Any
    test: Any
    teacher: keras.Model
    vocabulary: int


def load_tasks(folder, experiment):
    """Dict of setting to `Task` of an `Experiment`.

    Where the student has learnt something before, `"before"` is the task of that.
    The caches of the teachers are kept in `folder`.
    """
    if experiment.problems == "sentences":
        return load_sentences(experiment)
    if experiment.problems == "drawn":
        problems = {name: make_problems(COUNTS[name], SEEDS[name]) for name in COUNTS}
    else:
        problems = load_easy_vqa(
            COUNTS, SEEDS, os.path.join(folder, experiment.problems)
        )
    teachers = load_teachers(experiment.problems)
    tower_of = next(iter(teachers.values()))
    needed = {setting.teacher for setting in experiment.settings.values()}
    found = {
        name: teacher_splits(teacher, tower_of, problems, folder, name)
        for name, teacher in teachers.items()
        if name in needed
    }
    families = sorted(set(next(iter(found.values()))[0]["train"].families))
    new = [name for name in families if name not in experiment.learnt_before]
    tasks = {
        name: make_task(*found[setting.teacher], setting, new)
        for name, setting in experiment.settings.items()
    }
    if experiment.learnt_before:
        everything = Setting(COUNTS["train"], 0.0, "good")
        tasks["before"] = make_task(
            *found["good"], everything, list(experiment.learnt_before)
        )
    return tasks


def make_task(splits, teacher, setting, families):
    """The `Task` of a setting, on some families of problems."""
    parts = {name: split.of_families(families) for name, split in splits.items()}
    train = parts["train"].rows(slice(setting.labelled))
    train.labels = noisy_labels(train, setting.wrong)
    vocabulary = teacher.preprocessor.settings.vocabulary_size
    return Task(train, parts["validation"], parts["test"], teacher, vocabulary)


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
        **taught_wrong(name, everything),
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
