"""Token ids of conversations in a chat template, and which of them are trained."""

import dataclasses
import functools
import re
import weakref

from keras_betakd.preprocessing.byte_pairs import encode

# SentencePiece writes a space so.
_SPACE = "\u2581"

# What was found out about each tokenizer.
_KNOWN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class ChatTokens:
    """A conversation as tokens.

    Attributes:
        ids: list of ints.
        trained: list of bools of the same length.
    """

    ids: list
    trained: list


def chat_tokens(chat, tokenizer, tokenize=None):
    """The `ChatTokens` of a `Chat`, up to its last trained token.

    No answer depends on what follows. A conversation whose last answer is missing ends
    with its prompt.

    Marks become their own tokens. What is between them is tokenized piece by piece,
    each answer on its own: as the model writes it after its prompt, whose tokens are
    therefore those of the prompt alone. A space that SentencePiece puts in front of a
    text takes the place of a space that a piece begins with, as in the reference
    implementations of Llama 2, Mistral and Phi-3.

    Args:
        chat: the `Chat`.
        tokenizer: a keras-hub tokenizer.
        tokenize: function of a text to its token ids, a list; `encode` if `None`.

    Raises:
        ValueError: the tokenizer lacks a mark of the template.
    """
    marks = mark_ids(chat.template, tokenizer)
    puts_space = _puts_space(tokenizer)
    tokenize = tokenize or functools.partial(encode, tokenizer)
    ids, trained = [], []
    for text, is_trained in _kept(chat.segments):
        start = len(ids)
        for piece in filter(None, _pattern(tuple(marks)).split(text)):
            if piece in marks:
                ids.append(marks[piece])
                continue
            # The start of an answer follows a mark, unless its prompt ends otherwise.
            after_mark = bool(ids) and ids[-1] in marks.values()
            if after_mark and chat.template.drops_spaces:
                piece = piece.lstrip()
            if puts_space and piece == " ":
                ids += _space(tokenizer)
            elif piece:
                ids += tokenize(piece[1:] if puts_space and piece[0] == " " else piece)
        trained += [is_trained] * (len(ids) - start)
    return ChatTokens(ids, trained)


def _kept(segments):
    """The segments up to the last one that is trained; all if none is."""
    answers = [i for i, (_, is_trained) in enumerate(segments) if is_trained]
    return segments[: answers[-1] + 1] if answers else segments


@functools.lru_cache
def _pattern(marks):
    longest = sorted(marks, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest)) + ")")


def mark_ids(template, tokenizer):
    """The ids of a template's marks, by their texts.

    Raises:
        ValueError: the tokenizer has no token for one. The message names it.
    """

    def found():
        return {text: _mark_id(text, template, tokenizer) for text in template.tokens}

    return _once(tokenizer, template.tokens, found)


def _once(tokenizer, key, find):
    """What `find` returns for a tokenizer, kept while its vocabulary has its size."""
    known = _KNOWN.setdefault(tokenizer, {})
    key = key, tokenizer.vocabulary_size()
    if key not in known:
        known[key] = find()
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


def _puts_space(tokenizer):
    """Whether the tokenizer puts a space in front of every text."""

    def found():
        first = encode(tokenizer, "a")[:1]
        return any(str(tokenizer.id_to_token(i)).startswith(_SPACE) for i in first)

    return _once(tokenizer, "puts_space", found)


def _space(tokenizer):
    """The token of a single space."""
    found = token_id(_SPACE, tokenizer)
    return [] if found is None else [found]
