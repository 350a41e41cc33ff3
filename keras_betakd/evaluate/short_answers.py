"""The benchmarks that are answered in a word or phrase: GQA, TextVQA, POPE, MME."""

import collections
import os

from keras_betakd.evaluate.benchmark import Benchmark
from keras_betakd.evaluate.reports import entry, share, shares
from keras_betakd.evaluation.gqa import normalize_gqa_answer, score_gqa
from keras_betakd.evaluation.gqa_questions import gqa_prompt, load_gqa
from keras_betakd.evaluation.mme import parse_mme, score_mme
from keras_betakd.evaluation.mme_questions import (
    MME_COGNITION,
    MME_PERCEPTION,
    load_mme,
    mme_answers,
    mme_prompt,
)
from keras_betakd.evaluation.pope import parse_pope, score_pope
from keras_betakd.evaluation.pope_questions import load_pope, pope_prompt
from keras_betakd.evaluation.protocol import llava_answers
from keras_betakd.evaluation.textvqa import score_textvqa
from keras_betakd.evaluation.textvqa_questions import (
    load_textvqa,
    textvqa_answers,
    textvqa_prompt,
)
from keras_betakd.evaluation.vqa_normalization import normalize_vqa_answer


def _counts(score):
    return {"unparsed": score.unparsed, "missing": score.missing}


class GQA(Benchmark):
    """GQA, scored by exact match."""

    title = "GQA, test-dev balanced"
    files = "llava_gqa_testdev_balanced.jsonl, testdev_balanced_questions.json, images/"

    def load(self, directory):
        return load_gqa(
            directory / "llava_gqa_testdev_balanced.jsonl",
            directory / "testdev_balanced_questions.json",
            directory / "images",
        )

    def prompt(self, question):
        return gqa_prompt(question)

    def scores(self, questions, answers):
        score = score_gqa(questions, answers)
        return {
            "scores": {
                "accuracy": share(score.overall) | _counts(score),
                "binary": share(score.binary),
                "open": share(score.open),
                "distribution (lower is better)": entry(score.distribution),
            },
            "categories": {
                "structure": shares(score.per_structural),
                "semantics": shares(score.per_semantic),
                "steps of reasoning": shares(score.per_steps),
                "words": shares(score.per_length),
            },
        }

    def read(self, question, text):
        text = normalize_gqa_answer(text)
        return text if text.strip() else None


class TextVQA(Benchmark):
    """TextVQA, scored against the answers of ten people."""

    title = "TextVQA 0.5.1, validation"
    files = "llava_textvqa_val_v051_ocr.jsonl, TextVQA_0.5.1_val.json, train_images/"
    prompt_format = "picture, question, OCR tokens, instruction"

    def load(self, directory):
        return load_textvqa(
            directory / "llava_textvqa_val_v051_ocr.jsonl",
            directory / "TextVQA_0.5.1_val.json",
            directory / "train_images",
        )

    def prompt(self, question):
        return textvqa_prompt(question)

    def question_id(self, question):
        return question.image_id

    def answers(self, questions, lines):
        return textvqa_answers(questions, lines)

    def scores(self, questions, answers):
        score = score_textvqa(questions, answers)
        number = entry(score.accuracy, score.interval, score.n, **_counts(score))
        return {"scores": {"accuracy": number}, "categories": {}}

    def read(self, question, text):
        return normalize_vqa_answer(text) or None

    def expected(self, question):
        answers = map(normalize_vqa_answer, question.answers)
        return collections.Counter(answers).most_common(1)[0][0]

    def is_right(self, question, answer):
        """Right is what at least two of the ten people answered."""
        return [normalize_vqa_answer(a) for a in question.answers].count(answer) >= 2


class POPE(Benchmark):
    """POPE, scored by the mean F1 of its three categories."""

    title = "POPE"
    files = (
        "llava_pope_test.jsonl, coco/coco_pope_{random,popular,adversarial}.json "
        "(of AoiDragon/POPE at commit e3e39262), val2014/"
    )
    official = "mean F1"

    def load(self, directory):
        return load_pope(
            directory / "llava_pope_test.jsonl",
            directory / "coco",
            directory / "val2014",
        )

    def prompt(self, question):
        return pope_prompt(question)

    def group(self, question):
        return question.category

    def question_id(self, question):
        # The published scorer looks numbers up.
        return int(question.id) if question.id.isdecimal() else question.id

    def answers(self, questions, lines):
        return llava_answers(lines, unique=True)

    def scores(self, questions, answers):
        score = score_pope(questions, answers)
        number = entry(score.mean_f1, score.interval, score.n, **_counts(score))
        return {
            "scores": {"mean F1": number},
            "categories": {
                name: _pope_entries(counts)
                for name, counts in score.per_category.items()
            },
        }

    def read(self, question, text):
        return parse_pope(text)

    def expected(self, question):
        return "no" if question.label == "no" else "yes"


def _pope_entries(counts):
    names = ("accuracy", "precision", "recall", "yes_ratio")
    return {
        "F1": entry(counts.f1, counts.interval, counts.n),
        **{name.replace("_", " "): entry(getattr(counts, name)) for name in names},
    }


class MME(Benchmark):
    """MME, scored by points."""

    title = "MME"
    files = "MME_Benchmark_release_version/<task>/ for each of the 14 tasks"
    official = "perception (of 2000)"

    def load(self, directory):
        return load_mme(directory / "MME_Benchmark_release_version")

    def prompt(self, question):
        return mme_prompt(question)

    def group(self, question):
        return question.task

    def unit(self, question):
        return question.task, question.file

    def question_id(self, question):
        return f"{question.task}/{os.path.basename(question.image)}"

    def answers(self, questions, lines):
        return mme_answers(questions, lines)

    def scores(self, questions, answers):
        score = score_mme(questions, answers)

        def area(tasks, value, interval):
            read = [score.parsed.get(q.id) for q in questions if q.task in tasks]
            counts = {"unparsed": read.count("other"), "missing": read.count(None)}
            return entry(value, interval, len(read) - counts["missing"], **counts)

        return {
            "scores": {
                "perception (of 2000)": area(
                    MME_PERCEPTION, score.perception, score.interval
                ),
                "cognition (of 800)": area(
                    MME_COGNITION, score.cognition, score.cognition_interval
                ),
            },
            "categories": {
                "task (of 200)": {
                    name: entry(task.score, n=task.n)
                    for name, task in score.per_task.items()
                }
            },
        }

    def read(self, question, text):
        answer = parse_mme(text)
        return None if answer == "other" else answer
