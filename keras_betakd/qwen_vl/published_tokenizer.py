"""Reads the tokenizer of a checkpoint's folder, as it was published."""

import pathlib

from keras_betakd.qwen_vl.configurations import ARCHITECTURE
from keras_betakd.qwen_vl.tokenizer import QwenVLTokenizer
from keras_betakd.vision_language.fields import Fields, is_whole, read_object, shown

FILES = "vocab.json, merges.txt and tokenizer_config.json, or tokenizer.json"
"""What a folder has for a tokenizer, for error messages."""


def read_tokenizer(folder):
    """The `QwenVLTokenizer` of a checkpoint's folder.

    Vocabulary and merges are those of vocab.json and merges.txt, or of tokenizer.json
    where the folder has that alone; the added tokens those of `added_tokens_decoder` in
    tokenizer_config.json, or of tokenizer.json.

    Args:
        folder: path of the folder.

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: a file is damaged, or they do not belong together.
    """
    folder = pathlib.Path(folder)
    whole = None
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        whole = Fields(read_object(path), f"'{path}'", ARCHITECTURE)
    vocabulary, merges = _vocabulary(folder, whole)
    added = _added_tokens(folder, whole)
    try:
        return QwenVLTokenizer(vocabulary, merges, added)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # the tokenizers package raises errors of several kinds
        raise ValueError(
            f"The tokenizer in '{folder}' cannot be read: its files are damaged, or of "
            f"two checkpoints. Received: {type(error).__name__}: {error}. Download "
            f"them again: {FILES}."
        ) from error


def _vocabulary(folder, whole):
    paths = folder / "vocab.json", folder / "merges.txt"
    if all(path.is_file() for path in paths):
        return paths
    if whole is None:
        raise FileNotFoundError(
            f"There is no tokenizer in '{folder}'. Download its files into the folder: "
            f"{FILES}."
        )
    model = _section(whole, "model")
    model.expect("type", None, "BPE")
    model.expect("unk_token", None)
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        model.expect(key, None, "")
    for key in ("byte_fallback", "ignore_merges"):
        model.expect(key, None, False)
    if whole.get("normalizer") is not None:
        whole.section("normalizer").expect("type", "NFC")
    if not isinstance(model.get("merges"), list):
        raise model.error("merges", "a list")
    return _section(model, "vocab").values, model.get("merges")


def _section(fields, key):
    if key not in fields:
        raise fields.error(key, "a json object")
    return fields.section(key)


def _added_tokens(folder, whole):
    """List of `(text, id, is_special)`; `None` if no file has them."""
    path = folder / "tokenizer_config.json"
    if path.is_file():
        fields = Fields(read_object(path), f"'{path}'", ARCHITECTURE)
        for key in ("add_prefix_space", "add_bos_token", "split_special_tokens"):
            fields.expect(key, None, False)
        if fields.get("added_tokens_decoder") is not None:
            section = fields.section("added_tokens_decoder")
            return [_of_decoder(section, key) for key in section.values]
    if whole is None or whole.get("added_tokens") is None:
        return None
    entries = whole.get("added_tokens")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise whole.error("added_tokens", "a list of json objects")
    return [_added_token(e, e.get("id"), whole.source) for e in entries]


def _of_decoder(section, key):
    if not key.isascii() or not key.isdigit() or len(key) > 9:
        raise ValueError(
            f"{section.source} has a wrong key. Expected: the ids of tokens. Received: "
            f"{shown(key)}. Download the file again."
        )
    return _added_token(section.section(key).values, int(key), section.source)


def _added_token(values, number, source):
    fields = Fields(values, f"{source}, the token {shown(number)}", ARCHITECTURE)
    if not is_whole(number):
        raise fields.error("id", "a whole number")
    fields.expect("special", None, True, False)
    for key in ("lstrip", "rstrip", "single_word", "normalized"):
        fields.expect(key, None, False)
    if "content" not in fields:
        raise fields.error("content", "a string")
    return fields.text("content"), number, bool(fields.get("special"))
