"""Generates answers of models, reads benchmarks and scores answers."""

from keras_betakd.evaluation.agreement import (
    Agreement,
    BetaAndErrors,
    Outcome,
    beta_and_errors,
    score_agreement,
)
from keras_betakd.evaluation.answer_text import clean_answer
from keras_betakd.evaluation.benchmarks.gqa import (
    GQAScore,
    normalize_gqa_answer,
    score_gqa,
)
from keras_betakd.evaluation.benchmarks.gqa_questions import (
    GQAQuestion,
    gqa_prompt,
    load_gqa,
)
from keras_betakd.evaluation.benchmarks.mmbench import MMBenchScore, score_mmbench
from keras_betakd.evaluation.benchmarks.mmbench_matching import (
    match_opencompass,
    match_vlmevalkit,
)
from keras_betakd.evaluation.benchmarks.mmbench_questions import (
    MMBenchQuestion,
    load_mmbench,
    mmbench_prompt,
    mmbench_submission,
)
from keras_betakd.evaluation.benchmarks.mme import (
    MMEScore,
    MMETask,
    parse_mme,
    score_mme,
)
from keras_betakd.evaluation.benchmarks.mme_questions import (
    MME_COGNITION,
    MME_PERCEPTION,
    MMEQuestion,
    load_mme,
    mme_answers,
    mme_prompt,
)
from keras_betakd.evaluation.benchmarks.pope import (
    POPECategory,
    POPEScore,
    parse_pope,
    score_pope,
)
from keras_betakd.evaluation.benchmarks.pope_questions import (
    POPE_CATEGORIES,
    POPEQuestion,
    load_pope,
    pope_prompt,
)
from keras_betakd.evaluation.benchmarks.scienceqa import (
    ScienceQAScore,
    scienceqa_categories,
    score_scienceqa,
)
from keras_betakd.evaluation.benchmarks.textvqa import TextVQAScore, score_textvqa
from keras_betakd.evaluation.benchmarks.textvqa_questions import (
    TextVQAQuestion,
    load_textvqa,
    textvqa_answers,
    textvqa_prompt,
)
from keras_betakd.evaluation.benchmarks.vqa_normalization import normalize_vqa_answer
from keras_betakd.evaluation.choice_parsing import parse_choice, parse_letter_strict
from keras_betakd.evaluation.generation import generate_answers
from keras_betakd.evaluation.intervals import Accuracy, mean_interval, wilson_interval
from keras_betakd.evaluation.llava_protocol import llava_answers
from keras_betakd.files import read_jsonl

__all__ = [
    "Accuracy",
    "Agreement",
    "BetaAndErrors",
    "GQAQuestion",
    "GQAScore",
    "MMBenchQuestion",
    "MMBenchScore",
    "MMEQuestion",
    "MMEScore",
    "MMETask",
    "MME_COGNITION",
    "MME_PERCEPTION",
    "Outcome",
    "POPECategory",
    "POPEQuestion",
    "POPEScore",
    "POPE_CATEGORIES",
    "ScienceQAScore",
    "TextVQAQuestion",
    "TextVQAScore",
    "beta_and_errors",
    "clean_answer",
    "generate_answers",
    "gqa_prompt",
    "llava_answers",
    "load_gqa",
    "load_mmbench",
    "load_mme",
    "load_pope",
    "load_textvqa",
    "match_opencompass",
    "match_vlmevalkit",
    "mean_interval",
    "mmbench_prompt",
    "mmbench_submission",
    "mme_answers",
    "mme_prompt",
    "normalize_gqa_answer",
    "normalize_vqa_answer",
    "parse_choice",
    "parse_letter_strict",
    "parse_mme",
    "parse_pope",
    "pope_prompt",
    "read_jsonl",
    "scienceqa_categories",
    "score_agreement",
    "score_gqa",
    "score_mmbench",
    "score_mme",
    "score_pope",
    "score_scienceqa",
    "score_textvqa",
    "textvqa_answers",
    "textvqa_prompt",
    "wilson_interval",
]
