"""The published Qwen models' tokenizer, which keras-hub's own differs from."""

import json
import os
from collections.abc import Sequence
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_betakd.files import read_json
from keras_betakd.preprocessing.byte_pairs import QWEN2, byte_level_bpe
from keras_betakd.qwen_vl.tokenizer_files import added_of, merges_of, vocabulary_of
from keras_betakd.vision_language.graphs import in_graph

_FILES = ("vocabulary.json", "merges.txt", "added_tokens.json")

_NAMED = {
    "end_token": "<|im_end|>",
    "end_token2": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "im_start_token": "<|im_start|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}


@keras.saving.register_keras_serializable(package="keras_betakd")
class QwenVLTokenizer(keras_hub.tokenizers.Tokenizer):
    """Qwen2-VL's byte-level tokenizer, which Qwen2.5-VL and Qwen3-VL share.

    `keras_hub.models.QwenTokenizer` gives other ids for double spaces, indentation and
    spaces beside line breaks, and does not know `<|im_start|>` as one token.

    Args:
        vocabulary: dict of tokens to ids, or the path of a `vocab.json`.
        merges: list of `"left right"`, or the path of a `merges.txt`.
        added_tokens: list of `(text, id, is_special)`: the texts that are one token
            wherever they stand, as in `added_tokens_decoder` of a published
            `tokenizer_config.json`. Special ones are left out of answers. Defaults to
            those of the published ones that the vocabulary holds.
        **kwargs: as for any `keras_hub.tokenizers.Tokenizer`.

    Call arguments:
        inputs: a string, or a list of strings. Nothing is added in front or behind.

    Returns:
        int32 (T,) for a string; for a list, a list of lists of ints. In `tf.data`, an
        int32 tensor or a `tf.RaggedTensor`.

    Attributes:
        end_token, end_token2: `"<|im_end|>"` and `"<|endoftext|>"`; generation stops at
            both. Each of these tokens has its id under `end_token_id` and so on.
        pad_token: `"<|endoftext|>"`.
        start_token: `None`: there is none.
        im_start_token, vision_start_token, vision_end_token, image_token, video_token:
            `"<|im_start|>"`, ..., `"<|image_pad|>"`, `"<|video_pad|>"`.

    Raises:
        ValueError: `vocabulary`, `merges` or `added_tokens` do not belong together; a
            mark of the attributes above is missing.

    Example:

    ```python
    added = [("<|endoftext|>", 151643, True), ("<|im_start|>", 151644, True), ...]
    tokenizer = QwenVLTokenizer("vocab.json", "merges.txt", added)
    tokenizer.detokenize(tokenizer("def f(x):\\n    return x"))
    ```

    Source: `Qwen2Tokenizer` in `transformers`.
    """

    def __init__(
        self,
        vocabulary: dict[str, int] | str | os.PathLike | None = None,
        merges: Sequence[str] | str | os.PathLike | None = None,
        added_tokens: Sequence[tuple[str, int, bool]] | None = None,
        **kwargs,
    ):
        super().__init__(**{"dtype": "int32", **kwargs})
        self.file_assets = list(_FILES)
        self.start_token = self.start_token_id = None
        for name, text in _NAMED.items():
            setattr(self, name, text)
        self._set(vocabulary, merges, added_tokens)

    def _set(self, vocabulary, merges, added_tokens):
        self.vocabulary = self.merges = self.added_tokens = self._encoder = None
        for name in _NAMED:
            setattr(self, f"{name}_id", None)
        if vocabulary is None or merges is None:
            return  # Until `load_assets` has read them.
        ids = vocabulary_of(vocabulary)
        added = added_of(added_tokens, ids)
        merges = merges_of(merges)
        self._encoder = byte_level_bpe(ids, merges, QWEN2, added)
        self.vocabulary = {**ids, **{text: number for text, number, _ in added}}
        self.merges, self.added_tokens = merges, added
        self._expect_whole()
        for name, text in _NAMED.items():
            setattr(self, f"{name}_id", self.vocabulary[text])

    def _expect_whole(self):
        """Raises unless ids are 0, 1, ... and all marks are there."""
        if sorted(self.vocabulary.values()) != list(range(len(self.vocabulary))):
            raise ValueError(
                "The ids of the vocabulary and of `added_tokens` together must be the "
                "whole numbers from 0 on, each for one token. Use the files of one "
                f"checkpoint. Received: {len(self.vocabulary)} tokens with ids from "
                f"{min(self.vocabulary.values())} to {max(self.vocabulary.values())}"
            )
        known = {text for text, _, _ in self.added_tokens}
        missing = sorted(set(_NAMED.values()) - known)
        if missing:
            raise ValueError(
                f"The tokenizer has no {', '.join(missing)}, which prompts of Qwen's "
                "models with vision need. A published `vocab.json` does not hold them: "
                "pass `added_tokens`, the entries of `added_tokens_decoder` in "
                f"`tokenizer_config.json`. Received: {len(known)} added tokens"
            )

    @property
    def special_tokens(self) -> list[str]:
        """The texts of all special tokens."""
        return [text for text, _, is_special in self.added_tokens or () if is_special]

    @property
    def special_token_ids(self) -> list[int]:
        """The ids of all special tokens, which are left out of answers."""
        self._expect_vocabulary()
        return [number for _, number, is_special in self.added_tokens if is_special]

    def get_vocabulary(self) -> list[str]:
        """All tokens in the order of their ids: a list of strings."""
        self._expect_vocabulary()
        return sorted(self.vocabulary, key=self.vocabulary.get)

    def vocabulary_size(self) -> int:
        """The number of tokens, added ones included."""
        self._expect_vocabulary()
        return len(self.vocabulary)

    def id_to_token(self, id: int) -> str:
        """The token of an id; raises a `ValueError` if there is none."""
        self._expect_vocabulary()
        found = self._encoder.id_to_token(int(id)) if id >= 0 else None
        if found is None:
            raise ValueError(
                f"An id must be from 0 to {self.vocabulary_size() - 1}. Received: {id}"
            )
        return found

    def token_to_id(self, token: str) -> int:
        """The id of a token; raises a `ValueError` if there is none."""
        self._expect_vocabulary()
        if token not in self.vocabulary:
            raise ValueError(f"The vocabulary has no token {token!r}.")
        return self.vocabulary[token]

    def call(self, inputs, *args, training=None, **kwargs):
        return self.tokenize(inputs)

    def tokenize(self, inputs: Any):
        """The token ids of a string, or of each string of a list."""
        self._expect_vocabulary()
        if in_graph():
            return self._tokenize_in_graph(inputs)
        texts = inputs.numpy() if hasattr(inputs, "numpy") else inputs
        texts = texts.tolist() if isinstance(texts, np.ndarray) else texts
        if isinstance(texts, (str, bytes)):
            return np.array(self._ids(texts), "int32")
        if not isinstance(texts, (list, tuple)) or not all(
            isinstance(text, (str, bytes)) for text in texts
        ):
            raise ValueError(
                "A text to tokenize must be a string or a list of strings. Received: "
                f"{texts!r:.80}"
            )
        return [self._ids(text) for text in texts]

    def _ids(self, text):
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return self._encoder.encode(text).ids

    def _tokenize_in_graph(self, inputs):
        """`tokenize` inside `tf.data`."""
        import tensorflow as tf

        def tokenize(texts):
            rows = [self._ids(text) for text in texts.reshape(-1).tolist()]
            flat = np.array([token for row in rows for token in row], "int32")
            return flat, np.array([len(row) for row in rows], "int64")

        inputs = tf.convert_to_tensor(inputs)
        flat = tf.reshape(inputs, [-1])
        ids, lengths = tf.numpy_function(tokenize, [flat], (tf.int32, tf.int64))
        ids.set_shape([None])
        lengths.set_shape([None])
        if inputs.shape.rank == 0:
            return ids
        return tf.RaggedTensor.from_row_lengths(ids, lengths)

    def detokenize(self, inputs: Any, skip_special_tokens: bool = False):
        """The text of token ids, or the texts of rows of them.

        Bytes that are no UTF-8 become the replacement character. Ids without a token,
        which the padded rows of an embedding have, are left out.

        Args:
            inputs: (T,) or (B, T) ints: a list, an array or a tensor; or a list of
                lists.
            skip_special_tokens: whether to leave special tokens out.

        Returns:
            A string, or a list of them.
        """
        self._expect_vocabulary()
        if hasattr(inputs, "to_list"):  # a ragged tensor
            rows = inputs.to_list()
        elif hasattr(inputs, "__array__"):
            rows = keras.ops.convert_to_numpy(inputs).tolist()
        else:
            rows = [r.tolist() if hasattr(r, "tolist") else r for r in inputs]
        if rows and isinstance(rows[0], (list, tuple)):
            return [self._encoder.decode(row, skip_special_tokens) for row in rows]
        return self._encoder.decode(rows, skip_special_tokens)

    def _expect_vocabulary(self):
        if self._encoder is None:
            raise ValueError(
                f"This {type(self).__name__} has no vocabulary yet: pass `vocabulary` "
                "and `merges`, or load its files by `load_assets`."
            )

    def save_assets(self, dir_path: str | os.PathLike) -> None:
        self._expect_vocabulary()
        merges = "".join(f"{merge}\n" for merge in self.merges)
        # With the added tokens, whose ids may be any of the vocabulary.
        vocabulary, added = (
            json.dumps(x) for x in (self.vocabulary, self.added_tokens)
        )
        contents = vocabulary, merges, added
        for name, text in zip(_FILES, contents, strict=True):
            path = os.path.join(dir_path, name)
            with open(path, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)

    def load_assets(self, dir_path: str | os.PathLike) -> None:
        vocabulary, merges, added = (os.path.join(dir_path, name) for name in _FILES)
        self._set(vocabulary, merges, read_json(added))
