"""The answers that a score function takes: checked, by id, without thoughts.

Answers go by id, so that one that is missing, unknown or given twice never shifts the
others, as it does where two files are read line by line.
"""

from collections.abc import Callable, Mapping, Sequence

from keras_betakd.evaluation.answer_text import final_answer, without_end_mark
from keras_betakd.evaluation.llava_protocol import VQAQuestion


def answers_of(
    questions: Sequence[VQAQuestion],
    predictions: Mapping[str, str],
    refuse_unknown: bool = False,
) -> dict[str, str | None]:
    """Checks answers and returns those to these questions, by id.

    Args:
        questions: The questions.
        predictions: Answers by question id, a string or an integer.
        refuse_unknown: Whether an answer to none of the questions is an error. By
            default it is ignored.

    Returns:
        The answers, in the order of the questions, without end marks and thoughts. A
        question may have none; `None` stands for thoughts without an answer, which
        count as wrong whatever a published scorer takes silence for.

    Raises:
        TypeError: `predictions` is not a mapping, or an answer not a string.
        ValueError: There are no questions, or an id occurs twice, or an answer
            belongs to no question and `refuse_unknown` is set.

    Example:

    >>> answers_of([VQAQuestion("7", "Is it a cat?")], {7: "yes", 8: "no"})
    {'7': 'yes'}
    """
    answers = texts_by_id(predictions)
    ids = dict.fromkeys(question.id for question in questions)
    if not questions or len(ids) < len(questions):
        raise ValueError(
            "`questions` must hold at least one question, and each id once. "
            f"Received: {len(questions)} questions with {len(ids)} different ids"
        )
    unknown = [name for name in answers if name not in ids]
    if refuse_unknown and unknown:
        raise ValueError(
            "Each answer must belong to one of the questions. Received: "
            f"{len(unknown)} of {len(answers)} that do not, the first for the id "
            f"{unknown[0]!r}; an id of a question is {next(iter(ids))!r}"
        )
    return {
        name: final_answer(without_end_mark(answers[name]))
        for name in ids
        if name in answers
    }


def normalized_answers(
    answers: Mapping[str, str | None], normalize: Callable[[str], str]
) -> dict[str, str | None]:
    """Applies a function to the answers of `answers_of`; `None` stays.

    Example:

    >>> normalized_answers({"7": "Yes", "8": None}, str.lower)
    {'7': 'yes', '8': None}
    """
    return {k: None if text is None else normalize(text) for k, text in answers.items()}


def texts_by_id(predictions: Mapping[str, str]) -> dict[str, str]:
    """The same answers with all ids as strings, checked.

    Args:
        predictions: Answers by question id, a string or an integer.

    Raises:
        TypeError: `predictions` is not a mapping, or an answer not a string.
        ValueError: An id occurs twice.

    Example:

    >>> texts_by_id({7: "yes"})
    {'7': 'yes'}
    """
    if not isinstance(predictions, Mapping):
        raise TypeError(
            "`predictions` must map question ids to answers: answers go by id, not by "
            f"place. Received: {type(predictions).__name__}"
        )
    answers = {str(name): text for name, text in predictions.items()}
    if len(answers) < len(predictions):
        raise ValueError(
            "`predictions` must hold each id once; 7 and '7' are one id. Received: "
            f"{len(predictions)} answers with {len(answers)} different ids"
        )
    for name, text in answers.items():
        if not isinstance(text, str):
            raise TypeError(
                f"The answer to question {name!r} must be a string; leave a question "
                f"that was not answered out. Received: {text!r}"
            )
    return answers
