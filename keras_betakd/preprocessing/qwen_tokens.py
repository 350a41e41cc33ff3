"""The byte-level byte-pair encoding that the published Qwen models share."""

import re

# Each match is a piece that no merge reaches beyond.
QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Marks, such as the vowels of Hindi and Thai, belong to words.
QWEN3_5_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MARK = re.compile(r"<[^<>\s]+>")


def byte_level_bpe(vocabulary, merges, added_tokens=(), pieces=QWEN2_PIECES):
    """A `tokenizers.Tokenizer` that splits texts as the published Qwen tokenizers do.

    Added tokens are found in the raw text first. The text between them is normalised
    (NFC) and split into words, single digits, punctuation and spaces; the merges run
    within these pieces, on bytes.

    Args:
        vocabulary: dict of tokens, in the characters of byte-level encodings, to ids.
        merges: list of `"left right"`, the most important one first.
        added_tokens: list of `(text, id, is_special)`. A text that the vocabulary does
            not hold gets the next id that is free, so they are given by their ids.
        pieces: the pattern whose matches are the pieces of a text.

    Raises:
        ValueError: a merge of tokens that the vocabulary does not hold, or an added
            token whose id is not the next one. The message names it.

    Example:

    ```python
    tokenizer = byte_level_bpe({"a": 0, "b": 1, "ab": 2}, ["a b"])
    tokenizer.encode("abb").ids  # [2, 1]
    ```

    Source: `Qwen2Tokenizer` and `Qwen3_5Tokenizer` in `transformers`.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    pairs = [tuple(merge.split(" ")) for merge in merges]
    for merge, pair in zip(merges, pairs, strict=True):
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise ValueError(
                "A merge must be two tokens of the vocabulary with a space between "
                "them, which together are a third. Use the merges that belong to the "
                f"vocabulary. Received: {merge!r}"
            )
    tokenizer = tokenizers.Tokenizer(models.BPE(dict(vocabulary), pairs))
    for text, number, is_special in added_tokens:
        token = tokenizers.AddedToken(text, normalized=False, special=bool(is_special))
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(text) != number:
            raise ValueError(
                f"The added token {text!r} would get the id "
                f"{tokenizer.token_to_id(text)}: ids must be whole numbers from 0 on, "
                f"without gaps, and each for one token. Received: the id {number}"
            )
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(pieces), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


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
