"""The benchmarks that are answered with a letter: ScienceQA and MMBench."""

from keras_betakd.data.scienceqa import LETTER_PROMPT_SUFFIX, scienceqa_prompt
from keras_betakd.data.scienceqa_records import load_scienceqa
from keras_betakd.evaluate.benchmark import Benchmark
from keras_betakd.evaluate.reports import entry, share, shares
from keras_betakd.evaluation.choices import parse_choice, parse_letter_strict
from keras_betakd.evaluation.mmbench import MMBENCH_RULES, score_mmbench
from keras_betakd.evaluation.mmbench_matching import match_vlmevalkit
from keras_betakd.evaluation.mmbench_questions import (
    OPTION_LETTERS,
    load_mmbench,
    mmbench_prompt,
)
from keras_betakd.evaluation.scienceqa import score_scienceqa
from keras_betakd.evaluation.scienceqa_categories import scienceqa_categories

_PARSERS = {"published": parse_letter_strict, "robust": parse_choice}


class ScienceQA(Benchmark):
    """ScienceQA, read as LLaVA's scorer reads answers and as a person would."""

    title = "ScienceQA, test"
    files = "problems.json, pid_splits.json, images/test/<id>/image.png"
    official = "IMG accuracy, published scorer"
    prompt_format = "picture, context, question, choices (CQM-A), instruction"
    max_new_tokens = 1024

    def load(self, directory):
        return load_scienceqa(directory, "test")

    def prompt(self, question):
        return scienceqa_prompt(question, LETTER_PROMPT_SUFFIX)

    def logged_prompt(self, question):
        # With the mark: the published scorer tells the questions with a picture by it.
        return self.prompt(question)

    def scores(self, questions, answers):
        scores, categories = {}, {}
        for name, parser in _PARSERS.items():
            score = score_scienceqa(questions, answers, parser=parser)
            pictured = [q.id for q in questions if q.image is not None]
            scores[f"IMG accuracy, {name} scorer"] = entry(
                score.image_accuracy,
                score.image_interval,
                score.image_total,
                unparsed=sum(score.choices.get(k, k) is None for k in pictured),
                missing=score.image_missing,
            )
            scores[f"accuracy, {name} scorer"] = entry(
                score.accuracy,
                score.interval,
                score.n,
                unparsed=score.unparsed,
                missing=score.missing,
            )
            table = scienceqa_categories(questions, score)
            categories[f"official table, {name} scorer"] = shares(table)
        return {"scores": scores, "categories": categories}

    def read(self, question, text):
        return parse_choice(text, question.choices)


class MMBench(Benchmark):
    """MMBench, scored by two public sets of rules, without a chat model."""

    title = "MMBench, dev"
    files = "one mmbench_dev_*.tsv (20230712: LLaVA-1.5; 20231003: MobileVLM, Beta-KD)"
    official = "circular, vlmevalkit_exact"
    prompt_format = "picture, hint, question, options, instruction"
    max_new_tokens = 1024
    note = (
        "MMBench's server also asks a chat model what unclear answers mean: these "
        "numbers are lower bounds of its"
    )

    def load(self, directory):
        tables = sorted(directory.glob("mmbench_dev_*.tsv"))
        if len(tables) != 1:
            raise FileNotFoundError(
                f"There must be one mmbench_dev_*.tsv in '{directory}': versions "
                "differ, and so do their scores. Received: "
                f"{[path.name for path in tables]}"
            )
        questions = load_mmbench(tables[0])
        score_mmbench(questions, {})  # Raises for rows that have no score.
        return questions

    def prompt(self, question):
        return mmbench_prompt(question)

    def unit(self, question):
        return question.original

    def question_id(self, question):
        return int(question.id)

    def logged_prompt(self, question):
        return super().logged_prompt(question).removesuffix(LETTER_PROMPT_SUFFIX)

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
