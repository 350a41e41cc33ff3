"""Lays the easy-VQA data set out in the ScienceQA on-disk format.

easy-VQA (https://github.com/vzhou842/easy-VQA, `pip install easy-vqa`) asks
simple questions about images of one coloured shape each: 38,575 questions on
4,000 training images and 9,673 questions on 1,000 test images, with 13
answers. `relay_easy_vqa` turns each question into a multiple-choice problem and
writes the three parts of the ScienceQA layout, so that code that reads ScienceQA
reads easy-VQA, too:

    problems.json                   every problem, by id
    pid_splits.json                 the ids of train, val and test
    images/<split>/<id>/image.png   the image of each problem

Run as a script, it writes the folder: `python easy_vqa_data.py DIRECTORY`.
"""

import argparse
import json
import os
import random
import re
import shutil
import tempfile

import easy_vqa

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
YES_NO = ("yes", "no")

# The skill of a problem is what must be recognized; its category, the question type.
SKILLS = ("name colour", "name shape", "presence of colour", "presence of shape")

IMAGE_NAME = "image.png"
# The file with the options that the folder was written with; it is written last.
STAMP_NAME = "easy_vqa.json"
LAYOUT_VERSION = 1
VAL_FRACTION = 0.1


def relay_easy_vqa(directory, seed=0):
    """Writes easy-VQA to `directory` in the ScienceQA layout, once.

    The choices of a yes/no question are both answers, those of a shape question
    all three shapes, those of a colour question the right colour and three
    others; their order is random. Ten per cent of the training images, with
    all their questions, become the `val` split.

    The folder is written under a temporary name and then renamed, so that an
    interrupted run leaves no half-written data set. A complete folder of the
    same seed is reused as it is.

    Args:
        directory: The folder to write; its parents are created.
        seed: Seed of the choices' order and of the train/val division.

    Returns:
        `directory`, as a string.

    Raises:
        ValueError: If `directory` holds something else.
    """
    directory = os.fspath(directory)
    stamp = {"seed": seed, "layout_version": LAYOUT_VERSION}
    if _is_complete(directory, stamp):
        return directory
    if os.path.isdir(directory) and os.listdir(directory):
        raise ValueError(
            f"{directory!r} exists and is not an easy-VQA folder written with"
            f" seed {seed}. Remove it, or name another folder."
        )
    parent = os.path.dirname(os.path.abspath(directory))
    os.makedirs(parent, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".easy_vqa_", dir=parent)
    try:
        _write(scratch, seed, stamp)
        os.chmod(scratch, 0o755)
        _rename(scratch, directory, stamp)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return directory


def _is_complete(directory, stamp):
    """Whether `directory` was written, to the end, with this stamp."""
    try:
        with open(os.path.join(directory, STAMP_NAME)) as file:
            return json.load(file) == stamp
    except FileNotFoundError:
        return False


def _rename(scratch, directory, stamp):
    """Moves the finished folder into place, unless another run was faster."""
    try:
        os.rename(scratch, directory)
    except OSError:
        if not _is_complete(directory, stamp):
            raise


def _write(root, seed, stamp):
    """Writes the whole data set under `root`."""
    problems, splits = {}, {"train": [], "val": [], "test": []}
    for split, question, answer, image_id, image_path in _questions(seed):
        pid = str(len(problems) + 1)
        # One generator per problem, so that none depends on those before it.
        rng = random.Random(f"{seed}/{pid}")
        problems[pid] = make_problem(question, answer, split, rng)
        splits[split].append(pid)
        _place_image(root, split, pid, image_path, image_id)
    _dump(problems, os.path.join(root, "problems.json"))
    _dump(splits, os.path.join(root, "pid_splits.json"))
    shutil.rmtree(os.path.join(root, "pool"))
    _dump(stamp, os.path.join(root, STAMP_NAME))


def _questions(seed):
    """Yields split, question, answer, image number and image path."""
    paths = easy_vqa.get_train_image_paths()
    image_ids = sorted(paths)
    count = round(len(image_ids) * VAL_FRACTION)
    val_ids = set(random.Random(seed).sample(image_ids, count))
    for question, answer, i in zip(*easy_vqa.get_train_questions(), strict=True):
        yield "val" if i in val_ids else "train", question, answer, i, paths[i]
    paths = easy_vqa.get_test_image_paths()
    for question, answer, i in zip(*easy_vqa.get_test_questions(), strict=True):
        yield "test", question, answer, i, paths[i]


def make_problem(question, answer, split, rng):
    """Makes the ScienceQA record of one question.

    Args:
        question: The question's text.
        answer: The right answer, one of easy-VQA's 13.
        split: "train", "val" or "test".
        rng: The `random.Random` that draws and orders the choices.

    Returns:
        A dict with the fields of a ScienceQA problem.
    """
    choices = _choices(answer, rng)
    category, skill = _kind(question, answer)
    return {
        "question": question,
        "choices": choices,
        "answer": choices.index(answer),
        "hint": "",
        "image": IMAGE_NAME,
        "task": "closed choice",
        "grade": "grade1",
        "subject": "natural science",
        "topic": "geometry",
        "category": category,
        "skill": skill,
        "lecture": "",
        "solution": "",
        "split": split,
    }


def _choices(answer, rng):
    """Draws the choices offered for a question with this answer."""
    if answer in YES_NO:
        choices = list(YES_NO)
    elif answer in SHAPES:
        choices = list(SHAPES)
    else:
        others = [color for color in COLORS if color != answer]
        choices = [answer] + rng.sample(others, 3)
    rng.shuffle(choices)
    return choices


def _kind(question, answer):
    """Names the category and the skill of a question."""
    if answer in COLORS:
        return "colour", SKILLS[0]
    if answer in SHAPES:
        return "shape", SKILLS[1]
    # "is there a red shape?" or "is there a circle?".
    asks_color = set(COLORS) & set(re.findall(r"\w+", question))
    return "presence", SKILLS[2] if asks_color else SKILLS[3]


def _place_image(root, split, pid, image_path, image_id):
    """Puts a problem's image in place.

    About ten problems share an image: each image is copied once, into a pool,
    and linked from there, which saves 43,000 copies.
    """
    part = "test" if split == "test" else "train"
    pooled = os.path.join(root, "pool", part, f"{image_id}.png")
    if not os.path.exists(pooled):
        os.makedirs(os.path.dirname(pooled), exist_ok=True)
        shutil.copyfile(image_path, pooled)
    folder = os.path.join(root, "images", split, pid)
    os.makedirs(folder)
    target = os.path.join(folder, IMAGE_NAME)
    try:
        os.link(pooled, target)
    except OSError:  # A file system without hard links.
        shutil.copyfile(pooled, target)


def _dump(value, path):
    with open(path, "w") as file:
        json.dump(value, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(relay_easy_vqa(arguments.directory, seed=arguments.seed))
