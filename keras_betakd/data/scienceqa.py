"""ScienceQA: multiple-choice school questions, about half of them with a picture.

The official layout on disk (Lu et al., 2022, arXiv 2209.09513):

    problems.json                       id -> question, choices, answer, hint, ...
    pid_splits.json                     split -> list of ids
    images/<split>/<id>/image.png       for the questions that have a picture

`load_scienceqa` reads it to records, `ScienceQADataset` makes batches of them. A
prompt has the form that LLaVA, MobileVLM and Beta-KD use, "CQM-A": context,
question and multiple choices in, answer out.
"""

from collections.abc import Sequence

import numpy as np

from keras_betakd.data.batches import (
    EpochDataset,
    expect_on_error,
    expect_positive,
    usable_records,
)
from keras_betakd.data.images import (
    IMAGE_MARK,
    expect_no_mark,
    neutralize_image_marks,
)
from keras_betakd.data.scienceqa_records import (
    LETTERS,
    ScienceQARecord,
    check_record_image,
    record_images,
)

LETTER_PROMPT_SUFFIX = (
    "\nAnswer with the option's letter from the given choices directly."
)
"""What LLaVA's generator appends; pass it as `prompt_suffix`."""


def scienceqa_prompt(record: ScienceQARecord, suffix: str | None = None) -> str:
    """The prompt of a record in the published CQM-A form.

    Double spaces are narrowed in one pass, as the published script does it (so
    four become two). Image marks in the record's own text are neutralized.

    Args:
        record: The question.
        suffix: Text to append as it is, for example `LETTER_PROMPT_SUFFIX`.

    Returns:
        The prompt; with a picture, it starts with `IMAGE_MARK` and a newline.

    Example:

    >>> scienceqa_prompt(ScienceQARecord("4", "A mammal?", ("cat", "trout"), 0))
    'Context: N/A\\nQuestion: A mammal?\\nOptions: (A) cat (B) trout'
    """
    options = " ".join(
        f"({letter}) {choice}"
        for letter, choice in zip(LETTERS, record.choices, strict=False)
    )
    context = record.hint.strip() or "N/A"
    prompt = f"Context: {context}\nQuestion: {record.question}\nOptions: {options}"
    prompt = neutralize_image_marks(prompt.replace("  ", " ").strip())
    if record.image is not None:
        prompt = f"{IMAGE_MARK}\n{prompt}"
    return prompt + (suffix or "")


def scienceqa_response(record: ScienceQARecord, answer_format: str = "letter") -> str:
    """The answer a model should learn to give.

    Args:
        record: The question.
        answer_format: "letter" for "The answer is B.", the published target;
            "text" for the text of the right choice.

    Returns:
        The answer.

    Raises:
        ValueError: `answer_format` is neither of the two.

    Example:

    >>> scienceqa_response(ScienceQARecord("4", "?", ("cat", "trout"), 1))
    'The answer is B.'
    """
    if answer_format == "letter":
        return f"The answer is {LETTERS[record.answer]}."
    if answer_format == "text":
        return neutralize_image_marks(record.choices[record.answer])
    raise ValueError(
        "`answer_format` must be 'letter' or 'text'. "
        f"Received: answer_format={answer_format!r}"
    )


class ScienceQADataset(EpochDataset):
    """Batches of ScienceQA questions that belong to no model yet.

    A batch is a dict of `"ids"`, `"prompts"` and `"responses"` (arrays of strings)
    and `"images"` (for each record a list with one `(H, W, 3)` uint8 array, or
    an empty list). Pictures keep their own size and are read when the batch is
    made; each model's preprocessing resizes them and swaps `IMAGE_MARK`.

    The order of an epoch depends on `seed` and the epoch's number alone, so it is
    the same with any number of workers, threads or processes. Process workers
    should be spawned, as a fork of a process that runs JAX or TensorFlow may hang:
    call `multiprocessing.set_start_method("spawn")` first.

    A record whose picture is missing is refused at construction. One whose file
    turns out to be damaged raises, with its id, when its batch is read: a batch
    never shrinks in silence. With `on_error="skip"` (or `verify_images=True`)
    all pictures are decoded at construction, so that none can be damaged later.

    Args:
        records: `ScienceQARecord`s, for example from `load_scienceqa`.
        batch_size: Records in a batch; the last may be smaller.
        shuffle: Whether each epoch has an order of its own.
        seed: Seed of that order.
        answer_format: "letter" or "text", see `scienceqa_response`.
        prompt_suffix: Text appended to each prompt, see `scienceqa_prompt`.
        drop_remainder: Whether to leave out a smaller last batch.
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning counts them, and `skipped` holds the id and the reason of each.
        limit: How many records to use, the first ones; `None` for all.
        verify_images: As for `load_scienceqa`.
        **kwargs: `workers`, `use_multiprocessing` and `max_queue_size` of
            `keras.utils.PyDataset`.

    Raises:
        FileNotFoundError: A record's picture is missing (unless skipped); the message
            names its id.
        ValueError: An argument is out of range, a record's picture cannot be read
            (unless skipped), or no batch is left.

    Example:

    ```python
    dataset = ScienceQADataset(load_scienceqa("data/scienceqa"), batch_size=8)
    dataset[0]["prompts"][0]
    ```
    """

    def __init__(
        self,
        records: Sequence[ScienceQARecord],
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        answer_format: str = "letter",
        prompt_suffix: str | None = None,
        drop_remainder: bool = False,
        on_error: str = "raise",
        limit: int | None = None,
        verify_images: bool | None = None,
        **kwargs,
    ):
        expect_on_error(on_error)
        expect_positive("batch_size", batch_size)
        if limit is not None:
            expect_positive("limit", limit)
        expect_no_mark("prompt_suffix", prompt_suffix)

        def read(_, record):
            check_record_image(record, on_error, verify_images)
            return record

        items = ((record.id, record) for record in records[:limit])
        usable, skipped = usable_records(items, read, on_error)
        super().__init__(usable, seed, **kwargs)
        self.skipped = tuple(skipped)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.answer_format = answer_format
        self.prompt_suffix = prompt_suffix
        self.drop_remainder = drop_remainder
        self.start_epoch(0)
        if not len(self):
            raise ValueError(
                "There must be at least one batch of records. Received: "
                f"{len(self.records)} records, {len(self.skipped)} skipped, "
                f"batch_size={batch_size}, drop_remainder={drop_remainder}"
            )
        scienceqa_response(self.records[0], answer_format)  # Raises if unknown.

    def cut(self, generator: np.random.Generator) -> list[np.ndarray]:
        """The batches of an epoch; `EpochDataset` calls this."""
        count = len(self.records)
        order = generator.permutation(count) if self.shuffle else np.arange(count)
        end = count - count % self.batch_size if self.drop_remainder else count
        starts = range(0, end, self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]

    def batch(self, records: list[ScienceQARecord]) -> dict:
        """One batch of these records; `EpochDataset` calls this."""
        suffix, answer_format = self.prompt_suffix, self.answer_format
        return {
            "ids": np.array([r.id for r in records]),
            "prompts": np.array([scienceqa_prompt(r, suffix) for r in records]),
            "responses": np.array(
                [scienceqa_response(r, answer_format) for r in records]
            ),
            "images": [record_images(r) for r in records],
        }
