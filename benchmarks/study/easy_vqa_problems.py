"""easy-VQA as problems of the study: real questions on the images of a public set."""

import random

from problems import Problem

from keras_betakd.data import load_image, load_scienceqa, scienceqa_prompt

# What the study calls a part, and ScienceQA's layout.
PARTS = {"train": "train", "validation": "val", "test": "test"}


def load_easy_vqa(counts, seeds, folder):
    """Dict of part to problems, drawn from those of easy-VQA by a seed.

    Args:
        counts, seeds: dicts of part to how many problems, and to what draws them.
        folder: where easy-VQA is laid out as ScienceQA is.
    """
    # Of `examples/`, which `teachers.py` put on the path; it needs `easy-vqa`.
    from easy_vqa_data import relay_easy_vqa

    relay_easy_vqa(folder)
    drawn = {}
    for part, split in PARTS.items():
        records = list(load_scienceqa(folder, split))
        drawn[part] = random.Random(seeds[part]).sample(records, counts[part])
    return {part: list(map(as_problem, records)) for part, records in drawn.items()}


def as_problem(record):
    """A `Problem` of a ScienceQA record; no teacher was taught wrong on purpose."""
    return Problem(
        family=record.skill,
        question=record.question,
        choices=tuple(record.choices),
        answer=record.answer,
        lamplit=False,
        image=load_image(record.image),
        prompt=scienceqa_prompt(record, form="llava-1.0"),
    )
