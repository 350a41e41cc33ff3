"""`AnswerDecoder`: a student's answers to prompts, as the token ids that it sampled."""

import contextlib
import functools
import hashlib

import keras
import numpy as np

from keras_betakd.models.answer_function import (
    AnswerFunction,
    compiles_shapes,
    decoded_length,
)
from keras_betakd.models.chat_generation import stop_tokens
from keras_betakd.models.uncached_decoding import token_decoder
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.preprocessor import without_images
from keras_betakd.preprocessing.prompts import (
    as_prompts,
    grouped,
    prompt_inputs,
    stacked_inputs,
)
from keras_betakd.preprocessing.record_checks import checked_records


def hashed_seed(*parts):
    """A seed of 31 bits, far from those of other parts, such as other epochs.

    On PyTorch, Keras adds the number of draws to a seed: those of two epochs that
    follow each other would be the same, but for one.

    Example:

    >>> hashed_seed(0, 1), hashed_seed(0, 2)
    (718496174, 617328042)
    """
    text = " ".join(map(str, parts))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


class AnswerDecoder:
    """Samples the answers of a keras-hub model, and keeps what was compiled for it.

    Args:
        view: the `CausalLMView` of the model, which has a preprocessor.
        template: the template of its prompts, as for `model_inputs`.
        max_new_tokens: the most tokens of an answer, the one that ends it included.
        blind: whether the model, a text model, answers without the images.
        role: what the model is called in errors.
        temperature, top_k, top_p, classes: as for `DrawnAnswerSampler`.
    """

    def __init__(
        self,
        view,
        template,
        max_new_tokens,
        blind=False,
        temperature=1.0,
        top_k=None,
        top_p=None,
        classes=None,
        role="student",
    ):
        from keras_betakd.on_policy.sampler import DrawnAnswerSampler

        self.view = view
        self.family = format_of(view.model.preprocessor)
        self.template = template
        self.max_new_tokens = max_new_tokens
        self.blind = blind
        self.role = role
        # Classes that pad a vocabulary are no tokens.
        size = view.model.preprocessor.tokenizer.vocabulary_size()
        classes = size if classes is None else min(classes, size)
        excluded = view.placeholder_ids
        self.sampler = DrawnAnswerSampler(temperature, top_k, top_p, classes, excluded)
        self._answers = AnswerFunction(view, self.sampler)
        self._length = 0
        self._uncached = None

    def begin(self, seed):
        """Starts anew, as if nothing had been decoded before.

        Answers then depend on nothing but this seed, the weights and the prompts.

        Args:
            seed: int below 2^31, from which a stream of random numbers begins.
        """
        self.sampler.begin(seed)
        self._length = 0

    def prompts(self, records, keys, skipped=None):
        """Yields the `Prompt`s of raw records, by their keys.

        Args:
            records: dict of raw records.
            keys: what each of them is found by.
            skipped: dict that gets the names of prompts that leave no room for
                `max_new_tokens`, with the reasons; they are left out. An error if
                `None`.

        Raises:
            ValueError: a record is wrong, or its prompt leaves no room. The message
                names it.
        """
        records = checked_records(records)
        if self.blind:
            records = without_images(records)
        inputs = prompt_inputs(self.family, records, self.template)
        limit = self._limit
        lengths = self.family.prompt_lengths(inputs, limit)[self.family.answer_length]
        reasons = self._without_room(records.names, lengths, limit)
        if reasons and skipped is None:
            raise ValueError(next(iter(reasons.values())))
        found = as_prompts(self.family, inputs, lengths, limit, keys)
        for name, prompt in zip(records.names, found, strict=True):
            if name in reasons:
                skipped[name] = reasons[name]
            else:
                yield prompt

    @property
    def end(self):
        """The shortest answer: the token that ends one."""
        return [self.family.preprocessor.tokenizer.end_token_id]

    def text_of(self, tokens):
        """The text of tokens, without special ones."""
        if not tokens:
            return ""
        arrays = {"token_ids": [tokens], "padding_mask": [[True] * len(tokens)]}
        arrays = {k: keras.ops.convert_to_tensor(v) for k, v in arrays.items()}
        return str(self.family.preprocessor.generate_postprocess(arrays)[0])

    @property
    def _limit(self):
        return getattr(self.family.preprocessor, self.family.answer_length)

    def _without_room(self, names, lengths, limit):
        """The records whose prompts leave no room, with the reasons."""
        return {
            name: f"Record {name}: its prompt has {length} tokens, and an answer of "
            f"the {self.role} up to max_new_tokens={self.max_new_tokens}, more than "
            f"{limit} together. Raise "
            f"`{self.role}.preprocessor.{self.family.answer_length}`, give a smaller "
            "`max_new_tokens`, or leave the record out "
            '(`on_too_long="skip"` of the preprocessor does).'
            for name, length in zip(names, lengths, strict=True)
            if length + self.max_new_tokens > limit
        }

    def answered(self, prompts, batch_size):
        """Yields each key of `prompts` with its answer, in groups of one size.

        Args:
            prompts: `Prompt`s; read as needed.
            batch_size: the number of prompts that are decoded together.

        Yields:
            `(key, tokens, ended)`: a list of token ids, and whether the last of them
            ends an answer.
        """
        for group in self.answered_groups(grouped(prompts, batch_size)):
            yield from group

    def answered_groups(self, groups):
        """Yields the answers to prompts that are in groups already, group by group.

        Args:
            groups: pairs of a list of `Prompt`s and how many of them lack to the size
                of the others, as `grouped` yields them. A group is decoded before the
                next one is read.

        Yields:
            For each group the list of what `answered` yields.
        """
        with self._in_place() as decode:
            for group, lacking in groups:
                inputs = stacked_inputs(group, lacking)
                stop = stop_tokens(self.family.preprocessor, inputs)
                rows = decode(inputs, self._total_length(group), stop)
                yield [
                    (prompt.id, tokens.tolist(), int(tokens[-1]) in stop)
                    for prompt, tokens in zip(group, rows, strict=False)
                ]

    def _total_length(self, group):
        """The length to decode in.

        Where it has to be compiled for, it grows until `begin`, so that few are.
        """
        needed = max(prompt.length for prompt in group) + self.max_new_tokens
        length = decoded_length(needed, self._limit)
        if not compiles_shapes():
            return length
        self._length = max(self._length, length)
        return self._length

    @contextlib.contextmanager
    def _in_place(self):
        """Within, the model decodes by the function that is yielded.

        Its own sampler and compiled function are given back, whatever happens.
        """
        if self.family.decodes_cached:
            with self._answers.in_place(self.max_new_tokens) as function:
                yield functools.partial(self._decoded, function)
            return
        if self._uncached is None:
            self._uncached = token_decoder(self.view.model, self._chosen)
        yield self._decoded_uncached

    def _decoded(self, function, inputs, length, stop):
        """The answers to `prompt_inputs`: an array of token ids for each."""
        packed = self.family.step_inputs(inputs, length)
        mask = np.asarray(packed["padding_mask"]).astype(bool)
        packed = {k: keras.ops.convert_to_tensor(v) for k, v in packed.items()}
        # A tuple, which JAX can compile for.
        found = function(packed, stop_token_ids=tuple(stop))
        found = {k: keras.ops.convert_to_numpy(v) for k, v in found.items()}
        is_answer = found["padding_mask"].astype(bool) & ~mask
        rows = zip(found["token_ids"], is_answer, strict=True)
        return [ids[own][: self.max_new_tokens] for ids, own in rows]

    def _decoded_uncached(self, inputs, length, stop):
        found = self._uncached(inputs, length, stop, self.max_new_tokens)
        rows = []
        for ids, start, end in zip(*found, strict=True):
            room = min(start + self.max_new_tokens, length)
            ended = end < room and ids[end] in stop
            rows.append(ids[start : end + ended])
        return rows

    def _chosen(self, logits):
        """Samples tokens, int (B,), from logits (B, V)."""
        probabilities = self.sampler.compute_probabilities(logits)
        return keras.ops.convert_to_numpy(self.sampler.get_next_token(probabilities))
