"""The published way to tokenize with keras-hub's byte-level byte-pair tokenizers.

Published tokenizers split a text into pieces before they merge bytes, and no merge
reaches beyond a piece. Outside of `tf.data`, keras-hub 0.32 takes the pattern of the
pieces for a literal text, which it never finds, so that its merges reach over spaces,
line breaks and digits. `encode` splits, with the vocabulary of a keras-hub tokenizer.
"""

import dataclasses
import re
import warnings
import weakref

import numpy as np

_MARK = re.compile(r"<[^<>\s]+>")

# What was made of each tokenizer, and the classes that a warning has named.
_ENCODERS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_WARNED: weakref.WeakSet = weakref.WeakSet()


@dataclasses.dataclass(frozen=True)
class BytePairRule:
    """How a published tokenizer makes pieces of a text, and tokens of a piece.

    Args:
        pieces: the pattern whose matches are the pieces; what is between two matches
            is a piece, too.
        is_composed: whether texts are brought into Unicode's composed form (NFC).
        whole_pieces: whether a piece that is a token becomes this token, whatever the
            merges say.
        finds_marks: whether all entries such as `<think>` are tokens in a text, and
            not those alone that keras-hub's tokenizer finds.
    """

    pieces: str
    is_composed: bool = False
    whole_pieces: bool = False
    finds_marks: bool = False


GPT2 = BytePairRule(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
GPT_NEOX = dataclasses.replace(GPT2, is_composed=True)
# Within brackets, an inner pair is a class of its own: the marks of sentences.
BLOOM = BytePairRule(r" ?[^(\s|[.,!?…。，、।۔،])]+")
# Numbers are split in groups of three digits, from the left.
LLAMA3 = BytePairRule(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_pieces=True,
)
GPT_OSS = BytePairRule(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_pieces=True,
)
# Numbers are split in single digits.
QWEN2 = BytePairRule(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    is_composed=True,
)
# Marks, such as the vowels of Hindi and Thai, belong to words.
QWEN3_5 = BytePairRule(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    is_composed=True,
    finds_marks=True,
)

# The rules of the tokenizers of keras-hub's `CausalLM`s, by class. `None` is that of a
# class which splits by itself. Falcon's is that of Falcon RW, of which keras-hub has a
# preset; Falcon 7B and larger ones split otherwise.
RULES = {
    "BLIP2OPTTokenizer": GPT2,
    "BloomTokenizer": BLOOM,
    "FalconTokenizer": GPT2,
    "GPT2Tokenizer": GPT2,
    "GPTNeoXTokenizer": GPT_NEOX,
    "GptOssTokenizer": GPT_OSS,
    "Llama3Tokenizer": LLAMA3,
    "MistralTekkenTokenizer": None,
    "OPTTokenizer": GPT2,
    "Qwen3MoeTokenizer": QWEN2,
    "Qwen3Tokenizer": QWEN2,
    "Qwen3_5MoeTokenizer": QWEN3_5,
    "Qwen3_5Tokenizer": QWEN3_5,
    "QwenMoeTokenizer": QWEN2,
    "QwenTokenizer": QWEN2,
    "SmolLM3Tokenizer": LLAMA3,
}


def encode(tokenizer, text):
    """The token ids of a text: a list of ints.

    Args:
        tokenizer: a keras-hub tokenizer. One of those in `RULES`, or of a class derived
            from them, splits as published; every other one does what keras-hub does,
            and a byte-pair tokenizer is warned of.
        text: a string.

    Example:

    ```python
    encode(student.preprocessor.tokenizer, "def f():\\n    return 1000")
    ```
    """
    encoder = _encoder_of(tokenizer)
    if encoder is None:
        return np.asarray(tokenizer(text)).tolist()
    return encoder.encode(text).ids


def encode_all(tokenizer, texts):
    """`encode` of each text of a list: a list of lists of ints."""
    encoder = _encoder_of(tokenizer)
    if encoder is None:
        return tokenizer(texts)
    return [found.ids for found in encoder.encode_batch(texts)]


def rule_of(tokenizer):
    """The `BytePairRule` by which `encode` splits; `None` where keras-hub tokenizes."""
    return _known_rule(type(tokenizer))[1]


def _known_rule(tokenizer_class):
    """Whether the class is no byte-pair tokenizer without a rule, and its rule."""
    import keras_hub

    for base in tokenizer_class.__mro__:
        name = base.__name__
        if name in RULES and getattr(keras_hub.tokenizers, name, None) is base:
            is_same = not _tokenizes_otherwise(tokenizer_class, base)
            return is_same, RULES[name] if is_same else None
    general = keras_hub.tokenizers.BytePairTokenizer
    return not issubclass(tokenizer_class, general), None


def _tokenizes_otherwise(tokenizer_class, base):
    names = ("call", "tokenize", "set_vocabulary_and_merges")
    return any(getattr(tokenizer_class, n) is not getattr(base, n) for n in names)


def _encoder_of(tokenizer):
    """The `tokenizers.Tokenizer` that encodes in a keras-hub tokenizer's place."""
    is_known, rule = _known_rule(type(tokenizer))
    if not is_known:
        _warn(type(tokenizer))
    if rule is None or tokenizer.vocabulary is None:
        return None
    state = tokenizer.vocabulary, tokenizer.vocabulary_size()
    known = _ENCODERS.get(tokenizer)
    if known is None or known[0] is not state[0] or known[1] != state[1]:
        known = _ENCODERS[tokenizer] = *state, _made(tokenizer, rule)
    return known[2]


def _warn(tokenizer_class):
    if tokenizer_class in _WARNED:
        return
    _WARNED.add(tokenizer_class)
    warnings.warn(
        f"How {tokenizer_class.__name__} splits texts into words is not known here, so "
        "keras-hub tokenizes by itself. Outside of `tf.data`, keras-hub 0.32 does not "
        "split them at all: merges reach over spaces, line breaks and digits, and a "
        "pretrained model reads other tokens than those it was trained on. If the "
        "tokens are those of a class that is known, such as "
        "`keras_hub.tokenizers.GPT2Tokenizer`, derive the tokenizer from it, without "
        f"another `tokenize`. Known are: {', '.join(RULES)}.",
        stacklevel=2,
    )


def _made(tokenizer, rule):
    vocabulary = dict(tokenizer.vocabulary)
    merges = [m for m in tokenizer.merges if "#version:" not in m]
    added = {*(tokenizer.unsplittable_tokens or ())}
    if rule.finds_marks:
        added |= {*tokenizer.special_tokens, *marks_in(vocabulary, merges)}
    added = [(text, vocabulary[text], True) for text in added & vocabulary.keys()]
    prefix = tokenizer.add_prefix_space
    return byte_level_bpe(vocabulary, merges, rule, added, prefix)


def byte_level_bpe(vocabulary, merges, rule, added_tokens=(), add_prefix_space=False):
    """A `tokenizers.Tokenizer` that splits texts as a published tokenizer does.

    Added tokens are found in the raw text first. The text between them is split into
    pieces, such as words, numbers, punctuation and spaces; the merges run within these
    pieces, on bytes.

    Args:
        vocabulary: dict of tokens, in the characters of byte-level encodings, to ids.
        merges: list of `"left right"`, the most important one first.
        rule: the `BytePairRule`.
        added_tokens: list of `(text, id, is_special)`. A text that the vocabulary does
            not hold gets the next id that is free, so they are given by their ids.
        add_prefix_space: whether a text, and the text behind an added token, begins
            with a space where it has none.

    Raises:
        ValueError: a merge of tokens that the vocabulary does not hold, or an added
            token whose id is not the next one. The message names it.

    Example:

    ```python
    tokenizer = byte_level_bpe({"1": 0, "11": 1}, ["1 1"], QWEN2)
    tokenizer.encode("11").ids  # [0, 0]: Qwen merges no digits
    ```

    Source: `GPT2Tokenizer`, `GPTNeoXTokenizer`, `Qwen2Tokenizer`, `Qwen3_5Tokenizer`
    and `TikTokenConverter` in `transformers`.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    pairs = [tuple(merge.split(" ")) for merge in merges]
    for merge, pair in zip(merges, pairs, strict=True):
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise ValueError(
                "A merge must be two tokens of the vocabulary with a space between "
                "them, which together are a third. Use the merges that belong to the "
                f"vocabulary. Received: {merge!r}"
            )
    model = models.BPE(dict(vocabulary), pairs, ignore_merges=rule.whole_pieces)
    tokenizer = tokenizers.Tokenizer(model)
    for text, number, is_special in added_tokens:
        token = tokenizers.AddedToken(text, normalized=False, special=bool(is_special))
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(text) != number:
            raise ValueError(
                f"The added token {text!r} would get the id "
                f"{tokenizer.token_to_id(text)}: ids must be whole numbers from 0 on, "
                f"without gaps, and each for one token. Received: the id {number}"
            )
    if rule.is_composed or add_prefix_space:
        tokenizer.normalizer = _normalizer(rule, add_prefix_space)
    split = pre_tokenizers.Split(tokenizers.Regex(rule.pieces), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _normalizer(rule, add_prefix_space):
    """What is done to a text before it is split."""
    from tokenizers import Regex, normalizers

    steps = [normalizers.NFC()] if rule.is_composed else []
    if add_prefix_space:
        # Before the split: behind it, every piece would get a space. A text that
        # begins with one keeps the one that it has.
        steps += [normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A  "), " ")]
    # One alone as itself, as in published files.
    return steps[0] if len(steps) == 1 else normalizers.Sequence(steps)


def marks_in(vocabulary, merges):
    """The texts of a vocabulary that stand for themselves: `<|im_start|>`, `<think>`.

    keras-hub puts added tokens into the vocabulary, where they are the entries that no
    merge makes. In Qwen's they are all in angle brackets.

    Args:
        vocabulary: dict of tokens to ids.
        merges: list of `"left right"`.

    Returns:
        List of strings.

    Example:

    >>> marks_in({"<": 0, "b": 1, ">": 2, "<b": 3, "<b>": 4, "<i>": 5}, ["< b", "<b >"])
    ['<i>']
    """
    made = {merge.replace(" ", "") for merge in merges}
    return [t for t in vocabulary if t not in made and _MARK.fullmatch(t)]
