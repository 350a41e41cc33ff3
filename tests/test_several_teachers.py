"""Several teachers: each energy is that of a distiller with its teacher alone."""

import keras
import numpy as np
import pytest
from keras import ops
from marks import kept
from plain_models import (
    cross_entropy64,
    example_mean64,
    forward_kl64,
    linear_model,
    token_batch,
)
from test_features import numbers, set_weights, whole_and_resumed
from tiny_models import tiny_gemma3, vqa_records

import keras_betakd as kd

K = 6
ENERGY = kd.ForwardKLEnergy()
NAMES = ["near", "far"]


def teachers():
    return {
        "near": set_weights(tiny_gemma3(16, grid=4), 1),
        "far": set_weights(tiny_gemma3(), 3),
    }


def distiller_of(teacher, energies, beta, learning_rate=0.1, student=None, **options):
    student = student or set_weights(tiny_gemma3(), 2)
    distiller = kd.BetaKDDistiller(
        teacher, student, energies, beta, max_response_length=K, **options
    )
    for i, projection in enumerate(distiller.projections.values()):
        set_weights(projection, 5 + i)
    distiller.compile(optimizer=keras.optimizers.SGD(learning_rate))
    return distiller


def evaluated(distiller, *data):
    data = data or (vqa_records(4),)
    names = ("x", "y", "sample_weight")
    options = dict(zip(names, data, strict=False))
    return numbers(distiller.evaluate(**options, return_dict=True, verbose=0))


@pytest.mark.backends
def test_numbers_against_float64():
    teacher = {name: linear_model(seed) for seed, name in enumerate(NAMES, start=1)}
    student = linear_model(0)
    x, y, weight = token_batch()
    energies = {"near": kd.ForwardKLEnergy(), "far": kd.ReverseKLEnergy()}
    betas = {"near": kd.FixedBeta(3.0), "far": kd.FixedBeta(0.25, dim=2.0)}
    distiller = kd.BetaKDDistiller(teacher, student, energies, betas)
    distiller.compile(optimizer="sgd")
    found = evaluated(distiller, x, y, weight)

    logits = {
        name: ops.convert_to_numpy(model(x)).astype("float64")
        for name, model in {**teacher, "student": student}.items()
    }
    task = example_mean64(cross_entropy64(y, logits["student"]), weight)
    near = example_mean64(forward_kl64(logits["near"], logits["student"]), weight)
    far = example_mean64(forward_kl64(logits["student"], logits["far"]), weight)
    penalties = 0.5 * np.log(3.0) + 1.0 * np.log(0.25)
    assert found["task_loss"] == pytest.approx(task, rel=1e-5)
    assert found["near_forward_kl"] == pytest.approx(near, rel=1e-5)
    assert found["far_reverse_kl"] == pytest.approx(far, rel=1e-5)
    total = task + 3.0 * near + 0.25 * far - penalties
    assert found["loss"] == pytest.approx(total, rel=1e-5)


def of_one(name, betas, **options):
    return distiller_of(
        teachers()[name], of_energies()[name], {"kl": betas[name]}, **options
    )


def of_energies():
    return {
        "near": {"kl": kd.ForwardKLEnergy()},
        "far": {"kl": kd.SkewReverseKLEnergy()},
    }


@pytest.mark.backends
@pytest.mark.parametrize("fused", kept([True, False], True))
def test_a_step_is_the_sum_of_the_steps_of_each(fused):
    """Of SGD: that of the two alone, less that of the cross-entropy they both have."""

    def moved(distiller):
        before = [ops.convert_to_numpy(w) for w in distiller.student.trainable_weights]
        distiller.train_on_batch(vqa_records(4))
        after = [ops.convert_to_numpy(w) for w in distiller.student.trainable_weights]
        return [b.astype("float64") - a for a, b in zip(before, after, strict=True)]

    strong = {"near": 2.0, "far": 5.0}
    fixed = {name: kd.FixedBeta(value) for name, value in strong.items()}
    both = moved(distiller_of(teachers(), of_energies(), fixed, fused=fused))
    alone = [
        moved(of_one(name, {name: kd.FixedBeta(strong[name])}, fused=fused))
        for name in NAMES
    ]
    task = moved(of_one("near", {"near": kd.FixedBeta(1e-20)}, fused=fused))
    for found, near, far, labels in zip(both, *alone, task, strict=True):
        np.testing.assert_allclose(found, near + far - labels, atol=2e-6)


@pytest.mark.backends
@pytest.mark.parametrize("fused", kept([True, False], False))
@pytest.mark.one_of_two("tensorflow")
def test_energies_and_betas_are_those_of_each_alone(fused):
    """Features, image tokens and predicted betas, each of its own teacher."""
    energies = lambda: {  # noqa: E731
        "near": [
            kd.ForwardKLEnergy(),
            kd.FeatureMSEEnergy(features="hidden_states"),
            kd.ImageTokenEnergy(kd.ForwardKLEnergy()),
        ],
        "far": [kd.ReverseKLEnergy(), kd.AttentionEnergy()],
    }
    both = distiller_of(
        teachers(), energies(), kd.InstanceBeta(), task_beta=kd.TaskBeta(), fused=fused
    )
    found = evaluated(both)
    assert {name for name in found if name.startswith(("near", "far"))} == {
        f"{teacher}_{energy.name}{end}"
        for teacher, own in energies().items()
        for energy in own
        for end in ("", "_beta")
    }
    for name in NAMES:
        alone = evaluated(
            distiller_of(
                teachers()[name], energies()[name], kd.InstanceBeta(), fused=fused
            )
        )
        for energy in energies()[name]:
            for end in ("", "_beta"):
                key = f"{energy.name}{end}"
                assert found[f"{name}_{key}"] == pytest.approx(alone[key], rel=1e-5), (
                    key
                )


def test_a_cached_teacher_beside_a_live_one(tmp_path):
    """The images were in the student's size when the cache compared their digests."""

    def trained(pair):
        keras.utils.set_random_seed(0)
        distiller = distiller_of(pair, of_energies(), kd.InstanceBeta())
        return distiller.fit(records, epochs=2, verbose=0, shuffle=False).history

    records, live = vqa_records(4, image_size=20), teachers()
    live["near"] = set_weights(tiny_gemma3(16), 1)  # with the student's images
    one = distiller_of(live["far"], of_energies()["far"], kd.InstanceBeta())
    cached = kd.cache_teacher(one, records, tmp_path / "far", verbose=0)
    expected, found = trained(live), trained({"near": live["near"], "far": cached})
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


def test_teachers_of_another_tokenizer_and_of_the_students_own():
    """One energy compares class by class, the other's rows are those it aligned."""
    other = set_weights(tiny_gemma3(16, extra_word="quagga"), 3)
    energies = {"near": kd.ForwardKLEnergy(), "far": kd.ULDEnergy()}
    pair = {"near": teachers()["near"], "far": other}
    found = evaluated(distiller_of(pair, energies, kd.TaskBeta()))
    for name, energy in energies.items():
        alone = evaluated(distiller_of(pair[name], energy, kd.TaskBeta()))
        assert found[f"{name}_{energy.name}"] == pytest.approx(
            alone[energy.name], rel=1e-6
        )


def test_the_student_answers_before_all_teachers():
    distiller = distiller_of(teachers(), of_energies(), kd.InstanceBeta())
    answers = kd.StudentAnswers(vqa_records(4), 1.0, max_new_tokens=3)
    history = distiller.fit(answers, verbose=0).history
    assert history["answers"] == [4]
    assert all(np.isfinite(history[f"{name}_kl"]) for name in NAMES)


def test_a_teacher_that_is_not_finite_leaves_the_other_its_rows():
    broken = teachers()
    weights = broken["far"].backbone.token_embedding.embeddings
    row = broken["far"].preprocessor.tokenizer("green")[0]
    values = ops.convert_to_numpy(weights).copy()
    values[int(row)] = np.nan
    weights.assign(values)
    distiller = distiller_of(broken, of_energies(), kd.TaskBeta(), fused=False)
    found = evaluated(distiller)
    alone = evaluated(of_one("near", {"near": kd.TaskBeta()}, fused=False))
    assert found["near_kl"] == pytest.approx(alone["kl"], rel=1e-6)
    assert np.isfinite(found["loss"])
    assert int(ops.convert_to_numpy(distiller.faults.teacher.count)) > 0


def test_a_file_of_another_order_is_refused(tmp_path):
    """Keras finds layers by their places: each energy got the other one's beta."""
    swapped = dict(reversed(of_energies().items()))
    first = distiller_of(teachers(), of_energies(), kd.TaskBeta())
    first.train_on_batch(vqa_records(4))
    first.save_weights(tmp_path / "run.weights.h5")
    pair = dict(reversed(teachers().items()))
    for models, energies in (
        (pair, swapped),
        ({"far": teachers()["far"]}, {"far": of_energies()["far"]}),
    ):
        second = distiller_of(models, energies, kd.TaskBeta())
        with pytest.raises(ValueError, match="another order.*near_kl.*far_kl"):
            second.load_weights(tmp_path / "run.weights.h5")


def test_each_teacher_needs_positions_of_its_own():
    """One array was used for all of them, and other rows compared."""
    distiller = distiller_of(teachers(), of_energies(), None)
    x, y, weight = distiller.preprocessor(vqa_records(4))
    for key, value, message in (
        ("teacher_positions", x["teacher_positions"]["far"], "Received: [A-Z]"),
        ("teacher_positions", {"far": x["teacher_positions"]["far"]}, r"\['far'\]"),
        (
            "teacher",
            {**x["teacher"], "other": x["teacher"]["far"]},
            r"\['far', 'near', 'other'\]",
        ),
    ):
        with pytest.raises(ValueError, match=f"{key}.*dict with an entry.*{message}"):
            distiller.evaluate({**x, key: value}, y, sample_weight=weight, verbose=0)


def test_errors_say_of_which_teacher():
    other = tiny_gemma3(extra_word="quagga")
    preprocessor = kd.DistillationPreprocessor(
        {"near": tiny_gemma3().preprocessor, "far": other.preprocessor},
        tiny_gemma3().preprocessor,
        K,
    )
    with pytest.raises(ValueError, match="Of the teacher 'far': "):
        preprocessor(vqa_records(1))


def test_it_is_saved_and_goes_on(tmp_path):
    def make():
        keras.utils.set_random_seed(0)
        return distiller_of(teachers(), of_energies(), kd.InstanceBeta())

    whole, rest = whole_and_resumed(make, tmp_path / "run.weights.h5")
    for name, values in whole.items():
        np.testing.assert_allclose(rest[name], values[2:], rtol=1e-6, err_msg=name)


def test_an_archive_has_all_teachers(tmp_path):
    """Two objects that have a tokenizer in common were loaded as two, one empty."""
    pair = {**teachers(), "far": set_weights(tiny_gemma3(grid=4), 3)}
    pair["far"].preprocessor = pair["near"].preprocessor
    distiller = distiller_of(pair, of_energies(), kd.InstanceBeta(), task_beta=True)
    distiller.fit(vqa_records(4), verbose=0)
    distiller.save(tmp_path / "pair.keras")
    loaded = keras.models.load_model(tmp_path / "pair.keras")
    assert evaluated(loaded) == pytest.approx(evaluated(distiller), rel=1e-6)
    members = loaded.teacher.members
    assert members["far"].preprocessor is members["near"].preprocessor


def test_one_energy_and_one_beta_serve_all(capsys):
    distiller = distiller_of(
        list(teachers().values()), kd.JensenShannonEnergy(), kd.InstanceBeta()
    )
    names = [f"teacher_{i}_jensen_shannon" for i in (1, 2)]
    assert list(distiller.energies) == names
    assert len({id(x) for x in distiller.betas.values()}) == 2
    distiller.summary()
    assert "teacher: teacher_2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        ({"teacher": {}}, "a model, or a list or dict of models"),
        ({"teacher": {"near": linear_model(1), "far": 3}}, "'far': 'int'"),
        ({"teacher": {"student": linear_model(1)}}, "other than 'teacher' and"),
        ({"energies": {"near": ENERGY}}, r"their names \['near', 'far'\]"),
        ({"energies": [ENERGY]}, r"their names \['near', 'far'\]"),
        # It looked as if each teacher had both.
        ({"energies": [ENERGY, kd.ReverseKLEnergy()]}, "of a list of teachers"),
        ({"beta": {"near": kd.TaskBeta()}}, "names of all energies.*near_kl"),
        ({"beta": [kd.TaskBeta()] * 3}, r"their names \['near', 'far'\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    given = {
        "teacher": {name: linear_model(i) for i, name in enumerate(NAMES)},
        "energies": of_energies(),
        "beta": None,
    } | change
    with pytest.raises(ValueError, match=message):
        kd.BetaKDDistiller(student=linear_model(9), **given)


def test_a_teacher_under_two_names_is_refused():
    """An archive would hold its weights under the first name alone."""
    one = linear_model(1)
    with pytest.raises(ValueError, match="weights of its own.*'near' and 'far'"):
        kd.BetaKDDistiller({"near": one, "far": one}, linear_model(2), of_energies())


def test_a_cache_is_of_one_teacher(tmp_path):
    distiller = distiller_of(teachers(), of_energies(), None)
    with pytest.raises(ValueError, match="of one teacher.*'near', 'far'"):
        kd.cache_teacher(distiller, vqa_records(2), tmp_path)


@pytest.mark.parametrize("flags", ["yes", {"far": True}, {"near": 1, "far": 0}])
def test_flags_that_do_not_fit_are_refused(flags):
    pair = {name: model.preprocessor for name, model in teachers().items()}
    with pytest.raises(ValueError, match="`cross_tokenizer` must be"):
        kd.DistillationPreprocessor(
            pair, tiny_gemma3().preprocessor, K, cross_tokenizer=flags
        )


def test_a_preprocessor_of_one_teacher_is_refused():
    pair, student = teachers(), set_weights(tiny_gemma3(), 2)
    preprocessor = kd.DistillationPreprocessor(
        pair["near"].preprocessor, student.preprocessor, K
    )
    with pytest.raises(ValueError, match="a dict of their preprocessors"):
        kd.BetaKDDistiller(pair, student, of_energies(), preprocessor=preprocessor)
