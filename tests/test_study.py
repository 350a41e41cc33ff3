"""`benchmarks/study`: its data, its statistics, its report, and one tiny real run."""

import dataclasses
import json
import math
import os
import sys

import keras
import numpy as np
import pytest
from scipy import stats

import keras_betakd
from keras_betakd.data import ScienceQARecord

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, "benchmarks", "study")
sys.path.append(FOLDER)

from arm_models import BETAS, energies_and_beta  # noqa: E402
from arms import GROUPS, arms_of  # noqa: E402
from easy_vqa_problems import as_problem  # noqa: E402
from paired import paired_difference, spread  # noqa: E402
from problems import FAMILIES, make_problems  # noqa: E402
from results import Results  # noqa: E402
from scenes import (  # noqa: E402
    LONGEST,
    WORDS,
    as_ids,
    is_slot,
    make_scenes,
    with_wrong_words,  # noqa: E402
)
from settings import EXPERIMENTS, SETTINGS, Experiment, Setting  # noqa: E402
from store import RunStore, read_runs  # noqa: E402
from tables import Report, filled_in  # noqa: E402


@pytest.fixture(scope="module")
def problems():
    return make_problems(200, seed=3)


def test_problems_of_a_seed_are_the_same_and_of_another_not(problems):
    again = make_problems(5, seed=3)
    other = make_problems(5, seed=4)
    for problem, same, different in zip(problems, again, other, strict=False):
        assert np.array_equal(problem.image, same.image)
        assert (problem.question, problem.answer) == (same.question, same.answer)
        assert not np.array_equal(problem.image, different.image)


def test_every_family_is_drawn_and_every_choice_is_right_somewhere(problems):
    assert {p.family for p in problems} == set(FAMILIES)
    for family in FAMILIES:
        found = [p for p in problems if p.family == family]
        assert all(0 <= p.answer < len(p.choices) for p in found)
        assert len({p.answer for p in found}) >= 2


def test_magnets_that_attract_repel_when_one_is_turned():
    """Checks the pixels: unlike poles face each other across the gap."""
    for problem in make_problems(300, seed=5):
        if problem.family != "magnets":
            continue
        pixels = problem.image.astype(int)
        red = (pixels[..., 0] > 150) & (pixels[..., 2] < 80)
        blue = (pixels[..., 2] > 150) & (pixels[..., 0] < 90)
        row = (red | blue).any(axis=1).nonzero()[0].mean().astype(int)
        inner = [np.flatnonzero(red[row] | blue[row])]
        left, right = inner[0][inner[0] < 24].max(), inner[0][inner[0] >= 24].min()
        unlike = bool(red[row, left]) != bool(red[row, right])
        turned = "turned" in problem.question
        assert (problem.choices[problem.answer] == "attract") == (unlike != turned)


def test_the_biased_teacher_is_taught_wrong_in_its_part_alone(problems):
    taught_wrong = [p.biased_answer != p.answer for p in problems]
    assert taught_wrong == [p.in_biased_part for p in problems]
    assert 0.1 < np.mean(taught_wrong) < 0.35


def test_the_mixed_teacher_is_taught_at_random_where_it_is_to_be_unsure(problems):
    from teachers import taught_answers, taught_wrong

    taught = taught_answers("mixed", problems)
    right = np.array([p.answer for p in problems])
    parts = taught_wrong("mixed", problems)
    unsure, sure = parts["unsure"], parts["biased"]
    assert unsure.any() and sure.any() and not (unsure & sure).any()
    assert (taught == right)[~unsure & ~sure].all() and (taught != right)[sure].all()
    assert 0.1 < (taught == right)[unsure].mean() < 0.7
    assert not taught_wrong("biased", problems)["unsure"].any()


def test_a_setting_belongs_to_one_experiment():
    names = [name for e in EXPERIMENTS.values() for name in e.settings]
    assert len(set(names)) == len(names)


def test_descriptions_say_what_is_drawn():
    """The colours that are named are those of the pixels, in reading order."""
    colours = {"red": (205, 45, 45), "blue": (50, 80, 205), "green": (40, 150, 70)}
    for scene in make_scenes(30, seed=1):
        words = scene.words
        for colour, _, row, column in zip(*[iter(named(words))] * 4, strict=True):
            y = slice(0, 24) if row == "top" else slice(24, 48)
            x = 16 * ("left", "middle", "right").index(column)
            cell = scene.image[y, x : x + 16].astype(int)
            if colour in colours:
                distance = np.abs(cell - colours[colour]).sum(-1)
                assert distance.min() < 30, (words, colour, row, column)
        assert len(words) <= LONGEST


def named(words):
    """The words of a description that name objects."""
    body = words[3 : words.index(";")]
    return [word for word in body if word != ","]


def test_wrong_words_are_of_the_same_class_and_as_many_as_said():
    descriptions = [scene.words for scene in make_scenes(100, seed=2)]
    right = as_ids(descriptions)
    wrong = as_ids(with_wrong_words(descriptions, 0.2, seed=3))
    slots = is_slot(right)
    assert (wrong == right)[~slots].all() and is_slot(wrong)[slots].all()
    assert 0.16 < (wrong != right)[slots].mean() < 0.24
    assert WORDS[0] == "<pad>" and not is_slot(np.array(0))


def test_of_an_easy_vqa_question_the_teacher_alone_is_shown_the_choices():
    image = np.zeros((64, 64, 3), "uint8")
    record = ScienceQARecord(
        "7", "is there a circle?", ("no", "yes"), 1, "", image, skill="presence"
    )
    problem = as_problem(record)
    assert (problem.question, problem.family) == (record.question, record.skill)
    assert "(A) no (B) yes" in problem.prompt and record.question in problem.prompt
    assert problem.biased_answer == problem.answer == 1
    assert np.array_equal(problem.image, image)


def test_paired_differences_are_those_of_scipy():
    ours = {i: v for i, v in enumerate([1.0, 2.5, 3.0, 4.5, 4.0])}
    theirs = {i: v for i, v in enumerate([0.5, 2.0, 3.5, 3.0, 3.5])} | {9: 100.0}
    found = paired_difference(ours, theirs)
    low, high = stats.ttest_rel(
        list(ours.values()), [theirs[i] for i in ours]
    ).confidence_interval(0.95)
    assert found.n == 5
    assert np.allclose([found.mean, found.low, found.high], [0.5, low, high])
    with pytest.raises(ValueError, match="two runs"):
        paired_difference({0: 1.0}, {0: 2.0})


def test_every_arm_can_be_made():
    names = [name for group in GROUPS.values() for name in group]
    assert len(set(names)) == len(names)
    names += [name for experiment in EXPERIMENTS for name in arms_of(experiment)]
    for name in names:
        if name != "ce" and not name.startswith("keras.distillation"):
            assert energies_and_beta(name)["energies"]


def test_a_held_beta_is_a_fixed_one():
    """The grid's betas are variables; nothing else may differ."""
    weights = keras.ops.array([[0.5], [0.5]])
    held, fixed = BETAS["fixed"](3.0), keras_betakd.FixedBeta(3.0)
    assert np.isclose(float(held(weights)), float(fixed(weights)))
    assert np.isclose(float(held.losses[0]), float(fixed.losses[0]))
    assert not held.trainable_variables


def run_of(arm, setting, seed, accuracy):
    return {
        "arm": arm,
        "setting": setting,
        "seed": seed,
        "test": {"accuracy_choices": accuracy},
        "validation": accuracy,
        "seconds": 1.0,
    }


def test_the_store_repeats_no_run_and_refuses_half_a_line(tmp_path):
    path = tmp_path / "runs.jsonl"
    store = RunStore(path)
    store.add(run_of("ce", "full", 0, 50.0))
    store = RunStore(path)
    assert ("ce", "full", 0) in store and ("ce", "full", 1) not in store
    with open(path, "a") as file:
        file.write('{"arm": "ce", "se')
    with pytest.raises(ValueError, match="Line 2"):
        read_runs(path)


def test_the_report_finds_the_grid_s_choice_and_the_difference_to_it(tmp_path):
    """Beta 10 is best here; the learned one is 1 and 2 points above it."""
    path = tmp_path / "runs.jsonl"
    lines = []
    for setting in SETTINGS:
        for seed in range(2):
            for value in (0.3, 1, 3, 10, 30):
                accuracy = 60.0 - abs(math.log10(value) - 1) + seed
                arm = f"cosine-probs / fixed, value={value:g}"
                lines.append(run_of(arm, setting, seed, accuracy))
            learned = 61.0 + 2 * seed
            lines.append(run_of("cosine-probs / instance", setting, seed, learned))
    path.write_text("\n".join(map(json.dumps, lines)))
    report = Report(Results(path))
    best = report.results.best_fixed("cosine-probs", "noisy")
    assert best == "cosine-probs / fixed, value=10"
    text = "{{versus_grid('cosine-probs / instance', 'cosine-probs')}} of {{count()}}"
    differences = [1.0, 2.0] * len(SETTINGS)
    mean, deviation = spread(differences)
    half = (
        stats.t.ppf(0.975, len(differences) - 1) * deviation / len(differences) ** 0.5
    )
    expected = f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}) of 48"
    assert filled_in(text, report) == expected


@pytest.mark.backends
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the study runs on JAX")
def test_runs_side_by_side_are_those_of_fit(tmp_path):
    """The loop over Keras' training steps gives the results of `fit`."""
    import runs
    from tasks import Split, Task
    from tiny_models import tiny_gemma_text

    teacher = tiny_gemma_text()
    records = {
        "ids": [str(i) for i in range(8)],
        "prompts": ["which shape is present?"] * 8,
        "responses": ["one", "two"] * 4,
    }
    cached = keras_betakd.cache_teacher(
        teacher, records, tmp_path, batch_size=8, max_response_length=4, verbose=0
    )
    encoded = cached.preprocessor.encode(records, records["ids"], 4)
    rng = np.random.default_rng(0)
    classes = cached.preprocessor.settings.vocabulary_size
    labels = encoded.labels[:, :1]
    split = Split(
        student={
            "tokens": rng.integers(1, 9, (8, 3)).astype("int32"),
            "images": rng.normal(size=(8, 2, 4)).astype("float32"),
        },
        teacher={**encoded.inputs, "rows": encoded.inputs["rows"][:, :1]},
        labels=labels,
        right=labels[:, 0],
        choices=np.unique(labels)[None].repeat(8, axis=0),
        teacher_logits=rng.normal(size=(8, classes)).astype("float32"),
        families=np.array(["x"] * 8),
        biased=np.arange(8) < 4,
        unsure=np.arange(8) > 6,
    )
    task = Task(split, split, split, cached, classes)
    experiment = Experiment({"full": Setting(8, 0.0, "good")}, steps=runs.PARTS)
    trainer = runs.Trainer({"full": task}, experiment)
    arm = "cosine-probs / instance"
    model, student = trainer._compiled(arm, task)
    state = trainer._start(model, student, arm, task, seed=1)
    order = trainer._rows([(arm, "full", 1)])
    data = runs.training_data(arm, [task])
    states = runs._stacked([state])
    trained = runs.train_program(model)(states, data, order)
    x, y, weight = keras.tree.map_structure(lambda a: a[order.reshape(-1)], data)
    untrained = student.predict(split.student, verbose=0)
    model.fit(x, y, runs.BATCH, 1, sample_weight=weight, shuffle=False, verbose=0)
    # Not the weights: where a gradient is 0 but for rounding (the bias of the keys),
    # Adam makes a step out of it.
    theirs = student.predict(split.student, verbose=0)
    runs._put(model, trained, 0)
    ours = student.predict(split.student, verbose=0)
    assert np.allclose(ours, theirs, atol=1e-4)
    assert np.abs(ours - untrained).max() > 0.01
    (run,) = trainer.run([(arm, "full", 1)])
    expected = split.measured(ours)["log_likelihood"]
    assert np.isclose(run["test"]["log_likelihood"], expected, atol=1e-3)
    assert run["beta"].keys() >= {"mean", "energy", "auc_biased", "auc_unsure"}


@pytest.mark.backends
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the study runs on JAX")
def test_own_answers_stand_behind_the_given_rows():
    """They have no label, and the teacher's logits are those at their own words."""
    import types

    from own_answers import WARM_START, OwnAnswers

    classes = len(WORDS)
    images, tokens = keras.Input((2, 3), name="images"), keras.Input((LONGEST,))
    logits = keras.layers.Dense(classes)(keras.layers.Embedding(classes, 4)(tokens))
    student = keras.Model({"images": images, "tokens": tokens}, logits)

    def teacher_at(before, images):
        return np.repeat(before[..., None], classes, axis=-1).astype("float32")

    inputs = {
        "images": np.random.default_rng(0).normal(size=(4, 2, 3)).astype("float32"),
        "tokens": np.ones((4, LONGEST), "int32"),
    }
    labels = np.ones((4, LONGEST), "int32")
    labels[:, 5:] = 0
    weight = (labels > 0).astype("float32")
    train = types.SimpleNamespace(student=inputs, teacher_at=teacher_at, labels=labels)
    x = {"student": inputs, "teacher": {"teacher_logits": np.ones((4, 22, classes))}}
    x["sample_weight"] = weight
    options = "on_policy=0.5", "on_policy=1"
    jobs = [(f"reverse-kl / task, {option}", "s", 0) for option in options]
    tasks = [types.SimpleNamespace(train=train)] * 2
    data = x, labels, weight
    own = OwnAnswers(jobs, tasks, [0, 0], data, 8, student)
    part = np.arange(16).reshape(2, 2, 4) % 4
    weights_of = lambda i: [v.value for v in student.trainable_variables]  # noqa: E731
    np.testing.assert_array_equal(own.with_own(0, part, weights_of), part)
    rows = own.with_own(WARM_START, part, weights_of)
    assert [(run >= 4).sum() for run in rows] == [4, 8]
    x, labels, weight = own.data
    assert (x["task_weight"][:4] == 1).all() and (x["task_weight"][4:] == 0).all()
    before = x["student"]["tokens"]
    np.testing.assert_array_equal(before[4:, 1:], labels[4:, :-1])
    theirs = x["teacher"]["teacher_logits"][4:, :, 0]
    np.testing.assert_array_equal(theirs, before[4:])
    np.testing.assert_array_equal(weight[4:], labels[4:] > 0)
    chosen = rows[1].reshape(-1)
    scenes = part[1].reshape(-1)
    ours = x["student"]["images"][chosen]
    np.testing.assert_array_equal(ours, inputs["images"][scenes])
    # Branches stand beside the given rows: one word and the row behind it each.
    own = OwnAnswers(
        [("forward-kl / task, branches=0.5", "s", 0)], tasks, [0], data, 8, student
    )
    rows = own.with_own(WARM_START, part[:1], weights_of)
    np.testing.assert_array_equal(rows[..., :4], part[:1])
    np.testing.assert_array_equal(rows[..., 4:], [[[4, 5], [6, 7]]])
    x, labels, weight = own.data
    before, rows = x["student"]["tokens"][4:], weight[4:] > 0
    assert (x["task_weight"][4:] == 0).all() and (labels[4:] == labels[:4]).all()
    assert (rows.sum(axis=1) == 1).all() and not rows[:, [0, 5]].any()
    assert (before[rows] != 1).any() and (before[~rows] == 1).all()
    assert not np.isin(before[rows], [0, WORDS.index("<end>")]).any()
    theirs = x["teacher"]["teacher_logits"][4:, :, 0]
    np.testing.assert_array_equal(theirs, before)


def test_of_two_teachers_the_wrong_one_is_weighed_down(tmp_path, monkeypatch):
    """In the part in which it was taught wrong, by betas that know its uncertainty."""
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())  # it asks for JAX
    import tasks
    import two_teachers

    monkeypatch.setattr(tasks, "COUNTS", {"train": 300, "validation": 1, "test": 300})
    both, experiment = two_teachers.load_both(tmp_path, wrong=0.4)
    experiment = dataclasses.replace(experiment, steps=200)
    distiller = two_teachers.trained("both, instance", 1, both, experiment)
    found = two_teachers.measured(distiller, both)
    assert both["biased"].test.biased.sum() > 20
    assert found["auc"] > 0.65 and found["auc_ratio"] > 0.65
