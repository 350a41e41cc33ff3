"""MMBench: each question is prompted with its options in rotation (Liu et al., 2023).

A question only counts as right if it is answered rightly in each rotation ("circular
evaluation", arXiv 2307.06281); accuracies are in per cent. The official number comes
from a server that asks a chat model what an answer means. Here the server's public
rules alone are applied, so that the number is a lower bound where answers are not clean
letters. The rules of MobileVLM's own script are not public.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from keras_betakd.evaluation.benchmarks.base import Benchmark
from keras_betakd.evaluation.benchmarks.mmbench_matching import (
    match_opencompass,
    match_vlmevalkit,
)
from keras_betakd.evaluation.benchmarks.mmbench_questions import (
    INSTRUCTIONS,
    OPTION_LETTERS,
    MMBenchQuestion,
    load_mmbench,
    mmbench_prompt,
    table_cell,
)
from keras_betakd.evaluation.intervals import Accuracy, accuracies
from keras_betakd.evaluation.llava_protocol import naming_file
from keras_betakd.evaluation.predictions import answers_of
from keras_betakd.evaluation.report import share, shares

MMBENCH_RULES = {
    "vlmevalkit_exact": match_vlmevalkit,
    "opencompass_prefetch": match_opencompass,
}

L2_SHORT_NAMES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}

# The published scripts read an empty answer cell as this text.
_NO_ANSWER = "nan"


@dataclasses.dataclass(frozen=True)
class MMBenchScore:
    """The result of `score_mmbench`.

    Args:
        circular: The accuracy with questions counted as right if all their rows are.
        vanilla: The accuracy on the original rows.
        per_l2: The circular accuracy in each of the six categories, by the short name
            ("CP", "FP-S", "FP-C", "LR", "RR", "AR").
        per_category: The same for the leaf categories.
        choices: The letter read in each row's answer, by index; "Z" for a refusal,
            `None` where the rules do not resolve it.
        hits: For each question whether it is right in all its rows, by index.
        unparsed: Answered rows in which no letter of an option was read. Counted as
            wrong.
        missing: Rows without an answer. Counted as wrong.
        rule: The name of the matching rules.

    Example:

    >>> score = MMBenchScore(circular=Accuracy(3, 5), vanilla=Accuracy(4, 5))
    >>> score.circular_accuracy, score.vanilla_accuracy
    (60.0, 80.0)
    """

    circular: Accuracy
    vanilla: Accuracy
    per_l2: Mapping[str, Accuracy] = dataclasses.field(default_factory=dict)
    per_category: Mapping[str, Accuracy] = dataclasses.field(default_factory=dict)
    choices: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    hits: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    unparsed: int = 0
    missing: int = 0
    rule: str = "vlmevalkit_exact"

    @property
    def circular_accuracy(self) -> float:
        """Per cent of the questions right in every rotation: MMBench's main number."""
        return self.circular.percent

    @property
    def vanilla_accuracy(self) -> float:
        """Per cent of the questions right in their original row."""
        return self.vanilla.percent

    @property
    def n(self) -> int:
        """Questions, each with all its rows."""
        return self.circular.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `circular_accuracy`, in per cent."""
        return self.circular.interval


def score_mmbench(
    questions: Sequence[MMBenchQuestion],
    predictions: Mapping[str, str],
    rule: str = "vlmevalkit_exact",
) -> MMBenchScore:
    """Scores answers to MMBench questions: circular and vanilla accuracy.

    Args:
        questions: The rows, rotated copies included, for example from `load_mmbench`.
        predictions: The answers by index. Answers to other rows are ignored.
        rule: "vlmevalkit_exact" (see `match_vlmevalkit`) or "opencompass_prefetch"
            (see `match_opencompass`).

    Returns:
        An `MMBenchScore`.

    Raises:
        TypeError: `predictions` is not a mapping, or an answer is not a string.
        ValueError: The rule is unknown, there are no rows, an index occurs twice, a
            row has no right answer, or a copy's original is not among the rows.

    Example:

    >>> rows = [
    ...     MMBenchQuestion(7, "What?", ("cat", "dog"), "A"),
    ...     MMBenchQuestion(1000007, "What?", ("dog", "cat"), "B"),
    ... ]
    >>> score = score_mmbench(rows, {7: "A", 1000007: "A."})
    >>> score.circular_accuracy, score.vanilla_accuracy
    (0.0, 100.0)
    """
    if rule not in MMBENCH_RULES:
        raise ValueError(
            f"`rule` must be one of {list(MMBENCH_RULES)}. Received: rule={rule!r}"
        )
    answers = answers_of(questions, predictions)
    originals = [question for question in questions if question.id == question.original]
    _check_rows(questions, {question.id for question in originals})
    choices = {q.id: _letter(q, answers, MMBENCH_RULES[rule]) for q in questions}
    right = {
        question.id: choices[question.id] == question.answer for question in questions
    }
    hits = {question.id: True for question in originals}
    for question in questions:
        hits[question.original] &= right[question.id]

    def per(key):
        return accuracies((key(q), hits[q.id]) for q in originals if key(q))

    return MMBenchScore(
        circular=Accuracy(sum(hits.values()), len(hits)),
        vanilla=Accuracy(sum(right[q.id] for q in originals), len(originals)),
        per_l2=per(lambda q: L2_SHORT_NAMES.get(q.l2_category, q.l2_category)),
        per_category=per(lambda q: q.category),
        choices=choices,
        hits=hits,
        unparsed=sum(
            q.id in answers and choices[q.id] not in q.choices for q in questions
        ),
        missing=len(questions) - len(answers),
        rule=rule,
    )


def _letter(question, answers, match):
    answer = answers.get(question.id, _NO_ANSWER)
    if answer is None:  # thoughts without an answer
        return None
    answer = table_cell(answer)
    return match(_NO_ANSWER if answer is None else answer, question.choices)


def _check_rows(questions, originals):
    for question in questions:
        if question.answer is None:
            raise ValueError(
                f"Row {question.id!r} has no right answer, as in the test split, which "
                "only the benchmark's server can score; see `mmbench_submission`."
            )
        if question.original not in originals:
            raise ValueError(
                f"Row {question.id!r} is a copy of row {question.original!r}, which is "
                "not among the questions. Ask a question with all its rows."
            )


_TABLE = re.compile("mmbench_dev_", re.IGNORECASE)


class MMBench(Benchmark):
    """MMBench's dev split, scored by two public sets of rules, without a chat model.

    MMBench-CN, in Chinese, is asked and scored in the same way.
    """

    title = "MMBench, dev"
    files = (
        "one mmbench_dev_*.tsv (20230712: LLaVA-1.5; 20231003: MobileVLM, Beta-KD), or "
        "MMBench_DEV_EN.tsv, MMBench_DEV_CN_V11.tsv and their like"
    )
    official = "circular, vlmevalkit_exact"
    prompt_format = "picture, hint, question, options, instruction"
    max_new_tokens = 1024
    note = (
        "MMBench's server also asks a chat model what unclear answers mean: these "
        "numbers are lower bounds of its"
    )

    def load(self, directory):
        tables = [p for p in sorted(directory.glob("*.tsv")) if _TABLE.match(p.name)]
        if len(tables) != 1:
            raise FileNotFoundError(
                "There must be one mmbench_dev_*.tsv or MMBench_DEV_*.tsv in "
                f"'{directory}': versions differ, and so do their scores. Received: "
                f"{[path.name for path in tables]}"
            )
        questions = load_mmbench(tables[0])
        with naming_file(tables[0]):
            score_mmbench(questions, {})  # Raises for rows that have no score.
        return questions

    def prompt(self, question):
        return mmbench_prompt(question)

    def unit(self, question):
        return question.original

    def question_id(self, question):
        return int(question.id)

    def logged_prompt(self, question):
        instruction = INSTRUCTIONS[question.language]
        return super().logged_prompt(question).removesuffix(instruction)

    def line(self, question, text):
        options = question.asked_options
        return {
            **super().line(question, text),
            "round_id": 0,
            "options": options,
            "option_char": list(OPTION_LETTERS[: len(options)]),
        }

    def scores(self, questions, answers):
        scores, categories = {}, {}
        for rule in MMBENCH_RULES:
            score = score_mmbench(questions, answers, rule)
            counts = {"unparsed": score.unparsed, "missing": score.missing}
            scores[f"circular, {rule}"] = share(score.circular) | counts
            scores[f"vanilla, {rule}"] = share(score.vanilla)
            categories[f"circular by ability, {rule}"] = shares(score.per_l2)
            categories[f"circular by category, {rule}"] = shares(score.per_category)
        return {"scores": scores, "categories": categories}

    def read(self, question, text):
        letter = match_vlmevalkit(text, question.choices)
        return letter if letter in question.choices else None
