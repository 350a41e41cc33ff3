"""Drawn scenes and sentences that describe them: answers of many tokens.

A scene has two or three objects, each in a cell of its own. Its description names them
in reading order, and ends with how many have the first one's colour:

    two objects : red circle top left , blue square bottom middle ; one red .

Most words are slots: what stands there is read off the image.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw
from problems import BLUE, DAYLIGHT, GREEN, LAMPLIGHT, LAMPLIT, RED, SCALE, SIZE

COLOURS = {"red": RED, "blue": BLUE, "green": GREEN, "black": (40, 40, 40)}
KINDS = ("circle", "square", "triangle")
ROWS, COLUMNS = ("top", "bottom"), ("left", "middle", "right")
COUNTS = ("one", "two", "three")
# What a wrong label puts in the place of a word: another of its class.
CLASSES = (tuple(COLOURS), KINDS, ROWS, COLUMNS, COUNTS)
END = "<end>"
WORDS = (
    *("<pad>", "<start>", END, "objects", ":", ",", ";", "."),
    *(word for words in CLASSES for word in words),
)
LONGEST = 22  # words of a description of three objects, with its end


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image, its description, and whether it is lamplit."""

    image: np.ndarray
    words: tuple
    lamplit: bool

    @property
    def wrong_words(self):
        """What the biased teacher was taught: where it is lamplit, other colours."""
        if not self.lamplit:
            return self.words
        names = tuple(COLOURS)
        following = dict(zip(names, (*names[1:], names[0]), strict=True))
        return tuple(following.get(word, word) for word in self.words)


def make_scenes(count, seed):
    """The scenes of a seed; another count leaves those in common as they are."""
    return [make_scene(np.random.default_rng((seed, i))) for i in range(count)]


def make_scene(rng):
    lamplit = bool(rng.random() < LAMPLIT)
    ground = np.array(LAMPLIGHT if lamplit else DAYLIGHT) + rng.integers(-6, 7, 3)
    ground = tuple(int(c) for c in np.clip(ground, 0, 255))
    image = Image.new("RGB", (SCALE * SIZE, SCALE * SIZE), ground)
    draw = ImageDraw.Draw(image)
    count = int(rng.integers(2, 4))
    objects = []
    for cell in sorted(rng.choice(len(ROWS) * len(COLUMNS), count, replace=False)):
        row, column = divmod(int(cell), len(COLUMNS))
        colour, kind = rng.choice(list(COLOURS)), rng.choice(KINDS)
        _draw(draw, rng, str(kind), COLOURS[str(colour)], row, column)
        objects.append((str(colour), str(kind), ROWS[row], COLUMNS[column]))
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))
    return Scene(pixels, _described(objects), lamplit)


def _draw(draw, rng, kind, colour, row, column):
    x, y = 16 + 32 * column + rng.integers(-4, 5), 24 + 48 * row + rng.integers(-8, 9)
    size = rng.integers(7, 11)
    box = (x - size, y - size, x + size, y + size)
    if kind == "circle":
        draw.ellipse(box, colour)
    elif kind == "square":
        draw.rectangle(box, colour)
    else:
        draw.polygon(
            ((x, y - size), (x - size, y + size), (x + size, y + size)), colour
        )


def _described(objects):
    first = objects[0][0]
    count = sum(colour == first for colour, *_ in objects)
    words = [COUNTS[len(objects) - 1], "objects", ":", *objects[0]]
    for found in objects[1:]:
        words += [",", *found]
    return (*words, ";", COUNTS[count - 1], first, ".", END)


def as_ids(descriptions):
    """(N, K) token ids of tuples of words, 0 behind their ends."""
    ids = {word: i for i, word in enumerate(WORDS)}
    found = np.zeros((len(descriptions), LONGEST), "int32")
    for row, words in zip(found, descriptions, strict=True):
        row[: len(words)] = [ids[word] for word in words]
    return found


def is_slot(ids):
    """Where words say something of the image; bool, of the shape of `ids`."""
    return ids >= WORDS.index(CLASSES[0][0])


def with_wrong_words(descriptions, share, seed):
    """The descriptions, a share of whose slots say another thing of the same class."""
    rng = np.random.default_rng((seed, 1))
    others = {word: [w for w in c if w != word] for c in CLASSES for word in c}

    def changed(word):
        wrong = word in others and rng.random() < share
        return str(rng.choice(others[word])) if wrong else word

    return [tuple(map(changed, words)) for words in descriptions]
