"""Tokenizes prompts for a model and raises for those that would be truncated."""

from collections.abc import Iterable, Iterator

from keras_betakd.preprocessing.prompts import Prompt, as_prompts


class PromptTooLong(ValueError):
    """A prompt leaves no room for its answer; keras-hub would truncate it silently.

    Args:
        fact: The first part of the message: which prompt is too long, and for what.
        advice: The second part: how to correct it in Python.

    Attributes:
        fact: The first part, for a message with other advice.
    """

    def __init__(self, fact: str, advice: str):
        super().__init__(f"{fact} {advice}")
        self.fact = fact


class PromptReader:
    """Turns batches into prompts, and raises for those that would be truncated.

    Args:
        preprocessor: The model's preprocessor.
        limit: Tokens of prompt and answer together; by default the preprocessor's
            `sequence_length`.
        room: Tokens that the answer needs at least.
        prompt_template: The template of the prompts, as for `generate_answers`.

    Attributes:
        ids: The ids read so far, in order.

    Example:

    ```python
    reader = PromptReader(model.preprocessor)
    lengths = [prompt.length for prompt in reader.read(dataset)]
    ```
    """

    def __init__(
        self,
        preprocessor,
        limit: int | None = None,
        room: int = 1,
        prompt_template=None,
    ):
        from keras_betakd.preprocessing.image_formats import format_of
        from keras_betakd.preprocessing.prompt_templates import resolved_template

        self.preprocessor = preprocessor
        self.limit = limit or preprocessor.sequence_length
        self.room = room
        self.ids: dict[str, None] = {}  # An ordered set.
        self._format = format_of(preprocessor)
        self._template = resolved_template(prompt_template, self._format)

    def read(self, batches: Iterable[dict]) -> Iterator[Prompt]:
        """Yields the prompts of batches, or of one, as `generate_answers` takes them.

        Raises:
            ValueError: An id occurs twice, or the images do not match the marks or
                the model. The message names the record.
            PromptTooLong: A prompt leaves too little room.
        """
        for batch in [batches] if isinstance(batches, dict) else batches:
            yield from self._prompts(batch)

    def _prompts(self, batch):
        from keras_betakd.preprocessing.model_inputs import (
            model_inputs,
            without_last_answers,
        )
        from keras_betakd.preprocessing.record_checks import checked_records

        if self._template is None:
            batch = {key: value for key, value in batch.items() if key != "responses"}
        batch = dict(batch)
        if batch.get("ids") is None:
            start = len(self.ids)
            batch["ids"] = range(start, start + len(batch.get("prompts", ())))
        records = checked_records(batch)
        ids = records["ids"]
        self._expect_new(ids)
        records = without_last_answers(records)
        inputs = model_inputs(self.preprocessor, records, self._template)
        packed, lengths = self._packed(inputs, ids)
        yield from as_prompts(self._format, inputs, lengths, self.limit, ids, packed)

    def _expect_new(self, ids):
        for name in ids:
            if name in self.ids:
                raise ValueError(f"Each record must have an id of its own: {name!r}.")
            self.ids[name] = None

    def _packed(self, inputs, ids):
        """The packed prompts, and their lengths in the sequence that is decoded.

        keras-hub packs prompts slowly. Where no other length than this is needed, they
        are packed once, and otherwise `None`.
        """
        packed, family = None, self._format
        if family.packs_once(inputs):
            packed, decoded = family.packed_with_lengths(inputs, self.limit)
            found = {}
        else:
            found = family.prompt_lengths(inputs, self.limit)
            decoded = found.pop(family.answer_length)
        for attribute, lengths in found.items():
            limit = getattr(self.preprocessor, attribute)
            name, length = _longest(ids, lengths)
            if length > limit:
                raise PromptTooLong(
                    f"Record {name!r}: its prompt has {length} tokens, but "
                    f"`preprocessor.{attribute}` is {limit}.",
                    "Raise it, or shorten the prompt.",
                )
        name, length = _longest(ids, decoded)
        if length + self.room > self.limit:
            raise PromptTooLong(
                f"Record {name!r}: its prompt has {length} tokens, its answer needs "
                f"room for {self.room}, but {self.limit} are the limit.",
                "Give a greater `max_length`, a greater `sequence_length` to the "
                "preprocessor, or a smaller `max_new_tokens`.",
            )
        return packed, decoded


def _longest(ids, lengths):
    """The id and the length of the longest; if it fits, all of its batch fit."""
    return max(zip(ids, lengths, strict=True), key=lambda pair: pair[1])
