"""Refuses, early and by name, what cannot be trained on answers of the student."""

from keras_betakd.distribution.replicas import process_position
from keras_betakd.preprocessing.encoding import Encoder
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.iterables import IterableBatches, StreamBatches
from keras_betakd.preprocessing.teacher_sides import by_teacher


def expect_readable_anew(dataset, data, name):
    """Raises a `ValueError` unless a data set tells its length and is read anew.

    Args:
        dataset: the `PyDataset` that was made of it; `None` for arrays.
        data: what was given.
        name: the class that it was given to.
    """
    once = dataset is None or dataset.num_batches is None
    if once or isinstance(dataset, (IterableBatches, StreamBatches)):
        raise ValueError(
            f"`{name}` takes raw records, or a `keras.utils.PyDataset` of batches of "
            "them that tells their number: each epoch is read twice, by the student "
            "that answers and to be trained on. Received: data of type "
            f"{type(data).__name__}"
        )


def expect_other_validation(validation_data):
    """Raises a `ValueError` where a student would be validated on its own answers."""
    first = validation_data[:1] if isinstance(validation_data, tuple) else ()
    for x in (validation_data, *first):
        if getattr(x, "changes_at_epochs", False):
            raise ValueError(
                f"`validation_data` cannot be `{type(x).__name__}`: the student would "
                "be validated on answers that it made itself, without labels. Give the "
                "data that it was made of."
            )


def expect_room(max_new_tokens, preprocessor):
    """Raises a `ValueError` unless answers fit in the rows of a batch.

    Args:
        max_new_tokens: the most tokens of an answer.
        preprocessor: the `DistillationPreprocessor`.
    """
    if max_new_tokens > preprocessor.max_response_length:
        raise ValueError(
            "Answers of the student need a row of logits for each of their tokens. "
            f"Received: max_new_tokens={max_new_tokens}, more than the preprocessor's "
            f"max_response_length={preprocessor.max_response_length}"
        )


def expect_on_policy(distiller, name, steps):
    """Raises a `ValueError` unless a distiller can train on tokens of its student.

    Args:
        distiller: the `BetaKDDistiller`.
        name: the class of the data that the student makes.
        steps: the `steps_per_epoch` of `fit`.
    """
    preprocessor = distiller.preprocessor
    if preprocessor is None:
        raise ValueError(
            "A student answers raw records with its keras-hub preprocessor, and this "
            "distiller has none. Give `preprocessor=DistillationPreprocessor(...)`. "
            f"Received: a student of type {type(distiller.student).__name__}"
        )
    if steps is not None:
        raise ValueError(
            f"`steps_per_epoch` cannot be given with `{name}`: on TensorFlow a batch "
            "would be read before the student has answered. Divide the data by "
            f"`{name}(EpochParts(dataset, parts=...))`. Received: "
            f"steps_per_epoch={steps}"
        )
    if process_position()[1] > 1:
        raise ValueError(
            "Several processes cannot answer prompts yet, each its part of a batch. "
            "Train in one process, on one device or several, or on given answers. "
            f"Received: {process_position()[1]} processes"
        )
    _expect_models(distiller, preprocessor)
    readers = [name for name, e in distiller.energies.items() if e.needs_labels]
    if readers:
        raise ValueError(
            f"The energies {readers} compare the models around the label, and answers "
            "of the student have none. Use others, such as `ReverseKLEnergy`, or train "
            "on given answers."
        )


def _expect_models(distiller, preprocessor):
    teachers = by_teacher(preprocessor.teacher_preprocessor)
    if any(isinstance(x, Encoder) for x in teachers.values()):
        raise ValueError(
            "A cached teacher knows given answers only. Give the teacher itself to "
            "train on answers of the student."
        )
    if any(by_teacher(preprocessor.cross_tokenizer).values()):
        raise ValueError(
            "Answers of the student are ids of its own tokenizer, and the teacher has "
            "another one. Train on given answers, or with a teacher of the student's "
            "family."
        )
    models = {"student": distiller.student}
    models |= {part.name: part.view.model for part in distiller.teacher_parts}
    given = {"student": preprocessor.student_preprocessor, **teachers}
    for role, model in models.items():
        if not format_of(given[role]).repeats_prompt:
            raise ValueError(
                "Answers of the student can be trained on by models that read prompt "
                f"and answer as one sequence. The {role}, a {type(model).__name__}, "
                "has an encoder for its prompts: train it on given answers."
            )


def expect_answers_as_tokens(model, family):
    """Raises a `ValueError` unless answers of a model can be trained on by their ids.

    Args:
        model: the keras-hub model that answers.
        family: its `TextFormat`.
    """
    if not family.repeats_prompt:
        raise ValueError(
            "Answers are kept as token ids, which can be trained on by models that "
            "read prompt and answer as one sequence. This one has an encoder for its "
            "prompts: train on its texts, "
            '`{**records, "responses": list(generate_answers(...).values())}`. '
            f"Received: {type(model).__name__}"
        )
