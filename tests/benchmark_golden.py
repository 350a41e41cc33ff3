"""The recorded outputs of the published benchmark scorers (see golden/README.md)."""

import json
import os

import pytest

_PATH = os.path.join(os.path.dirname(__file__), "golden", "benchmarks.json")

with open(_PATH, encoding="utf-8") as _file:
    GOLDEN = json.load(_file)


def cases(benchmark, *left_out):
    """The cases of a benchmark as test parameters, each by its own name."""
    return [
        pytest.param(case, id=case["name"])
        for case in GOLDEN[benchmark]
        if case["name"] not in left_out
    ]


def case(benchmark, name):
    """One recorded case by name."""
    return next(found for found in GOLDEN[benchmark] if found["name"] == name)


def percents(accuracies):
    """Category -> `[percent, n]`, with the keys as JSON has them."""
    return {str(key): [value.percent, value.n] for key, value in accuracies.items()}


def write_jsonl(path, objects):
    """Writes one JSON object a line, and returns the path."""
    path.write_text("\n".join(map(json.dumps, objects)) + "\n", encoding="utf-8")
    return path
