"""Every family of keras-hub as teacher and student; docs/models.md has their table."""

import functools
import pathlib

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from tiny_families import (
    FAMILIES,
    FEATURES,
    LORA_LAYERS,
    QUANTIZED,
    SEVERAL_IMAGES,
    SUPPORT,
    VISION,
    support_table,
)
from tiny_models import IMAGE_SIZE, random_image

from keras_betakd import (
    AttentionEnergy,
    BetaKDDistiller,
    DistillationPreprocessor,
    FeatureMSEEnergy,
    ForwardKLEnergy,
    InstanceBeta,
)
from keras_betakd.distillation.token_grids import token_mask
from keras_betakd.evaluation import generate_answers
from keras_betakd.models import view_of
from keras_betakd.models.features import FeatureReader
from keras_betakd.preprocessing.image_formats import format_of
from keras_betakd.preprocessing.model_inputs import model_inputs

K = 8
SHAPES = [(IMAGE_SIZE, IMAGE_SIZE), (8, 32), (40, 12)]
# Those with a view of their own, and of the other families, which share one, two: a
# head that is the embedding, and one that is not. Without those that take longest to
# compile, and those whose logits other files compare with the published ones.
OWN_VIEWS = ["Gemma3", "PaliGemma", "BLIP2_OPT", "GPT2"]
# One in which a batch's images can be mixed up in more than one way; other files have
# Qwen-VL's.
MIXED = ["Gemma3"]
# A step compiles for long; what differs by family is in the rows, compared for all.
STEPPED = ["Gemma3"]


def on_backends(names, marked):
    """Families as parameters; those whose views differ by backend are marked."""
    marks = {name: pytest.mark.backends for name in marked}
    return [pytest.param(n, marks=marks.get(n, ())) for n in names]


def records(name, images=(1, 1)):
    """One record for each number of images."""
    rows = {"ids": [], "prompts": [], "responses": [], "images": []}
    for i, count in enumerate(images):
        count = count if name in VISION else 0
        rows["ids"].append(f"q{i}")
        rows["prompts"].append("<image>\n" * count + "what color" + " red" * i)
        rows["responses"].append(["red", "yes"][i % 2])
        seeds = [(10 * i + j, *SHAPES[(i + j) % 3]) for j in range(count)]
        rows["images"].append([random_image(*seed) for seed in seeds])
    return rows


def model_of(name, seed=0, **kwargs):
    """A model whose logits depend on all of its inputs."""
    keras.utils.set_random_seed(seed)
    model = FAMILIES[name](**kwargs)
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.trainable and "norm" not in weight.path:
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


@functools.cache
def trained(name):
    """A distiller after one step, its batch, and all weights before the step."""
    teacher, student = model_of(name, 1, width=16), model_of(name, 0)
    distiller = BetaKDDistiller(
        teacher,
        student,
        ForwardKLEnergy(),
        InstanceBeta(),
        preprocessor=DistillationPreprocessor(
            teacher.preprocessor, student.preprocessor, K
        ),
    )
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    before = snapshot(student), snapshot(teacher)
    distiller.fit(records(name), batch_size=2, epochs=1, verbose=0)
    return distiller, *before


def snapshot(model):
    return [ops.convert_to_numpy(w) for w in model.weights]


def moved_since(before, model):
    """Changed variables, compared by identity: two layers may share a path."""
    pairs = zip(before, model.weights, strict=True)
    return {id(w): w.path for old, w in pairs if (old != ops.convert_to_numpy(w)).any()}


class Whole(keras.Model):
    """A compiled model, without the preprocessing of keras-hub's `predict`."""

    def __init__(self, model):
        super().__init__()
        self.network = model

    def call(self, inputs):
        return self.network(inputs)


class RowLogits(keras.Model):
    """The view's logits at the answer rows, compiled."""

    def __init__(self, view):
        super().__init__()
        self.network, self._view = view.model, view

    def call(self, inputs):
        hidden = self._view.hidden_states(inputs["x"])
        where = self._view.row_positions(inputs["positions"])
        rows = ops.take_along_axis(hidden, ops.expand_dims(where, -1), axis=1)
        return self._view.head(rows)


def logits_at_rows(model, rows, compiled=None, shaped=None):
    """The logits of the answer rows, (B, K, V), their weights, and the inputs."""
    preprocessor = model.preprocessor
    x, _, weight = DistillationPreprocessor(preprocessor, preprocessor, K)(rows)
    inputs = {"x": x["student"], "positions": x["student_positions"]}
    if shaped is not None:
        inputs["x"] = with_places_of(inputs["x"], shaped["x"])
    compiled = compiled or RowLogits(view_of(model))
    return compiled.predict_on_batch(inputs), weight, inputs


def only(rows, i):
    """Record i as a batch of the same size, so that nothing is compiled again."""
    return {key: [value[i]] * len(value) for key, value in rows.items()}


def with_places_of(x, other):
    """Inputs of Qwen3.5, with empty places for as many images and patches as `other`.

    It pads images by the batch; each other shape would be compiled anew.
    """
    places = [v["pixel_values"].shape[1:3] for v in (x, other)]
    room = [(0, 0), *((0, more - n) for n, more in zip(*places, strict=True))]
    pixels, grids, sources = (
        x[k] for k in ("pixel_values", "image_grid_thw", "image_sources")
    )
    tokens, more = (patches // 4 for _, patches in places)  # merged 2 x 2
    return {
        **x,
        "pixel_values": np.pad(pixels, [*room, *[(0, 0)] * (pixels.ndim - 3)]),
        "image_grid_thw": np.pad(grids, [*room[:2], (0, 0)]),
        "image_sources": np.where(
            sources < 0, -1, sources // tokens * more + sources % tokens
        ),
    }


def own_logits(model, name, x):
    """The model's own logits, computed so that no record affects another."""
    if name == "Gemma3n":
        return own_gemma3n_logits(model, x)
    if name == "Qwen3_5":
        return own_qwen_logits(model, x)
    return Whole(model).predict_on_batch(x)


def own_gemma3n_logits(model, x):
    # One by one: it takes the padding of one record for the next one's image. And not
    # by `model(x)`, whose head keeps the embeddings that the model was made with (a
    # matrix product outside of any layer) on JAX and TensorFlow.
    rows = [{k: v[i : i + 1] for k, v in x.items()} for i in range(2)]
    backbone = Whole(model.backbone)
    hidden = np.concatenate([backbone.predict_on_batch(row) for row in rows])
    logits = model.backbone.language_model.token_embedding(hidden, reverse=True)
    return ops.convert_to_numpy(logits)


def own_qwen_logits(model, x):
    # Its functional model leaves out the rotary positions of images; `score` has
    # them, for images one after another without padding.
    grids = x["image_grid_thw"]
    grids = grids[grids.any(-1)]
    images = x["pixel_values"][x["image_grid_thw"].any(-1)]
    patches = [p[: np.prod(grid)] for p, grid in zip(images, grids, strict=True)]
    places = np.flatnonzero(x["image_sources"].ravel() >= 0)
    inputs = {
        "token_ids": x["token_ids"],
        "padding_mask": x["padding_mask"],
        "pixel_values": np.concatenate(patches),
        "image_grid_thw": grids,
        "vision_indices": places.astype("int32"),
        "position_ids": x["position_ids"],
    }
    return ops.convert_to_numpy(model.score(inputs))


@pytest.mark.parametrize("name", on_backends(FAMILIES, OWN_VIEWS))
def test_rows_equal_the_models_own_logits(name):
    model = model_of(name)
    rows = records(name, (1, 2)) if name == "Qwen3_5" else records(name)
    if name == "Gemma4":  # pools by the width of the widest image of a batch
        rows["images"] = [[random_image(0)], [random_image(1)]]
    got, weight, inputs = logits_at_rows(model, rows)
    whole = own_logits(model, name, inputs["x"])
    expected = np.take_along_axis(whole, inputs["positions"][..., None], axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert weight.sum(axis=1).min() >= 2  # an answer and its end mark


def test_qwen_positions_are_those_of_its_own_preprocessor():
    """With one image at a time; keras-hub counts those of a batch from the first.

    The images are of sizes at which both round alike. Its patches stand in rows, ours
    in blocks of an image token (`test_qwen3_5.py`).
    """
    preprocessor = model_of("Qwen3_5").preprocessor
    for i, shape in enumerate([(16, 16), (8, 32), (24, 8)]):
        rows = {"prompts": ["see <image> what"], "images": [[random_image(i, *shape)]]}
        inputs = model_inputs(preprocessor, rows)
        own = preprocessor.generate_preprocess(
            {"prompts": inputs["prompts"], "images": np.stack(inputs["images"][0])}
        )
        ours = format_of(preprocessor).prompts_alone(inputs, 160)
        own = {k: ops.convert_to_numpy(v) for k, v in own.items()}
        for key in ("token_ids", "padding_mask", "position_ids"):
            np.testing.assert_array_equal(ours[key], own[key], err_msg=key)
        grid, patches = own["image_grid_thw"][0], own["pixel_values"]
        patches = patches.reshape(grid[1] // 2, 2, grid[2] // 2, 2, *patches.shape[1:])
        patches = patches.swapaxes(1, 2).reshape(own["pixel_values"].shape)
        np.testing.assert_array_equal(ours["image_grid_thw"][0, 0], grid)
        np.testing.assert_allclose(
            ours["pixel_values"][0, 0, : len(patches)], patches, atol=1e-5
        )
        where = np.flatnonzero(ours["image_sources"][0] >= 0)
        np.testing.assert_array_equal(where, own["vision_indices"])


SECOND_GENERATION = {
    "final_logit_soft_cap": 2.0,
    "attention_logit_soft_cap": 2.0,
    "use_sliding_window_attention": True,
    "sliding_window_size": 16,
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
}
VARIANTS = {
    "PaliGemma 2": ("PaliGemma", SECOND_GENERATION),
    "Gemma 2": ("Gemma", SECOND_GENERATION),
    "Gemma 3n without images": ("Gemma3n", {"vision": False}),
    "linear attention": (
        "Qwen3_5",
        {"layer_types": ("linear_attention",), "vision": False},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_variants(variant):
    name, kwargs = VARIANTS[variant]
    model = model_of(name, **kwargs)
    family = name if kwargs.get("vision", True) else "text"
    got, _, inputs = logits_at_rows(model, records(family))
    if name == "Gemma3n":
        whole = own_gemma3n_logits(model, inputs["x"])
    else:
        whole = Whole(model).predict_on_batch(inputs["x"])
    expected = np.take_along_axis(whole, inputs["positions"][..., None], axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_and_its_end_alone_are_weighted(name):
    """The preprocessors of BLIP-2 and of text families weigh the question as well."""
    preprocessor = model_of(name).preprocessor
    rows = records(name)
    _, y, weight = DistillationPreprocessor(preprocessor, preprocessor, K)(rows)
    for i, response in enumerate(rows["responses"]):
        *answer, end = y[i][weight[i] > 0].tolist()
        assert str(preprocessor.tokenizer.detokenize(answer)).strip() == response
        assert end == preprocessor.tokenizer.end_token_id


@pytest.mark.parametrize("name", VISION)
def test_a_sequence_too_short_is_refused_by_name(name):
    """keras-hub's packers cut silently; image tokens are lost where they come last."""
    preprocessor = model_of(name).preprocessor
    limits = {"sequence_length": 3}
    if name == "BLIP2_FlanT5":
        limits = {"encoder_sequence_length": 3, "decoder_sequence_length": 1}
    rows = records(name)
    if name in SEVERAL_IMAGES:
        rows["prompts"] = [f"{p[8:]} <image>" for p in rows["prompts"]]
    for length, limit in limits.items():
        before = getattr(preprocessor, length)
        setattr(preprocessor, length, limit)
        message = f"Record 'q0' needs a {length} of .* {limit}:"
        with pytest.raises(ValueError, match=message):
            DistillationPreprocessor(preprocessor, preprocessor, K)(rows)
        setattr(preprocessor, length, before)


@pytest.mark.traced
@pytest.mark.parametrize("name", on_backends(SUPPORT["trains"], STEPPED))
def test_a_step_moves_the_student_and_beta_alone(name):
    distiller, before, before_teacher = trained(name)
    assert not moved_since(before_teacher, distiller.teacher)
    moved = moved_since(before, distiller.student)
    view = distiller.student_view
    tower = {id(w) for layer in view.vision_tower() for w in layer.weights}
    assert bool(tower) == (name in VISION)
    assert not moved.keys() & tower
    assert view.head.matrix() is not None  # the fused head takes it
    projector = {id(w) for layer in view.projector() for w in layer.trainable_weights}
    assert bool(projector) == (name in VISION)
    assert not projector or moved.keys() & projector
    assert len(moved) > 0.8 * len(distiller.student.trainable_weights)
    assert np.isfinite(distiller.history.history["loss"][0])


@pytest.mark.parametrize("name", SUPPORT["generates"])
def test_answers_do_not_depend_on_the_batch(name):
    model = model_of(name)
    model.compile(sampler="greedy")
    several = (1, 2, 0) if name in SEVERAL_IMAGES else (1, 1, 1)
    rows = records(name, several)
    options = {"max_new_tokens": 3, "progress": False}
    together = generate_answers(model, rows, **options)
    assert list(together) == rows["ids"]
    for i, answer in list(enumerate(together.values()))[:2]:
        copies = {**only(rows, i), "ids": ["a", "b", "c"]}
        alone = generate_answers(model, copies, **options)
        assert list(alone.values()) == [answer] * 3


@pytest.mark.parametrize("name", on_backends(SUPPORT["0 to N images"], MIXED))
def test_mixed_batches_give_each_record_what_it_has_alone(name):
    model = model_of(name)
    compiled = RowLogits(view_of(model))
    rows = records(name, (1, 0, 2))
    together, weight, inputs = logits_at_rows(model, rows, compiled)
    shaped = inputs if name == "Qwen3_5" else None
    for i, used in enumerate(weight > 0):
        alone, *_ = logits_at_rows(model, only(rows, i), compiled, shaped)
        np.testing.assert_allclose(
            together[i][used], alone[0][used], rtol=1e-4, atol=1e-5, err_msg=str(i)
        )


@pytest.mark.parametrize("name", VISION)
def test_the_image_changes_the_logits(name):
    """No other test would notice that the images are not used."""
    model = model_of(name)
    rows = records(name)
    rows["prompts"] = rows["prompts"][:1] * 2
    rows["responses"] = rows["responses"][:1] * 2
    rows["images"] = [[random_image(0)], [random_image(99)]]
    (first, second), weight, _ = logits_at_rows(model, rows)
    assert np.abs(first - second)[weight[0] > 0].max() > 1e-3


@pytest.mark.parametrize("name", SUPPORT["saved, as preset"])
def test_saved_loaded_and_written_as_a_preset(name, tmp_path):
    distiller, *_ = trained(name)
    student = distiller.student
    distiller.save_weights(tmp_path / "last.weights.h5")
    other = BetaKDDistiller(
        distiller.teacher, model_of(name, 7), ForwardKLEnergy(), InstanceBeta()
    )
    other.load_weights(tmp_path / "last.weights.h5")
    assert not moved_since(snapshot(student), other.student)
    student.save_to_preset(tmp_path / "preset")
    task = type(student).from_preset(str(tmp_path / "preset"))
    assert isinstance(task, keras_hub.models.Task)
    assert not moved_since(snapshot(student), task)
    # The preprocessor came along: what it makes of records goes into the loaded model.
    if name == "Gemma4":  # its converter's sizes are not part of keras-hub's files
        pair = task.preprocessor, task.preprocessor
        with pytest.raises(ValueError, match="give the loaded preprocessor a new"):
            DistillationPreprocessor(*pair, K)(records(name))
        task.preprocessor.image_converter = student.preprocessor.image_converter
    if name == "BLIP2_FlanT5":  # nor are the lengths of this one
        for length in ("encoder_sequence_length", "decoder_sequence_length"):
            setattr(task.preprocessor, length, getattr(student.preprocessor, length))
    batches = []
    for model in (student, task):
        pair = model.preprocessor, model.preprocessor
        x, y, _ = DistillationPreprocessor(*pair, K)(records(name))
        batches.append([y, *x["student"].values()])
    for ours, theirs in zip(*batches, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", SUPPORT["LoRA"])
def test_lora_student_and_quantised_teacher(name):
    teacher, student = model_of(name, 1, width=16), model_of(name, 0)
    rows = records(name)
    exact, weight, *_ = logits_at_rows(teacher, rows)
    teacher.backbone.quantize("int8", filters=QUANTIZED.get(name))
    assert "int8" in {w.dtype for w in teacher.weights}
    rounded, *_ = logits_at_rows(teacher, rows)
    used = weight > 0
    error = np.linalg.norm(rounded[used] - exact[used]) / np.linalg.norm(exact[used])
    assert 0 < error < 0.2
    student.backbone.enable_lora(2, LORA_LAYERS.get(name))
    distiller = BetaKDDistiller(teacher, student, ForwardKLEnergy(), InstanceBeta())
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    before = snapshot(student)
    distiller.fit(rows, batch_size=2, verbose=0)
    moved = moved_since(before, student).values()
    assert any("lora" in path for path in moved)
    # Keras leaves the bias of a layer with LoRA weights to train.
    assert all("lora" in path or path.endswith("bias") for path in moved), moved


@pytest.mark.parametrize("name", VISION[2:])
def test_features_of_images(name):
    """The image tokens of a teacher of another width, or an error that says why not.

    `test_features.py` has PaliGemma and Gemma 3, and their attention.
    """
    teacher, student = model_of(name, 1, width=16), model_of(name, 0)
    energy = FeatureMSEEnergy("image_features")
    distiller = BetaKDDistiller(teacher, student, [ForwardKLEnergy(), energy])
    distiller.compile(optimizer=keras.optimizers.SGD(0.01))
    if name not in SUPPORT["image features"]:
        with pytest.raises(ValueError, match="no image tokens at known places"):
            distiller.fit(records(name), batch_size=2, verbose=0)
        return
    history = distiller.fit(records(name), batch_size=2, epochs=2, verbose=0).history
    assert history[energy.name][1] < history[energy.name][0]


@pytest.mark.parametrize("name", sorted({*SEVERAL_IMAGES} & {*FEATURES}))
def test_features_of_images_belong_to_their_record(name):
    model = model_of(name)
    view, preprocessor = view_of(model), model.preprocessor
    reader = FeatureReader(view, {"image_features"})

    def features(rows):
        pair = DistillationPreprocessor(preprocessor, preprocessor, K)
        x = pair(rows)[0]
        with reader.recording():
            hidden = view.hidden_states(x["student"])
        found = reader.features(x["student"], hidden, None)
        present = ops.convert_to_numpy(found.present)
        tokens = ops.convert_to_numpy(found.image_features)
        real = ops.convert_to_numpy(token_mask(found.grids, found.image_features))
        # Of images of any size, some tokens are padding.
        real = np.broadcast_to(real, tokens.shape[:3]) & present[..., None]
        return tokens, present, real

    rows = records(name, (0, 2, 1))
    together, present, real = features(rows)
    assert present.tolist() == [[False, False], [True, True], [True, False]]
    for i in (1, 2):
        alone, _, there = features({k: v[i : i + 1] for k, v in rows.items()})
        np.testing.assert_allclose(
            together[i][real[i]], alone[0][there[0]], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", sorted({*VISION} - {*SUPPORT["attention"]}))
def test_attention_that_cannot_be_read_is_refused(name):
    teacher, student = model_of(name, 1, width=16), model_of(name, 0)
    with pytest.raises(ValueError, match="attention of .* cannot be read"):
        BetaKDDistiller(teacher, student, AttentionEnergy())


def test_the_docs_show_what_these_tests_show():
    page = pathlib.Path(__file__).parent.parent / "docs" / "models.md"
    assert support_table() in page.read_text(encoding="utf-8")
