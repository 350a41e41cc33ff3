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

LETTERS = string.ascii_uppercase

# A letter counts only where it cannot be a word or an initial: it does not in "A dog"
# and "I think", but does in "A is right" and "I.". "(A)" always counts.
_ENDS = r"\s*(?:\.(?!\w)|[;:!?)\]\n]|$)"
_GOES_ON = rf"(?={_ENDS}|\s*[,/&]|\s+(?:is|was|because|since|as|or|and)\b)"
_I_GOES_ON = rf"(?={_ENDS}|\s+(?:is|because)\b)"
_LETTER = rf"(?:\(([A-Za-z])\)|([A-HJ-Z]){_GOES_ON}|(I){_I_GOES_ON})"
_SMALL_LETTER = rf"([b-hj-z])(?={_ENDS})"
_OR_LETTER = re.compile(
    rf"[).]?\s*(?:or|and|/|,|&)\s*(?:(?i:option|choice)\s+)?{_LETTER}"
)

_BARE = re.compile(r"""[(\["']*([A-Za-z])[)\]"'.:,;!]*""")
_LEADING = re.compile(
    r"(?:\(([A-Za-z])\)|([A-Z])\s?(?:[.):\n]|(?<!I),)(?!\w|\s?[A-Z]\.)|([a-z])\))"
)
_LABEL = re.compile(r"(?:\(([A-Za-z])\)|\b([A-Z])\s?[.):])\s*$")
_STATED = re.compile(
    r"\b(?i:answer(?:\s+(?:to|for)\b[^.?!:]{0,60}?)?|correct\s+(?:choice|option|letter))"
    r"(?i:\s+(?:is|would\s+be|should\s+be|must\s+be)|\s*:)[\s:]*"
    rf"(?i:(?:option|choice|letter)\s+)?(?:{_LETTER}|{_SMALL_LETTER})"
)
_MENTIONED = re.compile(
    rf"(?:^|[.!?;:]\s+|\n|\b(?i:is|be|was|say|choose|select|pick|with)\s+){_LETTER}"
    r"|\b(?i:option|choice|letter)\s+([A-Z])(?![\w'-])|\(([A-Z])\)"
)

_REFUSED_AFTER = re.compile(
    r"\)?\s*(?:(?:is|was|are)(?:n't|\s+(?:not|wrong|incorrect|false|never|a\s+(?:\w+\s+)"
    r"?distractor)\b)|can(?:not|'t)\b)"
)
_REFUSED_BEFORE = re.compile(
    r"(?i:\bnot|n't|\bneither|\bnor|\bnever|\bcannot|\bexcept|\bunlike|\brather\s+than"
    r"|\binstead\s+of)\s+(?i:be\s+)?(?i:(?:a|an|the|in|at|on|of|option|choice)\s+)?\(?$"
    r"|(?i:(?:\bnot|n't)\s+(?:think|believe|know|say|sure|certain)|\bdoubt)\b[^.!?;,\n]*$"
)
# A choice that has only such words is too common to be searched for in a sentence.
_COMMON = frozenset(
    "a an the i is are was were be it its this that in on at of to and or not".split()
)


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

    It reads a letter ("B", "b.", "(B)", "**B**", "B. New Hampshire"), a statement
    ("The answer is B", which takes precedence over letters mentioned elsewhere), the
    text of a choice, alone or as whole words in a sentence (the longest wins where one
    choice is part of another), and letters that a sentence uses as such ("I think it is
    C", "option D"). Only letters of choices that exist count. The article "a", the
    pronoun "I", letters inside words and negated choices ("not A", "B is wrong") do
    not. Several candidates are no answer.

    Args:
        text: The answer; end marks, Markdown stars and outer spaces are ignored.
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
    whole = _whole(text, options)
    if whole:
        return _only(whole, len(options))
    spans = _option_spans(text, options)
    letters = _without(text, spans)
    stated = _stated(letters) | _leading(letters, spans)
    if stated:
        return _only(stated, len(options))
    mentioned = {i for i in _found(_MENTIONED, letters) if i < len(options)}
    named = {i for start, end, i in spans if not _refused(text, start, end)}
    return _only(mentioned | named, len(options))


def _only(indices, count):
    """The index, if there is a single one and it is that of a choice; else `None`."""
    (index,) = indices if len(indices) == 1 else (count,)
    return index if index < count else None


def _normalized(text):
    # Image marks that are left after cleaning belong to the text of a choice.
    text = neutralize_image_marks(without_marks(text))
    text = unicodedata.normalize("NFKC", text)
    text = text.replace("\u2019", "'").replace("*", "").replace("`", "")
    return re.sub(r"[^\S\n]*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()


def _core(text):
    """The text without surrounding punctuation, so that "Red." equals "Red"."""
    return text.strip(" \n.,;:!?\"'()[]") or text


def _equal_options(text, options):
    """The options equal to `text`; case only matters where several are."""
    same = [i for i, o in enumerate(options) if _core(o).casefold() == text.casefold()]
    exact = [i for i in same if _core(options[i]) == text]
    return set(exact or same)


def _whole(text, options):
    """The choices that the text as a whole can mean, by letter or by wording."""
    found = _equal_options(_core(text), options)
    letter = _BARE.fullmatch(text)
    if letter and text not in ("a", "i"):  # A cut-off "a dog" or "i think".
        found.add(_index(letter))
    return found


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


def _stated(text):
    """The choices stated to be the answer; "B or C" states both."""
    return _found(_STATED, text)


def _found(pattern, text):
    found = set()
    for match in pattern.finditer(text):
        start = match.start(match.lastindex)
        if _refused(text, start, start + 1):
            continue
        found |= _with_alternative(match, text, start + 1)
    return found


def _with_alternative(match, text, end):
    """The choice of a matched letter, and that of a letter joined to it: "B or C"."""
    other = _OR_LETTER.match(text, end)
    return {_index(match)} | ({_index(other)} if other else set())


def _leading(text, spans):
    """The choice whose letter starts the text, as in "B. New Hampshire".

    If letter and wording disagree, the choices of both; if the text only repeats the
    list of choices, none.
    """
    match = _LEADING.match(text)
    if not match:
        return set()
    labels = [(_LABEL.search(text, 0, start), i) for start, _, i in spans]
    if len({i for label, i in labels if label}) > 1:
        return set()
    letters = _with_alternative(match, text, match.end(match.lastindex))
    return letters | {i for label, i in labels if label and not label.start()}


def _refused(text, start, end):
    """Whether the text between `start` and `end` is negated."""
    before, after = text[:start], text[end:]
    return bool(_REFUSED_BEFORE.search(before) or _REFUSED_AFTER.match(after))
