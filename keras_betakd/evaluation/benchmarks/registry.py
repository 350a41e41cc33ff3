"""The benchmarks by the names that `--benchmark` takes."""

from keras_betakd.evaluation.benchmarks.gqa import GQA
from keras_betakd.evaluation.benchmarks.mmbench import MMBench
from keras_betakd.evaluation.benchmarks.mme import MME
from keras_betakd.evaluation.benchmarks.pope import POPE
from keras_betakd.evaluation.benchmarks.scienceqa import ScienceQA
from keras_betakd.evaluation.benchmarks.textvqa import TextVQA

BENCHMARKS = {
    "scienceqa": ScienceQA(),
    "gqa": GQA(),
    "textvqa": TextVQA(),
    "pope": POPE(),
    "mme": MME(),
    "mmbench": MMBench(),
}
