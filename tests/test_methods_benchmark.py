"""`benchmarks/methods.py`: its data, its measure, its table, and one tiny real run."""

import os
import sys

import keras
import numpy as np
from scipy import stats

from keras_betakd.data import ScienceQARecord

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(ROOT, "benchmarks"))

import methods  # noqa: E402
import small_gemma  # noqa: E402


def questions(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        ScienceQARecord(
            str(i),
            "is there a circle?",
            ("no", "yes"),
            i % 2,
            image=rng.integers(0, 255, (64, 64, 3), "uint8"),
        )
        for i in range(count)
    ]


def test_every_method_can_be_made():
    for method in methods.METHODS[1:]:
        arguments = methods.objective(method)
        assert set(arguments["energies"]) <= {"answer", "added"}
        assert ("added" in arguments["energies"]) == (method in methods.ADDED)
        weighs_rows = arguments["beta"].row_weights is not None
        assert weighs_rows == (method in methods.ROW_WEIGHTS)


def test_all_methods_see_the_same_batches_and_each_epoch_another_order():
    data = {"a": np.arange(7)}, np.arange(7), np.arange(7)
    one, other = (methods.Batches(data, 3, seed=4) for _ in range(2))
    epochs = []
    for _ in range(2):
        batches = [one[i] for i in range(len(one))]
        for i, (x, y, weight) in enumerate(batches):
            assert (x["a"] == y).all() and (y == weight).all()
            np.testing.assert_array_equal(y, other[i][1])
        epochs.append(np.concatenate([y for _, y, _ in batches]))
        one.on_epoch_end()
        other.on_epoch_end()
    assert [len(set(epoch)) for epoch in epochs] == [6, 6]
    assert (epochs[0] != epochs[1]).any()


def test_an_answer_is_right_if_all_its_tokens_are():
    """The model answers each token with itself; labels without weight do not count."""
    ids = keras.Input((3,), dtype="int32")
    logits = keras.layers.CategoryEncoding(num_tokens=5, output_mode="one_hot")
    each = keras.layers.Reshape((3, 5))(
        logits(keras.layers.Reshape((3, 1))(ids)),
    )
    model = keras.Model(ids, each)
    x = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [4, 0, 0]], "int32")
    labels = np.array([[1, 2, 3], [1, 2, 0], [0, 2, 0], [4, 0, 0]])
    weights = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 0], [0, 1, 1]])
    assert methods.accuracy(model, (x, labels, weights)) == 75.0


def test_where_the_entropy_is():
    """Of 7 log 2 nats at five tokens three have 2 log 2: two of them are over half."""
    even = {1: [50, 0, 0, 0], 2: [0, 0, -99, -99], 4: [0, 0, 0, 0]}
    logits = np.array([[even[1], even[4]], [even[2], even[4]], [even[4], even[1]]])
    weights = np.array([[1, 1], [1, 1], [1, 0]])
    ids = keras.Input((2,), dtype="int32")
    table = keras.layers.Embedding(6, 4, weights=[logits.reshape(6, 4)])
    model = keras.Model(ids, table(ids))
    data = np.arange(6).reshape(3, 2), np.zeros((3, 2)), weights
    mean, share = methods.doubts(model, data)
    np.testing.assert_allclose(mean, (np.log(2) + 3 * np.log(4)) / 5, rtol=1e-6)
    assert share == 40.0


def run_of(method, seed, accuracy, step):
    return {"arm": method, "seed": seed, "accuracy": accuracy, "step": step}


def test_the_table_pairs_runs_by_seed():
    """The base has a seed that the other lacks: it counts in its own mean alone."""
    base = {0: 80.0, 1: 84.0, 2: 79.0, 3: 10.0}
    other = {0: 81.0, 1: 84.5, 2: 82.0}
    runs = [run_of(methods.BASE, seed, value, 0.5) for seed, value in base.items()]
    name = "AttentionEnergy"
    steps = {0: 1.0, 1: 0.6, 2: 0.75}
    runs += [run_of(name, seed, value, steps[seed]) for seed, value in other.items()]
    runs.append(run_of(methods.LABELS, 0, 60.0, 0.2))
    lines = methods.table(runs).split("\n")
    interval = stats.ttest_rel(
        list(other.values()), [base[seed] for seed in other]
    ).confidence_interval(0.95)
    difference = f"+1.5 ({interval.low:+.1f} to {interval.high:+.1f})"
    assert lines[2:] == [
        f"| {methods.LABELS} | 1 | 60.0 | -20.0 | 0.40 |",
        f"| {methods.BASE} | 4 | 63.2 ± 35.6 |  | 1.00 |",
        f"| {name} | 3 | 82.5 ± 1.8 | {difference} | 1.50 |",
    ]


def test_a_tiny_run_and_what_is_not_made_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        small_gemma, "load_records", lambda *_: (questions(4), questions(2, seed=1))
    )
    chosen = [methods.LABELS, methods.BASE, "ImageTokenEnergy, saliency"]
    command = [
        *("methods.py", "--methods", *chosen, "--seeds", "0", "--epochs", "1"),
        *("--questions", "4", "--test-questions", "2", "--batch-size", "4"),
        *("--runs", str(tmp_path / "runs.jsonl"), "--output", str(tmp_path)),
    ]
    monkeypatch.setattr(sys, "argv", command)
    methods.main()
    first = capsys.readouterr().out
    for method in chosen:
        assert f"{method}, seed 0:" in first and f"| {method} | 1 |" in first
    runs = methods.read_runs(tmp_path / "runs.jsonl")
    assert [run["arm"] for run in runs] == chosen
    assert all(run["step"] > 0 for run in runs)
    methods.main()
    again = capsys.readouterr().out
    assert "seed 0:" not in again and f"| {methods.BASE} | 1 |" in again
