"""Prompts, answers and batches of ScienceQA's multiple-choice school questions.

About half of the questions have an image. The official layout on disk (Lu et al., 2022,
arXiv 2209.09513):

    problems.json                       id -> question, choices, answer, hint, ...
    pid_splits.json                     split -> list of ids
    images/<split>/<id>/image.png       for the questions that have an image

`load_scienceqa` reads this layout to records; `ScienceQADataset` makes batches of
them. The input is context, question and multiple choices, the output is the answer
("CQM-A"); `FORMS` are the two ways in which LLaVA writes that.
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
"""The text that LLaVA's generator appends; a value for `prompt_suffix`."""

FORMS = ("llava-1.5", "llava-1.0")
"""The published forms of a question: of LLaVA-1.5, behind its own numbers and those of
lmms-eval, MobileVLM and Beta-KD; and of the first LLaVA, whose converter is public."""


def expect_form(form: str | None) -> None:
    """Raises a `ValueError` unless `form` is one of `FORMS`, or `None`."""
    if form is not None and form not in FORMS:
        raise ValueError(f"`form` must be one of {FORMS}. Received: form={form!r}")


def scienceqa_prompt(
    record: ScienceQARecord, suffix: str | None = None, form: str | None = None
) -> str:
    """Returns the prompt of a record in a published form.

    In the form of LLaVA-1.5 choices stand in lines of their own, "A. cat", after the
    question, and the hint before it, where there is one. In that of LLaVA-1.0 double
    spaces are replaced by single ones in one pass, as in the published script (four
    become two). Image marks in the record's own text are neutralized.

    Args:
        record: The question.
        suffix: Text to append unchanged, for example `LETTER_PROMPT_SUFFIX`.
        form: "llava-1.5" or "llava-1.0". With `None`, what a question file asks, if the
            record comes from one (`record.prompt`), else "llava-1.5".

    Returns:
        The prompt. If the record has an image, it starts with `IMAGE_MARK` and a
        newline.

    Raises:
        ValueError: `form` has another value.

    Example:

    >>> record = ScienceQARecord("4", "A mammal?", ("cat", "trout"), 0)
    >>> scienceqa_prompt(record)
    'A mammal?\\nA. cat\\nB. trout'
    >>> scienceqa_prompt(record, form="llava-1.0")
    'Context: N/A\\nQuestion: A mammal?\\nOptions: (A) cat (B) trout'
    """
    expect_form(form)
    if form is None and record.prompt:
        prompt = record.prompt
    else:
        prompt = _CQM["llava-1.5" if form is None else form](record)
    prompt = neutralize_image_marks(prompt)
    if record.image is not None:
        prompt = f"{IMAGE_MARK}\n{prompt}"
    return prompt + (suffix or "")


def _with_lines(record):
    context = f"Context: {record.hint}\n" if record.hint else ""
    pairs = zip(LETTERS, record.choices, strict=False)
    choices = [f"{letter}. {choice}" for letter, choice in pairs]
    return "\n".join([context + record.question, *choices])


def _with_options(record):
    pairs = zip(LETTERS, record.choices, strict=False)
    options = " ".join(f"({letter}) {choice}" for letter, choice in pairs)
    context = record.hint.strip() or "N/A"
    prompt = f"Context: {context}\nQuestion: {record.question}\nOptions: {options}"
    return prompt.replace("  ", " ").strip()


_CQM = {"llava-1.5": _with_lines, "llava-1.0": _with_options}


def scienceqa_response(
    record: ScienceQARecord, answer_format: str = "letter", form: str | None = None
) -> str:
    """Returns the answer that a model should learn.

    Args:
        record: The question.
        answer_format: "letter" for the published target; "text" for the text of the
            right choice.
        form: The form of the prompt: with "llava-1.0" the target is "The answer is B.",
            else "B".

    Returns:
        The answer.

    Raises:
        ValueError: `answer_format` or `form` has another value.

    Example:

    >>> record = ScienceQARecord("4", "?", ("cat", "trout"), 1)
    >>> scienceqa_response(record), scienceqa_response(record, form="llava-1.0")
    ('B', 'The answer is B.')
    """
    expect_form(form)
    letter = LETTERS[record.answer]
    if answer_format == "letter":
        return f"The answer is {letter}." if form == "llava-1.0" else letter
    if answer_format == "text":
        return neutralize_image_marks(record.choices[record.answer])
    raise ValueError(
        "`answer_format` must be 'letter' or 'text'. "
        f"Received: answer_format={answer_format!r}"
    )


class ScienceQADataset(EpochDataset):
    """Batches of ScienceQA questions, in a form that any model's preprocessing takes.

    A batch is a dict of `"ids"`, `"prompts"` and `"responses"` (arrays of strings)
    and `"images"` (for each record a list with one `(H, W, 3)` uint8 array, or
    an empty list). Images keep their own size and are read when the batch is
    made; each model's preprocessing resizes them and replaces `IMAGE_MARK`.

    The order of an epoch depends only on `seed` and the number of the epoch, so it is
    the same with any number of workers, threads or processes. Process workers
    should be spawned, as a fork of a process that runs JAX or TensorFlow may hang:
    call `multiprocessing.set_start_method("spawn")` first.

    A record whose image is missing raises at construction. A damaged image raises an
    error with the record's id when its batch is read; it is never left out of the
    batch silently. With `on_error="skip"` or `verify_images=True`, all images are
    decoded at construction, so that damaged ones are found then.

    Args:
        records: `ScienceQARecord`s, for example from `load_scienceqa`.
        batch_size: Records in a batch; the last may be smaller.
        shuffle: Whether to shuffle the records at the start of each epoch.
        seed: Seed of the shuffling, 0 or more.
        answer_format: "letter" or "text", see `scienceqa_response`.
        prompt_suffix: Text appended to each prompt, see `scienceqa_prompt`; `None` for
            none. By default the instruction to answer with the letter, as published,
            but for answers of text and the form "llava-1.0", which have none.
        form: "llava-1.5" or "llava-1.0"; `None` as for `scienceqa_prompt`.
        drop_remainder: Whether to leave out the last batch if it is smaller.
        on_error: "raise", or "skip" to leave out the records that cannot be used: one
            warning counts them, and `skipped` holds the id and the reason of each.
        limit: The number of records to use, from the first; `None` for all.
        verify_images: As for `load_scienceqa`.
        **kwargs: `workers`, `use_multiprocessing` and `max_queue_size` of
            `keras.utils.PyDataset`.

    Raises:
        FileNotFoundError: A record's image is missing (unless skipped); the message
            names its id.
        ValueError: An argument is out of range, a record's image cannot be read
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
        prompt_suffix: str | None = "auto",
        drop_remainder: bool = False,
        on_error: str = "raise",
        limit: int | None = None,
        verify_images: bool | None = None,
        form: str | None = None,
        **kwargs,
    ):
        expect_on_error(on_error)
        if prompt_suffix == "auto":
            is_asked = answer_format == "letter" and form != "llava-1.0"
            prompt_suffix = LETTER_PROMPT_SUFFIX if is_asked else None
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
        self.form = form
        self.drop_remainder = drop_remainder
        self.start_epoch(0)
        if not len(self):
            raise ValueError(
                "There must be at least one batch of records. Received: "
                f"{len(self.records)} records, {len(self.skipped)} skipped, "
                f"batch_size={batch_size}, drop_remainder={drop_remainder}"
            )
        scienceqa_response(self.records[0], answer_format, form)  # Raises if unknown.

    def cut(self, generator: np.random.Generator) -> list[np.ndarray]:
        """Returns the batches of an epoch; `EpochDataset` calls this."""
        count = len(self.records)
        order = generator.permutation(count) if self.shuffle else np.arange(count)
        end = count - count % self.batch_size if self.drop_remainder else count
        starts = range(0, end, self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]

    def batch(self, records: list[ScienceQARecord]) -> dict:
        """Returns the batch of the given records; `EpochDataset` calls this."""
        prompts = [scienceqa_prompt(r, self.prompt_suffix, self.form) for r in records]
        responses = [
            scienceqa_response(r, self.answer_format, self.form) for r in records
        ]
        return {
            "ids": np.array([r.id for r in records]),
            "prompts": np.array(prompts),
            "responses": np.array(responses),
            "images": [record_images(r) for r in records],
        }
