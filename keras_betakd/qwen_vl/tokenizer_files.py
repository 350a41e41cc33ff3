"""Vocabulary, merges and added tokens of a published tokenizer, as data or in files."""

import os

from keras_betakd.files import open_text, read_json

# The published added tokens, and whether they are special.
_ADDED = {
    **{
        f"<|{name}|>": True
        for name in (
            *("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end"),
            *("box_start", "box_end", "quad_start", "quad_end", "vision_start"),
            *("vision_end", "vision_pad", "image_pad", "video_pad"),
        )
    },
    **{
        text: False
        for text in (
            *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
            *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
            *("<tool_response>", "</tool_response>", "<think>", "</think>"),
        )
    },
}


def vocabulary_of(vocabulary):
    """The dict of a vocabulary that is a dict, or a file of one."""
    where = ""
    if isinstance(vocabulary, (str, os.PathLike)):
        where = f" in {os.fspath(vocabulary)!r}"
        vocabulary = read_json(vocabulary)
    if not isinstance(vocabulary, dict) or not all(
        isinstance(text, str) and type(number) is int and number >= 0
        for text, number in vocabulary.items()
    ):
        raise ValueError(
            "`vocabulary` must be a dict of tokens to whole numbers from 0 on, or the "
            f"path of a json file of one. Received: {type(vocabulary).__name__}{where}"
        )
    return dict(vocabulary)


def merges_of(merges):
    """The list of merges that are a list, or a file of them."""
    if isinstance(merges, (str, os.PathLike)):
        with open_text(merges, newline="\n") as file:
            merges = [line.rstrip("\r\n") for line in file]
        merges = [m for m in merges if m and not m.startswith("#version")]
    # Newer files hold pairs.
    return [m if isinstance(m, str) else " ".join(m) for m in merges]


def added_of(added_tokens, vocabulary):
    """Tuples `(text, id, is_special)` in the order of their ids."""
    if added_tokens is None:
        kept = [text for text in _ADDED if text in vocabulary]
        added_tokens = [(text, vocabulary[text], _ADDED[text]) for text in kept]
    found = []
    for entry in added_tokens:
        if [type(value) for value in entry[:2]] != [str, int] or len(entry) != 3:
            raise ValueError(
                "`added_tokens` must be a list of (text, id, is_special). Received: "
                f"{entry!r:.80}"
            )
        found.append((entry[0], entry[1], bool(entry[2])))
    return sorted(found, key=lambda entry: entry[1])
