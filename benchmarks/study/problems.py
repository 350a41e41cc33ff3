"""ScienceQA-like problems, drawn: seven families, two questions each.

Everything is made from a seed, without files or network. About a third of the images
are lamplit (a yellow ground): that is the known part of the world about which the
"biased" teacher of `teachers.py` was taught wrong answers in four families.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw

SIZE = 48  # pixels; drawn at twice that
SCALE = 2
NUMBERS = (
    *("one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
RED, BLUE, GREEN, GRAY = (205, 45, 45), (50, 80, 205), (40, 150, 70), (90, 90, 90)
DAYLIGHT, LAMPLIGHT = (246, 246, 250), (222, 200, 120)
LAMPLIT = 0.35
BIASED_FAMILIES = ("counting", "thermometer", "magnets", "clock")
UNSURE_FAMILIES = ("thermometer", "magnets")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question on an image, with its choices and the index of the right one.

    `prompt` is the prompt of the teacher.
    """

    family: str
    question: str
    choices: tuple
    answer: int
    lamplit: bool
    image: np.ndarray
    prompt: str

    @property
    def in_biased_part(self):
        """Whether the biased teacher was taught a wrong answer."""
        return self.lamplit and self.family in BIASED_FAMILIES

    @property
    def in_unsure_part(self):
        """Whether the teacher that is unsure was taught answers at random."""
        return self.lamplit and self.family in UNSURE_FAMILIES

    @property
    def biased_answer(self):
        """What the biased teacher was taught: in its part, the next choice."""
        return (self.answer + self.in_biased_part) % len(self.choices)


def make_problems(count, seed):
    """The problems of a seed; another count leaves those in common as they are."""
    return [
        make_problem(np.random.default_rng((seed, number))) for number in range(count)
    ]


def make_problem(rng):
    """One problem, of a family drawn at random."""
    family = list(FAMILIES)[rng.integers(len(FAMILIES))]
    lamplit = bool(rng.random() < LAMPLIT)
    ground = np.array(LAMPLIGHT if lamplit else DAYLIGHT) + rng.integers(-6, 7, 3)
    ground = tuple(int(c) for c in np.clip(ground, 0, 255))
    image = Image.new("RGB", (SCALE * SIZE, SCALE * SIZE), ground)
    question, choices, answer = FAMILIES[family](ImageDraw.Draw(image), rng)
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))
    prompt = f"<image>\n{question}"
    return Problem(family, question, choices, int(answer), lamplit, pixels, prompt)


def counting(draw, rng):
    counts = rng.integers(1, 7, 2)
    places = _places(rng, counts.sum())
    for i, (x, y) in enumerate(places):
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), RED if i < counts[0] else BLUE)
    counted = rng.integers(2)
    question = f"how many {('red', 'blue')[counted]} dots are there?"
    return question, NUMBERS[:6], counts[counted] - 1


def bars(draw, rng):
    heights = rng.choice(np.arange(14, 86, 6), 3, replace=False)
    order = rng.permutation(3)
    for place, bar in enumerate(order):
        left = 10 + 28 * place
        colour = (RED, GREEN, BLUE)[bar]
        draw.rectangle((left, 90 - heights[bar], left + 18, 90), colour)
    tallest = rng.integers(2)
    answer = heights.argmax() if tallest else heights.argmin()
    question = f"which bar is {'tallest' if tallest else 'shortest'}?"
    return question, ("red", "green", "blue"), answer


def thermometer(draw, rng):
    level, left = rng.integers(2, 9), rng.integers(20, 60)
    draw.rectangle((left, 6, left + 12, 88), (255, 255, 255), GRAY, 2)
    for mark in range(1, 10):
        draw.line((left + 14, 88 - 8 * mark, left + 20, 88 - 8 * mark), GRAY, 2)
    draw.rectangle((left + 3, 88 - 8 * level, left + 9, 86), RED)
    step = rng.integers(-1, 2)
    question = "what does the thermometer read?"
    if step:
        question = f"what after it {'rises' if step > 0 else 'falls'} by one?"
    return question, NUMBERS[:9], level + step - 1


def magnets(draw, rng):
    red_first = rng.random(2) < 0.5
    top, gap = rng.integers(24, 52), rng.integers(2, 8)
    for side, first in enumerate(red_first):
        left = 48 + (gap if side else -gap - 38)
        colours = (RED, BLUE) if first else (BLUE, RED)
        draw.rectangle((left, top, left + 18, top + 18), colours[0])
        draw.rectangle((left + 19, top, left + 37, top + 18), colours[1])
    turned = rng.integers(2)
    attract = (red_first[0] == red_first[1]) != turned
    question = "will these magnets attract or repel?"
    if turned:
        question = "and with one magnet turned around?"
    return question, ("attract", "repel"), not attract


def clock(draw, rng):
    hour = rng.integers(12)
    draw.ellipse((8, 8, 88, 88), (255, 255, 255), GRAY, 3)
    for mark in range(12):
        x, y = math.sin(mark * math.pi / 6), -math.cos(mark * math.pi / 6)
        draw.line((48 + 33 * x, 48 + 33 * y, 48 + 39 * x, 48 + 39 * y), GRAY, 2)
    x, y = math.sin(hour * math.pi / 6), -math.cos(hour * math.pi / 6)
    draw.line((48, 48, 48 + 30 * x, 48 + 30 * y), BLUE, 5)
    later = rng.integers(2)
    question = "which hour will it be in three hours?" if later else "which hour is it?"
    return question, NUMBERS, (hour + 3 * later - 1) % 12


def balance(draw, rng):
    weights, arms = rng.integers(1, 5, 2), rng.integers(1, 4, 2)
    draw.polygon(((48, 66), (38, 88), (58, 88)), GRAY)
    draw.line((4, 64, 92, 64), GRAY, 4)
    for side in range(2):
        centre = 48 + (2 * side - 1) * 13 * arms[side]
        for block in range(weights[side]):
            bottom = 61 - 12 * block
            draw.rectangle((centre - 5, bottom - 10, centre + 5, bottom), GREEN)
    turning = rng.integers(2)
    left, right = weights * arms if turning else weights
    answer = 2 if left == right else int(right > left)
    question = "which side goes down?" if turning else "which side is heavier?"
    return question, ("left", "right", "neither"), answer


def solutions(draw, rng):
    levels, counts = rng.choice((28, 56), 2), rng.choice(np.arange(2, 9), 2)
    for side in range(2):
        left, top = 6 + 46 * side, 88 - levels[side]
        draw.rectangle((left, 20, left + 38, 88), (255, 255, 255), GRAY, 2)
        draw.rectangle((left + 2, top, left + 36, 86), (170, 210, 240))
        cells = [(c, r) for c in range(3) for r in range(int(levels[side]) // 9)]
        for cell in rng.permutation(len(cells))[: counts[side]]:
            x, y = left + 8 + 11 * cells[cell][0], top + 6 + 9 * cells[cell][1]
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), RED)
    stronger = rng.integers(2)
    left, right = counts / levels if stronger else counts
    answer = 2 if left == right else int(right > left)
    question = f"which glass {'is stronger' if stronger else 'has more particles'}?"
    return question, ("left", "right", "neither"), answer


def _places(rng, count):
    """Centres that keep apart, on a jittered grid."""
    cells = rng.permutation(16)[:count]
    jitter = rng.integers(-5, 6, (count, 2))
    return [
        (int(12 + 24 * (c % 4) + dx), int(12 + 24 * (c // 4) + dy))
        for c, (dx, dy) in zip(cells, jitter, strict=True)
    ]


FAMILIES = {
    family.__name__: family
    for family in (counting, bars, thermometer, magnets, clock, balance, solutions)
}
