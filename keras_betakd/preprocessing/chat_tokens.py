"""Token ids of conversations in a chat template, and which of them are trained."""

import dataclasses
import functools
import re
import weakref

import numpy as np

# SentencePiece writes a space so.
_SPACE = "\u2581"

_MARK_IDS = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class ChatTokens:
    """A conversation as tokens.

    Attributes:
        ids: list of ints.
        trained: list of bools of the same length.
    """

    ids: list
    trained: list

    @property
    def until_trained(self):
        """The same without what follows the last trained token, if there is one.

        No answer depends on it, and it takes room.
        """
        places = np.flatnonzero(self.trained)
        end = places[-1] + 1 if len(places) else len(self.ids)
        return ChatTokens(self.ids[:end], self.trained[:end])


def chat_tokens(chat, tokenizer):
    """The `ChatTokens` of a `Chat`.

    Marks become their own tokens. What is between them is tokenized piece by piece,
    each answer on its own: as the model writes it after its prompt, whose tokens are
    therefore those of the prompt alone. A space that SentencePiece puts in front of a
    text takes the place of a space that a piece begins with, as in the reference
    implementations of Llama 2, Mistral and Phi-3.

    Raises:
        ValueError: the tokenizer lacks a mark of the template.
    """
    marks = mark_ids(chat.template, tokenizer)
    ids, trained = [], []
    for text, is_trained in chat.segments:
        found = text_tokens(text, chat.template, marks, tokenizer)
        ids += found
        trained += [is_trained] * len(found)
    return ChatTokens(ids, trained)


def text_tokens(text, template, marks, tokenizer):
    """The token ids of a text with a template's marks.

    Args:
        text: a string.
        template: the `ChatTemplate`.
        marks: dict of the texts of marks to their ids.
        tokenizer: a keras-hub tokenizer.
    """
    ids, after_mark = [], False
    for piece in re.split(_pattern(tuple(marks)), text):
        if piece in marks:
            ids.append(marks[piece])
            after_mark = True
        elif piece:
            if after_mark and template.drops_spaces:
                piece = piece.lstrip()
            if piece.startswith(" ") and _puts_space(tokenizer):
                ids += _ids(piece[1:], tokenizer) if piece[1:] else _space(tokenizer)
            elif piece:
                ids += _ids(piece, tokenizer)
    return ids


@functools.lru_cache
def _pattern(marks):
    longest = sorted(marks, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest)) + ")")


def mark_ids(template, tokenizer):
    """The ids of a template's marks, by their texts.

    Raises:
        ValueError: the tokenizer has no token for one. The message names it.
    """
    known = _MARK_IDS.setdefault(tokenizer, {})
    key = template.tokens, tokenizer.vocabulary_size()
    if key not in known:
        known[key] = {text: _mark_id(text, template, tokenizer) for text in key[0]}
    return known[key]


def _mark_id(text, template, tokenizer):
    found = token_id(text, tokenizer)
    if found is None:
        raise ValueError(
            f"The prompt template {template.name!r} writes {text!r}, which is no token "
            f"of this model's {type(tokenizer).__name__}: the template is that of "
            "another family, or the vocabulary that of another model. Give the model's "
            "own `prompt_template`, or `None`."
        )
    return found


def token_id(text, tokenizer):
    """The id of a token by its text; `None` if the vocabulary does not have it."""
    try:
        found = int(tokenizer.token_to_id(text))
        return found if tokenizer.id_to_token(found) == text else None
    except (KeyError, ValueError):
        return None


def end_id(template, tokenizer):
    """The id of the token that ends an answer."""
    return mark_ids(template, tokenizer)[template.end.strip()]


def _ids(text, tokenizer):
    return np.asarray(tokenizer(text)).tolist()


def _puts_space(tokenizer):
    """Whether the tokenizer puts a space in front of every text."""
    first = _ids("a", tokenizer)[:1]
    if not first:
        return False
    return str(tokenizer.id_to_token(first[0])).startswith(_SPACE)


def _space(tokenizer):
    """The token of a single space."""
    found = token_id(_SPACE, tokenizer)
    return [] if found is None else [found]
