"""Answers out of models, and scores out of answers."""

from keras_betakd.evaluation.choices import parse_choice
from keras_betakd.evaluation.choices import parse_letter_strict
from keras_betakd.evaluation.generation import clean_answer
from keras_betakd.evaluation.generation import generate_answers
from keras_betakd.evaluation.scienceqa import ScienceQAScore
from keras_betakd.evaluation.scienceqa import score_scienceqa
