"""Answers out of models, and scores out of answers."""

from keras_betakd.evaluation.agreement import (
    Agreement,
    BetaAndErrors,
    Outcome,
    beta_and_errors,
    score_agreement,
)
from keras_betakd.evaluation.choices import parse_choice, parse_letter_strict
from keras_betakd.evaluation.cleaning import clean_answer
from keras_betakd.evaluation.generation import generate_answers
from keras_betakd.evaluation.gqa import GQAScore, normalize_gqa_answer, score_gqa
from keras_betakd.evaluation.gqa_questions import GQAQuestion, gqa_prompt, load_gqa
from keras_betakd.evaluation.intervals import Accuracy, mean_interval, wilson_interval
from keras_betakd.evaluation.mmbench import MMBenchScore, score_mmbench
from keras_betakd.evaluation.mmbench_matching import match_opencompass, match_vlmevalkit
from keras_betakd.evaluation.mmbench_questions import (
    MMBenchQuestion,
    load_mmbench,
    mmbench_prompt,
    mmbench_submission,
)
from keras_betakd.evaluation.mme import MMEScore, MMETask, parse_mme, score_mme
from keras_betakd.evaluation.mme_questions import (
    MME_COGNITION,
    MME_PERCEPTION,
    MMEQuestion,
    load_mme,
    mme_answers,
    mme_prompt,
)
from keras_betakd.evaluation.pope import POPECategory, POPEScore, parse_pope, score_pope
from keras_betakd.evaluation.pope_questions import (
    POPE_CATEGORIES,
    POPEQuestion,
    load_pope,
    pope_prompt,
)
from keras_betakd.evaluation.protocol import llava_answers
from keras_betakd.evaluation.scienceqa import ScienceQAScore, score_scienceqa
from keras_betakd.evaluation.scienceqa_categories import scienceqa_categories
from keras_betakd.evaluation.textvqa import TextVQAScore, score_textvqa
from keras_betakd.evaluation.textvqa_questions import (
    TextVQAQuestion,
    load_textvqa,
    textvqa_answers,
    textvqa_prompt,
)
from keras_betakd.evaluation.vqa_normalization import normalize_vqa_answer
from keras_betakd.files import read_jsonl
