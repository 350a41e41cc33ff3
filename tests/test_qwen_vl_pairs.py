"""Pairs of Qwen's models with vision: other widths, other limits of their images."""

import keras
import numpy as np
import pytest
from keras import ops
from marks import kept
from test_families import model_of, records
from tiny_families import tiny_qwen_vl
from tiny_models import random_image

from keras_betakd import (
    AttentionEnergy,
    BetaKDDistiller,
    DistillationPreprocessor,
    FeatureCosineEnergy,
    FeatureMSEEnergy,
    FeatureRelationEnergy,
    ForwardKLEnergy,
    ImageAttentionEnergy,
    ImageTokenEnergy,
    InstanceBeta,
    TaskBeta,
    TrainingBackup,
    cache_teacher,
    layout_map,
)
from keras_betakd.evaluation import generate_answers
from keras_betakd.models import load_model, save_preset

K = 8
NAMES = ["Qwen2_5VL", "Qwen3VL"]
EVERY = pytest.mark.parametrize("name", NAMES)


def pair_of(name, energies=None, beta=None, **kwargs):
    """The teacher is wider and reads images of four times as many tokens."""
    teacher = model_of(name, 1, width=16, max_pixels=1024)
    student = model_of(name, 0)
    preprocessor = DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, K
    )
    distiller = BetaKDDistiller(
        teacher,
        student,
        energies or ForwardKLEnergy(),
        beta or InstanceBeta(),
        preprocessor=preprocessor,
        **kwargs,
    )
    distiller.compile(optimizer=keras.optimizers.Adam(0.003))
    return distiller


def all_energies():
    return [
        ForwardKLEnergy(),
        FeatureMSEEnergy(),
        FeatureCosineEnergy(top_tokens=2),
        FeatureCosineEnergy(align="pool", name="pooled"),
        FeatureRelationEnergy(),
        ImageTokenEnergy(ForwardKLEnergy()),
        AttentionEnergy(),
        ImageAttentionEnergy([(0, 1)], [-1]),
    ]


def mixed(images=(2, 1, 0, 1)):
    """Records with images of several sizes, and none."""
    rows = records("Qwen2_5VL", images)
    sizes = iter([(30, 20), (16, 40), (9, 33), (24, 24)])
    rows["images"] = [
        [random_image(i, *next(sizes)) for i, _ in enumerate(found)]
        for found in rows["images"]
    ]
    return rows


def evaluated_alone(distiller, rows, number):
    """The metrics of one record, in a batch of its own."""
    row = {key: values[number : number + 1] for key, values in rows.items()}
    return distiller.evaluate(row, batch_size=1, verbose=0, return_dict=True)


@EVERY
def test_a_mixed_batch_gives_each_record_what_it_has_alone(name):
    """Images of a batch are padded to the largest, for each model to its own."""
    distiller = pair_of(name, all_energies(), fused=False)
    rows = mixed()
    together = distiller.evaluate(rows, batch_size=4, verbose=0, return_dict=True)
    alone = [evaluated_alone(distiller, rows, i) for i in range(4)]
    with_images = [i for i in range(4) if rows["images"][i]]
    for energy in distiller.energies.values():
        some = range(4) if energy.name == "forward_kl" else with_images
        mean = np.mean([alone[i][energy.name] for i in some])
        np.testing.assert_allclose(together[energy.name], mean, rtol=2e-4)
        assert together[energy.name] > 1e-6


@EVERY
def test_it_learns_from_all_energies_at_once(name):
    distiller = pair_of(name, all_energies())
    history = distiller.fit(mixed(), batch_size=2, epochs=6, verbose=0).history
    for energy in ("forward_kl", "feature_mse", "image_token_forward_kl"):
        assert history[energy][-1] < history[energy][0]
    assert np.isfinite(history["loss"]).all()


@EVERY
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(name, tmp_path):
    rows = mixed()
    whole = pair_of(name)
    expected = whole.fit(rows, batch_size=2, epochs=4, verbose=0).history["loss"]
    first = pair_of(name)
    backup = TrainingBackup(tmp_path / "backup")
    losses = first.fit(rows, batch_size=2, epochs=2, verbose=0, callbacks=[backup])
    second = pair_of(name)
    backup = TrainingBackup(tmp_path / "backup")
    options = {"epochs": 4, "initial_epoch": backup.restore(second)}
    rest = second.fit(rows, batch_size=2, verbose=0, callbacks=[backup], **options)
    found = losses.history["loss"] + rest.history["loss"]
    np.testing.assert_allclose(found[-4:], expected, rtol=1e-6)


@EVERY
def test_a_cached_teacher_gives_the_same_losses(name, tmp_path):
    rows = mixed()
    live = pair_of(name, beta=TaskBeta())
    cached_teacher = cache_teacher(live, rows, tmp_path / "cache", batch_size=3)
    student = model_of(name, 0)
    preprocessor = DistillationPreprocessor(
        cached_teacher.preprocessor, student.preprocessor, K
    )
    energy = ForwardKLEnergy()
    cached = BetaKDDistiller(
        cached_teacher, student, energy, TaskBeta(), preprocessor=preprocessor
    )
    cached.compile(optimizer=keras.optimizers.Adam(0.003))
    options = {"batch_size": 2, "epochs": 2, "verbose": 0, "shuffle": False}
    ours, theirs = (d.fit(rows, **options).history for d in (cached, live))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)


def test_features_of_images_of_any_size_are_not_cached(tmp_path):
    distiller = pair_of("Qwen2_5VL", [ForwardKLEnergy(), FeatureMSEEnergy()])
    with pytest.raises(ValueError, match="tokens by their size.*image_features"):
        cache_teacher(distiller, mixed(), tmp_path / "cache")


def test_logits_of_different_widths_are_compared_by_vocabulary_size():
    """Qwen2.5-VL has 151,936 rows in the 3B model and 152,064 in the 7B model."""
    student = tiny_qwen_vl("qwen2_5_vl")
    size = student.backbone.vocabulary_size
    config = {**student.backbone.get_config(), "vocabulary_size": size + 12}
    backbone = type(student.backbone).from_config({**config, "name": "wider"})
    teacher = type(student)(backbone, student.preprocessor)
    with pytest.raises(ValueError, match="`vocabulary_size`, the number of classes"):
        BetaKDDistiller(teacher, student, ForwardKLEnergy(), TaskBeta())
    distiller = BetaKDDistiller(
        teacher, student, ForwardKLEnergy(), TaskBeta(), vocabulary_size=size
    )
    distiller.compile(optimizer="adam")
    history = distiller.fit(mixed(), batch_size=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_keras_own_fit_reads_records():
    model = model_of("Qwen3VL")
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    rows = {
        "prompts": ["<image>what color"] * 4,
        "responses": ["red", "green", "red", "yes"],
        "images": np.stack([random_image(i, 16, 24) for i in range(4)]),
    }
    history = model.fit(rows, batch_size=2, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_half_precision_stays_near_single_precision(dtype):
    whole = model_of("Qwen2_5VL")
    half = tiny_qwen_vl("qwen2_5_vl", dtype=dtype)
    half.backbone.set_weights(whole.backbone.get_weights())
    rows = mixed()
    x, _, _ = whole.preprocessor(rows)
    kept = x["padding_mask"].astype(bool)
    found, expected = (
        ops.convert_to_numpy(ops.cast(m(x), "float32")) for m in (half, whole)
    )
    assert np.abs(found - expected)[kept].mean() < 0.02 * expected[kept].std()


def test_large_weights_are_spread_by_the_layout_map():
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])
    layouts = layout_map(mesh)
    backbone = tiny_qwen_vl("qwen3_vl").backbone
    spread = {w.path for w in backbone.weights if layouts[w.path] is not None}
    block = "transformer_layer_0/"
    expected = {
        "token_embedding/embeddings",
        "token_embedding/reverse_embeddings",
        *(f"{block}self_attention/{n}/kernel" for n in ("query", "attention_output")),
        *(
            f"{block}feedforward_{n}_dense/kernel"
            for n in ("gate", "intermediate", "output")
        ),
    }
    assert {p for p in spread if "layer_1" not in p} == expected


def test_a_qwen2_vl_learns_from_a_qwen2_5_vl(tmp_path):
    keras.utils.set_random_seed(0)
    teacher = tiny_qwen_vl("qwen2_5_vl", width=16, max_pixels=1024)
    student = tiny_qwen_vl("qwen2_vl")
    distiller = BetaKDDistiller(teacher, student, ForwardKLEnergy(), InstanceBeta())
    distiller.compile(optimizer=keras.optimizers.Adam(0.01))
    history = distiller.fit(mixed(), batch_size=2, epochs=4, verbose=0).history
    assert history["objective"][-1] < history["objective"][0]
    save_preset(student, tmp_path / "student")
    loaded = load_model(str(tmp_path / "student"))
    rows = {key: mixed()[key] for key in ("prompts", "images", "ids")}
    options = {"max_new_tokens": 4, "progress": False}
    answers = [generate_answers(m, rows, **options) for m in (student, loaded)]
    assert answers[0] == answers[1]


@pytest.mark.backends
@pytest.mark.parametrize("several", kept([6, 0], 6))
@pytest.mark.one_of_two("tensorflow")
def test_batches_after_the_first_have_images_of_other_sizes(several):
    """On TensorFlow, a third batch of another shape once ended the training.

    So did a second one with one image fewer than the first.
    """
    rows = records("Qwen2_5VL", (1,) * 8)
    sizes = [(16, 16)] * 4 + [(30, 30), (8, 8), (16, 40), (24, 40)]
    rows["images"] = [[random_image(i, *size)] for i, size in enumerate(sizes)]
    rows["images"][several].append(random_image(9, 16, 16))
    rows["prompts"][several] = "<image>" + rows["prompts"][several]
    distiller = pair_of("Qwen2_5VL", beta=TaskBeta())
    options = {"batch_size": 2, "verbose": 0}
    history = distiller.fit(
        rows, epochs=2, shuffle=False, validation_data=rows, **options
    ).history
    assert np.isfinite(history["val_loss"]).all()
    distiller.evaluate(rows, **options)
    assert len(distiller.predict(rows, **options)) == 8
