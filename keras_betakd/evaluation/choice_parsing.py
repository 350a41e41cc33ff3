"""Finds which of the given choices an answer names.

`parse_letter_strict` is the rule behind the published LLaVA, MobileVLM and Beta-KD
numbers, with all its pitfalls. `parse_choice` reads an answer as a person would, and
returns `None` rather than guess.
"""

import re
import string
import unicodedata
from collections.abc import Sequence

from keras_betakd.data.images import neutralize_image_marks
from keras_betakd.evaluation.answer_text import clean_answer, without_marks
from keras_betakd.evaluation.choice_statements import (
    BARE,
    LABEL,
    LEADING,
    LISTED,
    MENTIONED,
    OR_LETTER,
    REFUSED_AFTER,
    REFUSED_BEFORE,
    STATED,
    is_initial,
)
from keras_betakd.evaluation.choice_wrappers import (
    boxes,
    formatted,
    marked,
    without_bullets,
)

LETTERS = string.ascii_uppercase

# A choice that has only such words is too common to be searched for in a sentence.
_COMMON = frozenset(
    "a an the i is are was were be it its this that in on at of to and or not".split()
)

# How many characters before a letter are searched for what negates it.
_REACH = 300


def parse_letter_strict(text: str, choices: Sequence[str]) -> int | None:
    """The choice that the published LLaVA scorer reads in an answer.

    The rules, in this order: the whole text is one of A to E; the text starts with one
    of them, a period and a space; "The answer is X" and any one character occurs
    exactly once. Use it to reproduce published numbers. Known pitfalls: "B." and "(B)"
    and a final "The answer is D" are not read, "The answer is Apple." is read as A.

    Args:
        text: The answer.
        choices: The choices of the question.

    Returns:
        The index of the choice, or `None`.

    Example:

    >>> parse_letter_strict("The answer is B.", ["cat", "trout"])
    1
    """
    letters = LETTERS[:5]
    stated = re.findall(r"The answer is ([A-Z]).", text)
    if len(text) == 1 and text in letters:
        letter = text
    elif len(text) >= 3 and text[0] in letters and text[1:3] == ". ":
        letter = text[0]
    elif len(stated) == 1:
        letter = stated[0]
    else:
        return None
    index = LETTERS.index(letter)
    return index if index < min(len(choices), len(letters)) else None


def parse_choice(text: str, choices: Sequence[str]) -> int | None:
    """The choice that an answer names, in whatever form; `None` if it is not clear.

    It reads a letter ("B", "b.", "(B)", "B. New Hampshire"), a statement ("The answer
    is B", also in other languages, which takes precedence over letters mentioned
    elsewhere), the text of a choice, alone or as whole words in a sentence (the longest
    wins where one choice is part of another), and letters that a sentence uses as such
    ("I think it's C", "option D"). It reads them in Markdown, HTML, LaTeX, brackets and
    quotation marks; an answer that is set apart (`\\boxed{B}`, `<answer>B</answer>`,
    `{"answer": "B"}`, `#### B`) is a statement.

    Only letters of choices that exist count. The article "a", the pronoun "I", letters
    inside words, initials ("A. Lincoln"), names ("vitamin C") and negated choices ("not
    A", "B is wrong") do not. Several candidates are no answer: "A or B" is none, "not
    B, it's C" is C, and two statements that differ are none. What follows a model's
    thoughts is read (see `clean_answer`).

    Args:
        text: The answer; end marks, formatting and outer spaces are ignored.
        choices: The choices of the question, up to 26.

    Returns:
        The index of the choice, or `None`.

    Example:

    >>> parse_choice("The colony is New Hampshire.", ["Maryland", "New Hampshire"])
    1
    >>> parse_choice("None of the above", ["Maryland", "New Hampshire"])
    """
    text = _normalized(clean_answer(text))
    # Neutralized as in the prompt: a mark in a choice is part of its text.
    options = [_normalized(neutralize_image_marks(choice)) for choice in choices]
    boxed, rest = _boxed(text, options)
    if boxed:
        letters = marked(_without(rest, _option_spans(rest, options)))
        return _only(boxed | _stated(letters, options), len(options))
    return _only(_read(text, options), len(options))


def _boxed(text, options):
    """The choices that are set apart as the answer, and the text without them."""
    found, rest = boxes(text)
    indices = set()
    for start, content in found:
        before = text[:start].rstrip("$\\([{ ") + " "
        if not _refused(before, len(before), len(before)):
            # A small letter is no article here.
            content = content.upper() if len(content) == 1 else content
            indices |= _read(content, options)
    return indices, rest


def _read(text, options):
    """The choices that a text can mean."""
    text = without_bullets(text)
    whole = _equal_options(_core(text), options) | _bare(marked(text))
    if whole:
        return whole
    spans = _option_spans(text, options)
    rest = _without(text, spans)
    letters = marked(rest)
    stated = _stated(letters, options) | _leading(letters, rest, spans, options)
    if stated:
        return stated
    mentioned = _found(MENTIONED, letters, options, leads=True)
    named = {i for start, end, i in spans if not _refused(text, start, end)}
    return {i for i in mentioned if i < len(options)} | named


def _only(indices, count):
    """The index, if there is a single one and it is that of a choice; else `None`."""
    (index,) = indices if len(indices) == 1 else (count,)
    return index if index < count else None


def _normalized(text):
    # Image marks that are left after cleaning belong to the text of a choice.
    text = neutralize_image_marks(without_marks(text))
    text = unicodedata.normalize("NFKC", text)
    text = formatted(text.replace("\u2019", "'"))
    return re.sub(r"[^\S\n]*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()


def _core(text):
    """The text without surrounding punctuation, so that "Red." equals "Red"."""
    return text.strip(" \n.,;:!?\"'()[]") or text


def _equal_options(text, options):
    """The options equal to `text`; case only matters where several are."""
    same = [i for i, o in enumerate(options) if _core(o).casefold() == text.casefold()]
    exact = [i for i in same if _core(options[i]) == text]
    return set(exact or same)


def _bare(text):
    """The choice whose letter is all of the text."""
    letter = BARE.fullmatch(text)
    # A cut-off "a dog" or "i think" is none.
    return {_index(letter)} if letter and text not in ("a", "i") else set()


def _index(match):
    return LETTERS.index(match[match.lastindex].upper())


def _option_spans(text, options):
    """The (start, end, index) of each choice that occurs in the text as whole words."""
    spans = []
    for core in {_core(option).casefold() for option in options}:
        single_letter = len(core) == 1 and core.isalpha()
        if not core or single_letter or set(core.split()) <= _COMMON:
            continue
        words = r"\s+".join(map(re.escape, core.split()))
        pattern = rf"(?<![\w-])(?<!\d[.,/:]){words}(?!\w|-\w|[.,/:]\d)"
        for match in re.finditer(pattern, text, re.IGNORECASE):
            for index in _equal_options(re.sub(r"\s+", " ", match[0]), options):
                spans.append((*match.span(), index))
    return [span for span in spans if not any(_inside(span, s) for s in spans)]


def _inside(span, other):
    shorter = span[1] - span[0] < other[1] - other[0]
    return shorter and other[0] <= span[0] and span[1] <= other[1]


def _without(text, spans):
    """The text with the choices' wording blanked out, so that it has no letters."""
    for start, end, _ in spans:
        text = text[:start] + "\0" * (end - start) + text[end:]
    return text


def _stated(text, options):
    """The choices stated to be the answer; "B or C" states both."""
    return _found(STATED, text, options, leads=False)


def _found(pattern, text, options, leads):
    found = set()
    for match in pattern.finditer(text):
        start = match.start(match.lastindex)
        index = _index(match)
        option = options[index] if index < len(options) else ""
        if not _refused(text, start, start + 1) and not is_initial(
            text, start + 1, option, leads
        ):
            found |= _with_alternative(match, text, start + 1)
    return found


def _with_alternative(match, text, end):
    """The choice of a matched letter, and that of a letter joined to it: "B or C"."""
    other = OR_LETTER.match(text, end)
    if other:
        start = other.start(other.lastindex)
        other = None if _refused(text, start, start + 1) else other
    return {_index(match)} | ({_index(other)} if other else set())


def _leading(letters, rest, spans, options):
    """The choice whose letter starts the text, as in "B. New Hampshire".

    If letter and wording disagree, the choices of both; if the text only repeats the
    list of choices, none.
    """
    match = LEADING.match(letters)
    if not match:
        return set()
    labels = [(LABEL.search(rest, 0, start), i) for start, _, i in spans]
    listed = {_index(match) for match in LISTED.finditer(rest)}
    if len(listed) > 1 or len({i for label, i in labels if label}) > 1:
        return set()
    start, index = match.start(match.lastindex), _index(match)
    option = options[index] if index < len(options) else ""
    if _refused(letters, start, start + 1) or is_initial(
        letters, start + 1, option, leads=True
    ):
        return set()
    found = _with_alternative(match, letters, start + 1)
    return found | {i for label, i in labels if label and not label.start()}


def _refused(text, start, end):
    """Whether the text between `start` and `end` is negated."""
    before = text[max(0, start - _REACH) : start]
    return bool(REFUSED_BEFORE.search(before) or REFUSED_AFTER.match(text, end))
