"""Inner layers of the two models, named and compared as features."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from marks import kept
from plain_models import no_task_loss
from test_features import numbers, pair
from tiny_models import tiny_gemma3, vqa_records

import keras_betakd as kd
from keras_betakd.models.inner_layers import find_layer


def convolutional(width, seed):
    """Images (8, 8, 1) to 3 logits; `middle` returns (4, 4, width)."""
    keras.utils.set_random_seed(seed)
    x = image = keras.Input((8, 8, 1))
    for name, size in (("first", 3), ("middle", width)):
        x = keras.layers.Conv2D(size, 3, padding="same", activation="relu", name=name)(
            x
        )
        if name == "first":
            x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(image, keras.layers.Dense(3)(x))


def layers_energy(
    cls=kd.FeatureMSEEnergy, teacher="middle", student="middle", **options
):
    return cls(teacher_layer=teacher, student_layer=student, name="inner", **options)


def plain_pair(energy, widths=(6, 4), **options):
    distiller = kd.BetaKDDistiller(
        convolutional(widths[0], 1),
        convolutional(widths[1], 2),
        energies={"answer": kd.ForwardKLEnergy(), "inner": energy},
        beta=kd.TaskBeta(),
        **options,
    )
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    return distiller


def images(count=4):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 8, 8, 1)).astype("float32")
    return x, rng.integers(0, 3, count)


def output_of(model, name, x):
    part = keras.Model(model.input, model.get_layer(name).output)
    return np.asarray(ops.convert_to_numpy(part(x)), "float64")


@pytest.mark.backends
@pytest.mark.parametrize("align", kept(["resize", "pool"], "resize"))
def test_layers_of_plain_models_against_separate_runs(align):
    """The mean over examples of the mean over positions, in float64."""
    distiller = plain_pair(layers_energy(align=align))
    x, y = images()
    weight = np.array([1.0, 0.0, 2.0, 1.0], "float32")
    logs = numbers(distiller.test_on_batch(x, y, weight, return_dict=True))
    theirs, ours = (
        output_of(model, "middle", x)
        for model in (distiller.teacher, distiller.student)
    )
    if align == "pool":
        theirs, ours = (a.mean((1, 2), keepdims=True) for a in (theirs, ours))
    kernel, bias = distiller.projections["inner"].get_weights()
    gap = ((theirs - (ours @ kernel + bias)) ** 2).mean((1, 2, 3))
    expected = (weight * gap).sum() / weight.sum()
    np.testing.assert_allclose(logs["inner"], expected, rtol=1e-4)


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.parametrize("align", kept(["resize", "pool"], "resize"))
def test_tokens_of_plain_models_have_the_weights_of_their_labels(align):
    """In a graph, too, where TensorFlow knows the sizes in part only."""

    def tagger(width, seed):
        keras.utils.set_random_seed(seed)
        tokens = keras.Input((3, 4))
        inner = keras.layers.Dense(width, name="middle")(tokens)
        return keras.Model(tokens, keras.layers.Dense(5)(inner))

    models = tagger(6, 1), tagger(6, 2)
    distiller = kd.BetaKDDistiller(*models, layers_energy(align=align), kd.TaskBeta())
    distiller.compile(optimizer="sgd")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3, 4)).astype("float32"), rng.integers(0, 5, (4, 3))
    weight = np.array([[1, 0, 0], [1, 2, 1], [0, 0, 0], [0, 1, 1]], "float32")
    logs = distiller.evaluate(x, y, 4, 0, weight, return_dict=True)
    theirs, ours = (output_of(model, "middle", x) for model in models)
    counted = (weight != 0)[..., None]
    shares = weight / np.maximum(counted.sum(1), 1)
    if align == "pool":
        count = np.maximum(counted.sum(1, keepdims=True), 1)
        theirs, ours = (
            (a * counted).sum(1, keepdims=True) / count for a in (theirs, ours)
        )
        shares = shares.sum(1, keepdims=True)
    values = ((theirs - ours) ** 2).mean(-1)
    expected = (shares * values).sum() / shares.sum()
    np.testing.assert_allclose(logs["inner"], expected, rtol=1e-5)


@pytest.mark.backends
def test_decoder_layers_of_a_causal_lm_at_the_answer():
    """At the rows that predict an answer token, as the last hidden states are."""
    energy = layers_energy(
        kd.FeatureCosineEnergy, "decoder_block_1", "backbone/decoder_block_0"
    )
    teacher, student = tiny_gemma3(16, num_layers=2), tiny_gemma3(num_layers=2)
    distiller = pair({"inner": energy}, teacher, student)
    inputs, _, weight = distiller.preprocessor(vqa_records(3))
    logs = numbers(distiller.test_on_batch(vqa_records(3), return_dict=True))
    rows = []
    for role, block in (("teacher", "decoder_block_1"), ("student", "decoder_block_0")):
        backbone = getattr(distiller, role).backbone
        part = keras.Model(backbone.input, backbone.get_layer(block).output)
        hidden = ops.convert_to_numpy(part({**inputs["student"], **inputs[role]}))
        places = inputs[f"{role}_positions"][..., None]
        rows.append(np.take_along_axis(hidden, places, axis=1).astype("float64"))
    kernel, bias = distiller.projections["inner"].get_weights()
    theirs, ours = rows[0], rows[1] @ kernel + bias
    lengths = np.linalg.norm(theirs, axis=-1) * np.linalg.norm(ours, axis=-1)
    distance = 1 - (theirs * ours).sum(-1) / lengths
    counted = weight != 0
    expected = ((distance * counted).sum(1) / counted.sum(1)).mean()
    np.testing.assert_allclose(logs["inner"], expected, rtol=1e-4)


@pytest.mark.traced
def test_it_trains_is_saved_and_goes_on(tmp_path):
    x, y = images(8)

    def fit(distiller, epochs, begin=0):
        return distiller.fit(
            x, y, epochs=epochs, initial_epoch=begin, shuffle=False, verbose=0
        ).history

    def make():
        keras.utils.set_random_seed(0)
        return plain_pair(layers_energy())

    first, whole = make(), fit(make(), 6)
    assert whole["inner"][-1] < whole["inner"][0]
    kernel = first.projections["inner"].get_weights()[0]
    fit(first, 3)
    assert (first.projections["inner"].get_weights()[0] != kernel).any()
    first.save(tmp_path / "half.keras")
    second = keras.saving.load_model(tmp_path / "half.keras")
    rest = fit(second, 6, begin=3)
    for name in ("inner", "inner_beta", "loss"):
        np.testing.assert_allclose(rest[name], whole[name][3:], rtol=1e-5)


@pytest.mark.backends
def test_the_gradient_goes_into_the_layers_below():
    models = convolutional(4, 1), convolutional(4, 2)
    distiller = kd.BetaKDDistiller(*models, layers_energy())
    distiller.compile(optimizer=keras.optimizers.SGD(0.1), loss=no_task_loss)
    assert distiller.projections == {}  # of the same width
    first, last = distiller.student.get_layer("first"), distiller.student.layers[-1]
    before = [layer.get_weights()[0] for layer in (first, last)]
    distiller.train_on_batch(*images())
    assert (first.get_weights()[0] != before[0]).any()
    np.testing.assert_array_equal(last.get_weights()[0], before[1])


def test_widths_that_only_a_batch_tells_are_asked_for():
    class Body(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.middle = keras.layers.Dense(width)
            self.last = keras.layers.Dense(3)

        def call(self, x):
            return self.last(self.middle(x))

    def make(**options):
        energy = layers_energy(**options)
        distiller = kd.BetaKDDistiller(Body(6), Body(4), energy)
        distiller.compile(optimizer="sgd")
        return distiller

    x, y = np.ones((2, 5), "float32"), np.zeros(2, int)
    with pytest.raises(ValueError, match="widths=.student, teacher."):
        make().train_on_batch(x, y)
    logs = make(widths=(4, 6)).train_on_batch(x, y, return_dict=True)
    assert float(logs["inner"]) > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"teacher_layer": "middle"}, "must both be names of layers"),
        ({"features": "layers"}, "must both be names of layers"),
        ({"teacher_layer": "a", "student_layer": 3}, "must both be names of layers"),
        (
            {"teacher_layer": "a", "student_layer": "b", "top_tokens": 2},
            "`top_tokens` must be",
        ),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        kd.FeatureMSEEnergy(**options)


def test_relations_are_those_of_images():
    with pytest.raises(ValueError, match="compares all tokens of an image"):
        layers_energy(kd.FeatureRelationEnergy)


def test_a_layer_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match="no layer 'midle'.*'middle', .*'pooled'"):
        plain_pair(layers_energy(student="midle"))


def test_a_layer_that_runs_twice_is_refused():
    shared = keras.layers.Dense(4, name="middle")
    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Dense(3)(shared(shared(x))))
    other = keras.models.clone_model(model)
    distiller = kd.BetaKDDistiller(model, other, layers_energy())
    distiller.compile(optimizer="sgd")
    with pytest.raises(ValueError, match="'middle' ran 2 times"):
        distiller.train_on_batch(np.ones((2, 4), "float32"), np.zeros(2, int))


def test_layers_of_other_positions_are_refused():
    distiller = plain_pair(layers_energy(teacher="middle", student="pooled"))
    with pytest.raises(ValueError, match="teacher's 'middle'.*'pooled'.*\"pool\""):
        distiller.train_on_batch(*images())


def test_maps_of_other_shapes_but_as_many_positions_are_refused():
    """Pixels at different places were compared."""

    def model(strides):
        x = image = keras.Input((8, 8, 1))
        x = keras.layers.Conv2D(4, 3, strides, "same", name="middle")(x)
        return keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x)))

    def make(**options):
        energy = layers_energy(**options)
        distiller = kd.BetaKDDistiller(model((4, 1)), model((2, 2)), energy)
        distiller.compile(optimizer="sgd")
        return distiller

    with pytest.raises(ValueError, match="2, 8, 4.*4, 4, 4.*one resolution"):
        make().train_on_batch(*images())
    make(align="pool").train_on_batch(*images())


def test_a_layer_of_several_outputs_is_refused():
    """They were stacked, and compared as if there were three times the examples."""

    def model():
        x = keras.Input((5, 4))
        states = keras.layers.LSTM(4, return_state=True, name="middle")(x)
        return keras.Model(x, keras.layers.Dense(3)(states[0]))

    distiller = kd.BetaKDDistiller(model(), model(), layers_energy())
    distiller.compile(optimizer="sgd")
    x = np.ones((3, 5, 4), "float32")
    with pytest.raises(ValueError, match="'middle' returns a .* of several values"):
        distiller.train_on_batch(x, np.zeros(3, int))


def test_a_model_of_several_outputs_is_refused():
    x = keras.Input((4,))
    several = keras.Model(x, {"a": keras.layers.Dense(3)(x), "b": x})
    one = keras.Model(x, keras.layers.Dense(3)(x))
    distiller = kd.BetaKDDistiller(several, one, kd.ForwardKLEnergy())
    distiller.compile(optimizer="sgd")
    with pytest.raises(ValueError, match="one tensor of logits.*a dict"):
        distiller.train_on_batch(np.ones((2, 4), "float32"), np.zeros(2, int))


def test_a_layer_of_the_vision_tower_is_refused_with_what_to_use():
    energy = layers_energy(teacher="vision_encoder", student="vision_encoder")
    distiller = pair({"inner": energy}, tiny_gemma3(16))
    with pytest.raises(ValueError, match='not the positions.*"image_features"'):
        distiller.test_on_batch(vqa_records(3))


def test_a_beta_for_each_token_is_refused_where_there_are_other_positions():
    models = convolutional(6, 1), convolutional(4, 2)
    distiller = kd.BetaKDDistiller(*models, layers_energy(), kd.TokenBeta())
    distiller.compile(optimizer="sgd")
    with pytest.raises(ValueError, match="no value for each answer token"):
        distiller.train_on_batch(*images())


def test_a_cached_teacher_has_no_inner_layers(tmp_path):
    records = {**vqa_records(4), "ids": list("abcd")}
    live = pair({"answer": kd.ForwardKLEnergy()}, tiny_gemma3(16))
    kd.cache_teacher(live, records, tmp_path, batch_size=2)
    energy = layers_energy(teacher="decoder_block_0", student="decoder_block_0")
    with pytest.raises(ValueError, match="inner layers, which a teacher cache"):
        kd.BetaKDDistiller(kd.CachedTeacher(tmp_path), live.student, energy)


def test_layers_inside_of_layers_are_named_with_a_slash():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="deep")])
    model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2)])
    assert find_layer(model, f"{inner.name}/deep") is inner.layers[0]


def test_configuration_survives():
    saved = keras.saving.serialize_keras_object(layers_energy(align="pool"))
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(saved)))
    assert again.get_config() == layers_energy(align="pool").get_config()
    assert (again.features, again.student_layer) == ("layers", "middle")
