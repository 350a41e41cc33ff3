"""Soft weights of image tokens: whose logits at the image count, and how much."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from marks import kept
from test_features import numbers, pair, whole_and_resumed
from test_qwen_vl_pairs import evaluated_alone, mixed, pair_of
from tiny_families import tiny_mobilevlm
from tiny_models import tiny_gemma3, vqa_records

import keras_betakd as kd
from keras_betakd.distillation.token_weights import (
    self_dissimilarity,
    spread,
    token_weights,
)
from keras_betakd.models import Features
from keras_betakd.models.hooks import recorded


def image_energy(weights, **options):
    options = {"weights": weights, "name": "image", **options}
    return kd.ImageTokenEnergy(kd.ForwardKLEnergy(), **options)


def flat_shares(weights, teacher, kept):
    student, mask = Features(), ops.convert_to_tensor(kept)
    shares = token_weights(image_energy(weights), teacher, student, mask)
    return ops.reshape(shares, (kept.shape[0], -1))


def without_image(records, *rows):
    records = {key: list(values) for key, values in records.items()}
    for row in rows:
        records["images"][row] = None
        records["prompts"][row] = records["prompts"][row].replace("<image>", "")
    return records


@pytest.mark.backends
def test_golden_numbers_of_instruction_aware_weights():
    attention = np.array(
        [
            [[0.10, 0.30, 0.05], [0.20, 0.40, 0.15]],
            [[0.30, 0.10, 0.05], [0.00, 0.20, 0.25]],
        ]
    )
    saliency = ops.convert_to_tensor(attention.mean((0, 1))[None, None], "float32")
    features = Features.of({"prompt_saliency": saliency})
    shares = flat_shares("saliency", features, np.ones((1, 1, 3), bool))
    omega = spread(ops.ones((1, 1)), shares)
    np.testing.assert_allclose(
        ops.convert_to_numpy(omega)[0],
        [0.285714285714, 0.476190476190, 0.238095238095],
        rtol=1e-6,
    )
    teacher = ops.array([[[2.0, 0, 0], [0, 1.0, 0], [0, 0, 3.0]]])
    student = ops.array([[[1.0, 0, 0], [0, 0.0, 0], [0, 1.0, 1.0]]])
    values = image_energy("saliency").call(teacher, student)
    np.testing.assert_allclose(
        float(ops.sum(values * omega)), 0.215693202564, rtol=1e-6
    )
    even = spread(ops.ones((1, 1)), ops.ones((1, 3), dtype="bool"))
    np.testing.assert_allclose(float(ops.sum(values * even)), 0.254283264431, rtol=1e-6)


def test_shares_of_padding_and_of_missing_images_are_zero():
    """Whatever stands there: the teacher's features of padding are of no image."""
    kept = np.array([[[1, 1], [1, 0]], [[1, 1], [0, 0]]], bool)
    values = ops.array([[[1.0, 3], [4, np.nan]], [[0, 0], [np.inf, 7]]])
    features = Features.of({"prompt_saliency": values})
    shares = ops.convert_to_numpy(flat_shares("saliency", features, kept))
    # The second example's are 0 where they count: it shares evenly.
    np.testing.assert_array_equal(shares, [[0.25, 0.75, 1, 0], [1, 1, 0, 0]])
    weights = ops.convert_to_numpy(spread(ops.array([[0.5], [0.5]]), shares))
    np.testing.assert_allclose(weights.sum(1), 0.5, rtol=1e-6)


def test_tiny_shares_do_not_vanish():
    features = Features.of({"prompt_saliency": ops.array([[[1e-38, 3e-38]]])})
    kept = np.ones((1, 1, 2), bool)
    weights = spread(ops.ones((1, 1)), flat_shares("saliency", features, kept))
    np.testing.assert_allclose(ops.convert_to_numpy(weights)[0], [0.25, 0.75])


def test_self_dissimilarity_against_float64():
    tokens = np.random.default_rng(0).normal(size=(2, 1, 6, 5))
    grids = np.array([[[2, 2]], [[3, 2]]])
    found = self_dissimilarity(
        Features(
            image_features=ops.convert_to_tensor(tokens, "float32"),
            grids=ops.convert_to_tensor(grids, "int32"),
        )
    )
    for row, count in enumerate((4, 6)):
        x = tokens[row, 0, :count]
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        expected = 1 - (x @ x.T).mean(1)
        np.testing.assert_allclose(
            ops.convert_to_numpy(found)[row, 0, :count], expected, rtol=1e-5
        )


@pytest.mark.backends
@pytest.mark.parametrize("fused", kept([True, False], True))
def test_saliency_is_the_attention_of_the_prompts_text(fused):
    """The mean of a batch against each token's energy, weighted in float64."""
    energies = {"image": image_energy("saliency", saliency_layer=1)}
    distiller = pair(energies, tiny_gemma3(16, num_layers=2), fused=fused)
    query = distiller.teacher_parts[0].view.attention_layers()[-1].query_norm.scale
    query.assign(20.0 + query)  # attention of new models is nearly even
    inputs, _, _ = distiller.preprocessor(vqa_records(3))
    logs = numbers(distiller.test_on_batch(vqa_records(3), return_dict=True))
    states = {}
    views = {
        "teacher": distiller.teacher_parts[0].view,
        "student": distiller.student_view,
    }
    for role, view in views.items():
        x = {**inputs["student"], **inputs[role]}
        softmax = view.attention_layers()[-1].softmax
        with recorded(softmax) as calls:
            hidden = ops.convert_to_numpy(getattr(distiller, role).backbone(x))
        where = x["vision_indices"].astype(int)
        rows = np.take_along_axis(hidden, where[..., None], axis=1)
        head = getattr(distiller, role).backbone.token_embedding
        logits = head(ops.convert_to_tensor(rows, "float32"), reverse=True)
        states[role] = ops.convert_to_numpy(logits).astype("float64")
        if role == "teacher":
            # (B, kv heads, groups, T, T)
            attention = ops.convert_to_numpy(calls[0][0][2]).mean(axis=(1, 2))
            place = np.arange(attention.shape[1])
            prompt = x["padding_mask"] & ~x["vision_mask"].astype(bool)
            prompt = prompt & (place <= inputs["teacher_positions"][:, :1])
            assert (prompt.sum(1) < x["padding_mask"].sum(1)).all()
            looked = np.einsum("bts,bt->bs", attention, prompt.astype("float64"))
            omega = np.take_along_axis(looked, where, axis=1)
    log_p, log_q = (
        states[role] - np.log(np.exp(states[role]).sum(-1, keepdims=True))
        for role in ("teacher", "student")
    )
    kl = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
    omega = omega / omega.sum(1, keepdims=True)
    np.testing.assert_allclose(logs["image"], (omega * kl).sum(1).mean(), rtol=2e-5)
    assert abs(logs["image"] - kl.mean()) > 5e-4 * kl.mean()


def test_even_weights_are_uniform_to_the_bit():
    def of_batch(weights):
        distiller = pair({"image": image_energy(weights)}, tiny_gemma3(16))
        records = without_image(vqa_records(3), 1)
        return numbers(distiller.train_on_batch(records, return_dict=True))

    even = of_batch(lambda teacher: 0.3 * ops.ones_like(teacher.image_features[..., 0]))
    assert even == of_batch("uniform")


@pytest.mark.parametrize("weights", ["saliency", "self_dissimilarity"])
def test_grids_of_several_sizes(weights):
    """A record in a padded batch has what it has alone, on its student's own grid."""
    energies = {"image": image_energy(weights)}
    distiller = pair_of("Qwen2_5VL", energies, kd.TaskBeta())
    rows = mixed()
    together = distiller.evaluate(rows, batch_size=4, verbose=0, return_dict=True)
    alone = [evaluated_alone(distiller, rows, i)["image"] for i in (0, 1, 3)]
    np.testing.assert_allclose(together["image"], np.mean(alone), rtol=2e-4)


def test_it_trains_is_saved_and_goes_on(tmp_path):
    def make():
        keras.utils.set_random_seed(0)
        energies = {"answer": kd.ForwardKLEnergy(), "image": image_energy("saliency")}
        # In a graph, whose sizes are known in part only.
        beta = kd.InstanceBeta(row_weights=lambda teacher, log_beta: ops.exp(-log_beta))
        return pair(energies, tiny_gemma3(16, grid=4), beta=beta)

    whole, rest = whole_and_resumed(make, tmp_path / "half.weights.h5")
    assert whole["image"][-1] < whole["image"][0]
    for name in ("image", "image_beta", "loss"):
        np.testing.assert_allclose(rest[name], whole[name][2:], rtol=1e-5)


def test_a_cached_teacher_has_the_same_weights(tmp_path):
    records = {**vqa_records(4), "ids": list("abcd")}
    energies = {
        "saliency": image_energy("saliency"),
        "last": image_energy("saliency", saliency_layer=-1),
        "dissimilarity": image_energy("self_dissimilarity"),
        "attention": kd.AttentionEnergy(teacher_layers=[0, 1]),
    }
    live = pair(energies, tiny_gemma3(16, grid=4, num_layers=2), fused=True)
    kd.cache_teacher(live, records, tmp_path, batch_size=2)
    expected = numbers(live.test_on_batch(records, return_dict=True))
    cached = kd.BetaKDDistiller(
        kd.CachedTeacher(tmp_path),
        live.student,
        energies=energies,
        beta=kd.TaskBeta(),
    )
    cached.compile(optimizer="sgd")
    found = numbers(cached.test_on_batch(records, return_dict=True))
    for name in energies:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_a_cache_made_for_other_energies_is_refused(tmp_path):
    records = {**vqa_records(4), "ids": list("abcd")}
    live = pair({"image": image_energy("uniform")}, tiny_gemma3(16, grid=4))
    kd.cache_teacher(live, records, tmp_path, batch_size=2)
    with pytest.raises(ValueError, match="cache holds no prompt_saliency"):
        kd.BetaKDDistiller(
            kd.CachedTeacher(tmp_path), live.student, image_energy("saliency")
        )


def test_attention_that_cannot_be_read_is_refused_at_once():
    with pytest.raises(ValueError, match="attention of MobileVLM.* cannot be read"):
        kd.BetaKDDistiller(tiny_mobilevlm(), tiny_mobilevlm(), image_energy("saliency"))


@pytest.mark.parametrize("weights", ["attention", None, 3])
def test_unknown_weights_are_refused(weights):
    with pytest.raises(ValueError, match="`weights` must be one of"):
        image_energy(weights)


def test_weights_of_another_shape_are_refused():
    energy = image_energy(lambda teacher: teacher.image_features[..., 0, 0])
    distiller = pair({"image": energy}, tiny_gemma3(16))
    with pytest.raises(ValueError, match="must be .B, P, T."):
        distiller.test_on_batch(vqa_records(3))


@keras.saving.register_keras_serializable("tests")
def first_token(teacher):
    tokens = teacher.image_features[..., 0]
    return ops.concatenate([ops.ones_like(tokens[..., :1]), 0 * tokens[..., 1:]], -1)


@pytest.mark.parametrize("weights", ["self_dissimilarity", first_token])
def test_configuration_survives(weights):
    saved = keras.saving.serialize_keras_object(image_energy(weights))
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(saved)))
    assert again.token_weights == weights
    assert again.get_config() == image_energy(weights).get_config()
