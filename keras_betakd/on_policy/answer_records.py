"""`answer_records`: a teacher answers the prompts that a student is trained on."""

import os
import warnings
from typing import Any

import keras

from keras_betakd import fingerprints
from keras_betakd.data.batches import EpochDataset, EpochParts
from keras_betakd.on_policy.answer_run import AnswerRun, RecordJournal
from keras_betakd.on_policy.answered import (
    AnsweredDataset,
    AnsweredRecords,
    expect_ids,
)
from keras_betakd.on_policy.arguments import (
    expect_counts,
    expect_sampling,
    expect_seed,
)
from keras_betakd.on_policy.decoder import AnswerDecoder
from keras_betakd.on_policy.refusals import expect_answers_as_tokens
from keras_betakd.preprocessing.adapters import (
    RecordBatches,
    as_dataset,
    raw_records,
)
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.prompt_templates import (
    PromptTemplate,
    resolved_template,
)


def answer_records(
    model: keras.Model,
    data: Any,
    path: str | os.PathLike,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int | None = 1,
    top_p: float | None = None,
    seed: int = 0,
    batch_size: int = 8,
    prompt_template: PromptTemplate = "auto",
    cut: str = "keep",
    progress: bool = True,
) -> AnsweredRecords | AnsweredDataset:
    """Lets a teacher answer the prompts of records, which a student is then trained on.

    This is sequence-level knowledge distillation: the teacher's own answers become the
    labels. Every record is answered, also one that has a response; that one is not
    used. Of a conversation the last turn is answered, after the given answers to the
    earlier ones. Answers are returned as the token ids that were decoded
    ("response_tokens"), which training takes as they are, and as texts to be read. The
    student must have the teacher's tokenizer, and a preprocessor with a
    `max_response_length` of at least `max_new_tokens`; for a student of another family
    leave "response_tokens" out, and the texts are its labels.

    Each token is by default the most likely one (`top_k=1`): Kim and Rush train on the
    mode of the teacher's distribution, which greedy decoding comes near. Give
    `top_k=None` to draw from all of it.

    Answers are written to disk group by group. A call that was killed goes on when it
    is repeated, and ends with the answers of one that was not; one that was complete
    reads them without running the model. It goes on only with the same model (weights,
    precision), preprocessor, template, settings and versions, and with the same
    records, of which there may be more. All of them are read and compared each time.

    Args:
        model: a keras-hub `CausalLM` with its preprocessor; mostly the teacher.
        data: raw records with ids, as for `fit`, or batches of them: a
            `ScienceQADataset`, an `EpochParts`, or another `keras.utils.PyDataset` that
            tells its length and has the same batches each time.
        path: folder that the answers are written to; created if it does not exist.
        max_new_tokens: the most tokens of an answer, the one that ends it included.
        temperature, top_k, top_p: how tokens are drawn, as for `StudentAnswers`.
        seed: int from which tokens are drawn.
        batch_size: the number of prompts that are answered together. Where tokens are
            drawn, it must be the same when a call goes on.
        prompt_template: the template that prompts are written in, as for
            `DistillationPreprocessor`; that of the distiller's teacher.
        cut: what becomes of answers that were cut at `max_new_tokens`. `"keep"`
            (default): they are trained on as far as they go, without an end mark;
            `"drop"`: their records are left out, in batches by a sample weight of 0.
        progress: whether to show a progress bar.

    Returns:
        For raw records an `AnsweredRecords`, a dict with all columns that were given
        as they were and with "responses" and "response_tokens"; for batches, and for a
        Hugging Face table, an `AnsweredDataset` that adds the two to each batch as it
        is read, so that no more images are in memory than before. (That of a table has
        batches of `batch_size`, shuffled in each epoch.) Both have `answers`, a dict of
        ids to `Answer`s, which say by `ended` which ones were cut.

    Raises:
        TypeError: `model` does not generate or has no preprocessor.
        ValueError: an argument is not one of those above; a model with an encoder for
            its prompts; records without ids or with one twice, or one that leaves no
            room for an answer; a folder with answers of another run, whose difference
            is named, or a damaged file; no answer that ended, with `cut="drop"`.
        FolderInUseError: another process is writing to `path`.
        OSError: the disk is full or the folder cannot be written. What is written is
            complete.

    A `UserWarning` counts the answers that were cut.

    Example:

    ```python
    records = answer_records(teacher, records, "teacher_answers", max_new_tokens=64)
    print(records["responses"][0])
    distiller.fit(records, epochs=3)
    ```

    Reference: sequence-level knowledge distillation, Kim and Rush 2016
    (arXiv:1606.07947), who use beam search.
    """
    _expect_arguments(max_new_tokens, seed, batch_size, cut)
    expect_sampling(temperature, top_k, top_p)
    family = _family_of(model)
    records, dataset = _as_batches(data, batch_size)
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    decoder = _decoder(model, family, prompt_template, max_new_tokens, sampling)
    settings = _settings(max_new_tokens, sampling, seed, batch_size)
    with RecordJournal(path, settings) as journal:
        run = AnswerRun(decoder, journal, batch_size, seed)
        if isinstance(records, dict):
            run.expect_asked(set(expect_ids(records)))
        journal.expect_maker(fingerprints.maker_of(model, prompt_template))
        run.answer(dataset, _count(dataset), progress)
    _tell_cut(run.answers, max_new_tokens, cut)
    if isinstance(records, dict):
        return AnsweredRecords(records, run.answers, cut == "drop")
    if records is not None:
        dataset = RecordBatches(records, batch_size, shuffle=True)
    return AnsweredDataset(dataset, run.answers, cut == "drop")


def _expect_arguments(max_new_tokens, seed, batch_size, cut):
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value is None:
            raise ValueError(f"`{name}` must be a positive integer. Received: None")
    expect_counts(max_new_tokens=max_new_tokens, batch_size=batch_size)
    expect_seed(seed)
    if cut not in ("keep", "drop"):
        raise ValueError(f'`cut` must be "keep" or "drop". Received: cut={cut!r}')


def _family_of(model):
    """The `TextFormat` of a model that can answer by token ids."""
    if not hasattr(model, "generate") or getattr(model, "preprocessor", None) is None:
        raise TypeError(
            "`model` must be a `keras_hub.models.CausalLM` with a preprocessor. "
            f"Received: {type(model).__name__}"
        )
    family = format_of(model.preprocessor)
    expect_answers_as_tokens(model, family)
    return family


def _as_batches(data, batch_size):
    """`(records, dataset)`: raw records, `None` for others, and batches of `data`."""
    records = raw_records(data)
    dataset = as_dataset(data if records is None else records, batch_size)
    if dataset is None or dataset.num_batches is None:
        raise ValueError(
            "`data` must be raw records, or batches of them of which the number is "
            f"known. Received: data of type {type(data).__name__}"
        )
    return records, dataset


def _decoder(model, family, prompt_template, max_new_tokens, sampling):
    from keras_betakd.models.views import view_of

    template = resolved_template(prompt_template, family)
    return AnswerDecoder(
        view_of(model), template, max_new_tokens, role="model", **sampling
    )


def _settings(max_new_tokens, sampling, seed, batch_size):
    """What answers depend on beside the model and the records.

    The most likely token depends neither on how likely it is nor on a seed.
    """
    if sampling["top_k"] == 1:
        return {"max_new_tokens": max_new_tokens, "top_k": 1}
    drawn = {"seed": seed, "batch_size": batch_size}
    return {"max_new_tokens": max_new_tokens, **sampling, **drawn}


def _count(dataset):
    """The number of records of a data set; `None` where it must be read for it."""
    dataset = dataset.dataset if isinstance(dataset, EpochParts) else dataset
    if isinstance(dataset, EpochDataset):
        return len(dataset.records)
    return dataset.size if isinstance(dataset, RecordBatches) else None


def _tell_cut(answers, max_new_tokens, cut):
    """Warns of answers that were cut; raises if none is left without them."""
    count = sum(not answer.ended for answer in answers.values())
    if not count:
        return
    message = f"Of {len(answers)} answers, {count} were cut at {max_new_tokens} tokens."
    advice = (
        "Give a larger `max_new_tokens` and another `path`, if the model comes to an "
        "end at all: `answers` of what is returned holds them."
    )
    if cut == "drop" and count == len(answers):
        raise ValueError(f"{message} None is left to be trained on. {advice}")
    done = "are left out" if cut == "drop" else "have no end mark"
    warnings.warn(f"{message} They {done}. {advice}", stacklevel=3)
