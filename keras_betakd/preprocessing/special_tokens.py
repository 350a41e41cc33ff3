"""Texts that a model's tokenizer reads as image tokens, or as the end of an answer."""

import dataclasses
import functools
import re
import reprlib
import unicodedata
import weakref

from keras_betakd.data.images import is_image_token

# Attributes of keras-hub's tokenizers that hold tokens of images, videos and sounds.
_NAME = re.compile(r"(image|vision|video|audio|multimodal)\w*(token|placeholder)$")
# Characters that tokenizers may drop, so that a mark with one of them is the mark.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

_FOUND: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The texts that become special tokens wherever they stand, with their ids.

    Attributes:
        images: tokens of images, videos and sounds.
        ends: the tokenizer's start, end and padding tokens. Chat marks such as
            `<end_of_turn>` are not among them: an answer may end with its own.
    """

    images: dict[str, int]
    ends: dict[str, int]

    def find_image(self, text, tokenize):
        """The first image token of a text, or `None`.

        Args:
            text: a string.
            tokenize: callable that returns the token ids of a text.
        """
        return _find(text, self.images, self._image_pattern, tokenize)

    def find_end(self, text, tokenize):
        """The first start, end or padding token of a text, or `None`."""
        return _find(text, self.ends, self._end_pattern, tokenize)

    @functools.cached_property
    def _image_pattern(self):
        return _any_of(self.images)

    @functools.cached_property
    def _end_pattern(self):
        return _any_of(self.ends)


def special_tokens(tokenizer, tokenize):
    """The `SpecialTokens` of a tokenizer. They are found once and kept.

    Candidates are the tokens that the tokenizer names and those of its vocabulary that
    look like a mark of an image; of these, the ones that it makes tokens of in a text.

    Args:
        tokenizer: a keras-hub tokenizer.
        tokenize: callable that returns the token ids of a text.
    """
    size = tokenizer.vocabulary_size()
    if tokenizer not in _FOUND or _FOUND[tokenizer][0] != size:
        _FOUND[tokenizer] = size, _found_in(tokenizer, tokenize)
    return _FOUND[tokenizer][1]


def _found_in(tokenizer, tokenize):
    tokens = map(_as_str, tokenizer.get_vocabulary())
    ids = {token: i for i, token in enumerate(tokens)}
    named = {
        name: token
        for name, token in vars(tokenizer).items()
        if isinstance(token, str) and token in ids
    }
    images = {token for name, token in named.items() if _NAME.search(name)}
    images |= {token for token in ids if is_image_token(token)}
    ends = {
        text: ids[named[name]]
        for name in ("start_token", "end_token", "pad_token")
        if name in named
        for text in (named[name], _written(tokenizer, ids[named[name]]))
    }

    def becomes(text, token):
        return token in tokenize(f"a{text}a")

    return SpecialTokens(
        {text: ids[text] for text in images if becomes(text, ids[text])},
        {text: token for text, token in ends.items() if text and becomes(text, token)},
    )


def _as_str(token):
    return token.decode("utf-8", "replace") if isinstance(token, bytes) else token


def _written(tokenizer, token):
    """The text of a token: byte-level vocabularies hold it in other characters."""
    text = tokenizer.detokenize([token])
    return _as_str(text.numpy() if hasattr(text, "numpy") else text)


def _any_of(tokens):
    """A pattern of all tokens, the longest first; `None` if there are none."""
    longest = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest))) if longest else None


def _find(text, tokens, pattern, tokenize):
    if pattern is None:
        return None
    match = pattern.search(text)
    if match or (text.isascii() and not _CONTROL.search(text)):
        return match and match[0]
    # SentencePiece may normalise a text first: '＜img＞' becomes '<img>'.
    match = pattern.search(_CONTROL.sub("", unicodedata.normalize("NFKC", text)))
    found = match and tokens[match[0]] in tokenize(text)
    return match[0] if found else None


def expect_no_special_tokens(family, prompts, responses, names, in_template=False):
    """Raises a `ValueError` if a text has a token that must not stand there.

    Prompts may have the family's own marks of images, in which each stands for one, but
    no other image token; responses no image token and no start, end or padding token.

    Args:
        family: the model's `TextFormat`.
        prompts: B prepared prompts, strings or lists of strings.
        responses: the same, or `None`.
        names: B strings that name the records in errors.
        in_template: whether a chat template writes the prompts, so that no token that
            begins, ends or pads a text belongs into them.
    """
    special = special_tokens(family.preprocessor.tokenizer, family.token_ids)
    for turns, name in zip(prompts, names, strict=True):
        for text in [turns] if isinstance(turns, str) else turns:
            for mark in family.own_marks:
                text = text.replace(mark, "\n")
            token = special.find_image(text, family.token_ids)
            if token is not None:
                raise _image_error(name, "prompt", token, turns)
            token = special.find_end(text, family.token_ids) if in_template else None
            if token is not None:
                raise ValueError(
                    f"Record {name} has {token!r} in its prompt, which this model's "
                    "tokenizer reads as a token that begins, ends or pads a text. The "
                    "chat template writes these by itself; take it out of the prompt. "
                    f"Received: prompt={reprlib.repr(turns)}"
                )
    for turns, name in zip(responses or (), names, strict=False):
        for text in [turns] if isinstance(turns, str) else turns:
            marks = (mark for mark in family.marks_of_images if mark in text)
            token = next(marks, None) or special.find_image(text, family.token_ids)
            if token is not None:
                raise _image_error(name, "response", token, turns)
            token = special.find_end(text, family.token_ids)
            if token is not None:
                raise ValueError(
                    f"Record {name} has {token!r} in its response, which this model's "
                    "tokenizer reads as a token that begins, ends or pads a text: what "
                    "follows would be trained, and never be answered. The end mark is "
                    "added by itself; take it out of the response. Received: "
                    f"response={reprlib.repr(turns)}"
                )


def _image_error(name, what, token, text):
    return ValueError(
        f"Record {name} has the image mark {token!r} in its {what}, where no image "
        "stands, and this model would read it as one. "
        "`keras_betakd.data.neutralize_image_marks` takes its meaning away; images "
        "stand in prompts only, each at its own mark. Received: "
        f"{what}={reprlib.repr(text)}"
    )
