"""Finds which option of MMBench an answer names, by two public sets of rules.

Both look for a letter first and for an option's text second, and leave the rest to a
chat model. No chat model is used here: what the rules do not resolve counts as wrong.
"""

import re
from collections.abc import Mapping

_API_FAILURE = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_STATED = re.compile(r"answer\s+is\s+\**([A-D])", re.IGNORECASE)

# Punctuation that may surround a letter X, in the order in which it is tried.
_DECORATIONS = "X. X, X: X) X). (X) (X). :X :X, :X. :X) :X).".split()
_LETTERS_WITH_E = "ABCDE"


def match_vlmevalkit(text: str, choices: Mapping[str, str]) -> str | None:
    """Matches an answer by the rules of VLMEvalKit ("exact matching").

    The rules, in this order: the only option's letter that is one of the words, with
    punctuation replaced by spaces, if it first occurs among the last four words; a
    letter after "answer is"; the only option whose text occurs in the answer, if the
    answer is at most twice as long as all options together.

    Known pitfalls: "answer is blue" is B, as the letter may begin a word; "A cat" is A.

    Args:
        text: The answer.
        choices: The options of the question, by letter.

    Returns:
        A letter of `choices`; "Z" for a refusal; `None` if the rules do not resolve it.

    Example:

    >>> choices = {"A": "cat", "B": "dog"}
    >>> match_vlmevalkit("**B**", choices), match_vlmevalkit("A or B", choices)
    ('B', None)
    """
    if _API_FAILURE not in text:
        if any(refusal in text for refusal in _REFUSALS):
            return "Z"
        words = text.translate(_PUNCTUATION).split()
        letters = [letter for letter in choices if letter in words]
        if len(letters) == 1 and words.index(letters[0]) >= len(words) - 4:
            return letters[0]
        if not letters and "Z" in words:
            return "Z"
        stated = _STATED.search(text)
        if stated and stated[1].upper() in choices:
            return stated[1].upper()
    if len(text.lower()) > 2 * sum(map(len, choices.values())):
        return None
    return _only_text(text, choices)


def match_opencompass(text: str, choices: Mapping[str, str]) -> str | None:
    """Matches an answer by the rules of the script of August 2023 (OpenCompass).

    The rules, in this order: the only letter from A to E that is a word, unless "A" is
    one among more than three words; the only letter with one of a list of decorations
    ("B.", "(B)"), decoration by decoration; the only option whose text occurs in the
    answer.

    Known pitfalls: "**B**" and "The answer is A" are not resolved; E is a letter even
    where there are four options or two.

    Args:
        text: The answer.
        choices: The options of the question, by letter.

    Returns:
        A letter from A to E, or `None` if the rules do not resolve the answer.

    Example:

    >>> choices = {"A": "cat", "B": "dog"}
    >>> match_opencompass("(B)", choices), match_opencompass("**B**", choices)
    ('B', None)
    """
    if _API_FAILURE not in text:
        words = text.split()
        plain = [letter for letter in _LETTERS_WITH_E if letter in words]
        if len(plain) == 1 and not ("A" in words and len(words) > 3):
            return plain[0]
        for decoration in _DECORATIONS:
            decorated = [
                letter
                for letter in _LETTERS_WITH_E
                if decoration.replace("X", letter) in words
            ]
            if len(decorated) == 1:
                return decorated[0]
    return _only_text(text, choices)


def _only_text(text, choices):
    named = [letter for letter, name in choices.items() if name.lower() in text.lower()]
    return named[0] if len(named) == 1 else None
