"""The benchmarks by the names that the command knows them by."""

from keras_betakd.evaluate.multiple_choice import MMBench, ScienceQA
from keras_betakd.evaluate.short_answers import GQA, MME, POPE, TextVQA

BENCHMARKS = {
    "scienceqa": ScienceQA(),
    "gqa": GQA(),
    "textvqa": TextVQA(),
    "pope": POPE(),
    "mme": MME(),
    "mmbench": MMBench(),
}
