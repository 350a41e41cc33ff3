"""Writes a tiny data set in the official ScienceQA layout, images included."""

import json
import os
import random

import numpy as np
from PIL import Image

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 170, 60),
    "blue": (30, 60, 210),
    "yellow": (240, 220, 40),
    "black": (10, 10, 10),
}
SUBJECTS = ("natural science", "social science", "language science")


def write_folder(directory, num=12, split_sizes=None, seed=0):
    """Writes `problems.json`, `pid_splits.json` and `images/` to `directory`.

    Every other question shows an image of one colour, in a size of its own, and
    asks for the colour; the rest are text alone and say the colour in the hint.
    The number of choices goes 2, 3, 4, 5 and round again.

    Args:
        directory: An existing folder.
        num: How many questions to write.
        split_sizes: Split name -> count, adding up to `num`; by default half of
            them are "train", a quarter "val" and the rest "test".
        seed: Seed of colours, sizes and the choices' order.

    Returns:
        `directory` as a string. The ids are "1" to str(num), in split order.
    """
    if split_sizes is None:
        rest = num - num // 2 - num // 4
        split_sizes = {"train": num // 2, "val": num // 4, "test": rest}
    assert sum(split_sizes.values()) == num, "`split_sizes` must add up to `num`"
    rng = random.Random(seed)
    splits = {name: [] for name in ("train", "val", "test", *split_sizes)}
    problems = {}
    for split, size in split_sizes.items():
        for _ in range(size):
            index = len(problems)
            pid = str(index + 1)
            problems[pid] = _problem(index, split, rng)
            splits[split].append(pid)
            if problems[pid]["image"]:
                _write_image(directory, problems[pid], pid, rng)
    _dump(problems, directory, "problems.json")
    _dump(splits, directory, "pid_splits.json")
    return str(directory)


def edit_problem(directory, pid, **changes):
    """Changes fields of one problem in `problems.json`."""
    path = os.path.join(directory, "problems.json")
    with open(path) as file:
        problems = json.load(file)
    problems[pid].update(changes)
    _dump(problems, directory, "problems.json")


def _problem(index, split, rng):
    has_image = index % 2 == 0
    choices = rng.sample(sorted(COLORS), 2 + index % 4)
    answer = rng.randrange(len(choices))
    return {
        "question": "Which color is it?" if has_image else "Which color is named?",
        "choices": choices,
        "answer": answer,
        "hint": "" if has_image else f"The color is {choices[answer]}.",
        "image": "image.png" if has_image else None,
        "task": "closed choice",
        "grade": f"grade{1 + index % 12}",
        "subject": SUBJECTS[index % 3],
        "topic": "colors",
        "category": "Colors",
        "skill": "Name a color",
        "lecture": "",
        "solution": "",
        "split": split,
    }


def _write_image(directory, problem, pid, rng):
    folder = os.path.join(directory, "images", problem["split"], pid)
    os.makedirs(folder)
    shape = (rng.randint(6, 20), rng.randint(6, 20), 3)
    color = COLORS[problem["choices"][problem["answer"]]]
    image = np.broadcast_to(np.array(color, "uint8"), shape)
    Image.fromarray(np.ascontiguousarray(image)).save(
        os.path.join(folder, problem["image"])
    )


def _dump(value, directory, name):
    with open(os.path.join(directory, name), "w") as file:
        json.dump(value, file, indent=1)
