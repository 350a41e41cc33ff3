"""Answers out of models, and scores out of answers."""

from keras_betakd.evaluation.choices import parse_choice, parse_letter_strict
from keras_betakd.evaluation.generation import clean_answer, generate_answers
from keras_betakd.evaluation.scienceqa import ScienceQAScore, score_scienceqa
