"""What trains, stage after stage; teacher and student share nothing."""

import warnings

import keras
import numpy as np
import pytest
from plain_models import linear_model
from tiny_models import tiny_gemma3, vqa_records

from keras_betakd import (
    BetaKDDistiller,
    CosineProbsEnergy,
    CTKDEnergy,
    FeatureMSEEnergy,
    FixedBeta,
    ForwardKLEnergy,
    ImageTokenEnergy,
    TAIDEnergy,
    TaskBeta,
)
from keras_betakd.models import LogitsView, register_view
from keras_betakd.models.views import view_of

WIDTH, CLASSES = 4, 5


def mlp(*layers):
    """(B, 4) -> (B, 5) through the given layers."""
    inputs = keras.Input((WIDTH,))
    x = inputs
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


def batch():
    x = np.random.default_rng(0).normal(size=(8, WIDTH)).astype("float32")
    return x, np.zeros(8, int)


def compiled(*args, **kwargs):
    distiller = BetaKDDistiller(*args, energies=CosineProbsEnergy(), **kwargs)
    distiller.compile(optimizer=keras.optimizers.Adam(1e-3))
    return distiller


def trained(student):
    """The paths of what trains in a student."""
    return {v.path for v in student.trainable_variables}


def moved(distiller, records):
    """The paths of those of the student's variables that a step changes."""
    variables = distiller.student.variables
    before = [keras.ops.convert_to_numpy(v).copy() for v in variables]
    distiller.fit(records, batch_size=4, verbose=0)
    pairs = zip(variables, before, strict=True)
    return {v.path for v, old in pairs if (keras.ops.convert_to_numpy(v) != old).any()}


# Teacher and student share nothing


def test_the_same_model_twice():
    """It was frozen as the teacher, and `fit` changed betas alone."""
    model = mlp()
    with pytest.raises(ValueError, match="the same object"):
        BetaKDDistiller(model, model, ForwardKLEnergy())


class Held(keras.layers.Layer):
    """Keeps a layer in a nested list."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [[layer]]

    def call(self, x):
        return self.blocks[0][0](x)


@pytest.mark.parametrize("freeze", [None, "vision_tower", lambda layer: True])
@pytest.mark.parametrize("hand_frozen", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_shared_layers_are_named(freeze, hand_frozen, held):
    """They were frozen with the teacher, also with `freeze=None`."""
    shared = keras.layers.Dense(6, name="shared_encoder")
    teacher = mlp(Held(shared) if held else shared, keras.layers.Dense(32))
    student = mlp(Held(shared) if held else shared)
    teacher.trainable = not hand_frozen  # freezes the student's part as well
    with pytest.raises(ValueError, match="share layers.*shared_encoder"):
        BetaKDDistiller(teacher, student, ForwardKLEnergy(), freeze=freeze)


def test_a_teacher_that_wraps_the_student_and_the_other_way_round():
    inner = mlp()
    inputs = keras.Input((WIDTH,))
    outer = keras.Model(inputs, keras.layers.Dense(CLASSES)(inner(inputs)))
    for pair in ((outer, inner), (inner, outer)):
        with pytest.raises(ValueError, match=f"share layers.*{inner.name}"):
            BetaKDDistiller(*pair, ForwardKLEnergy())
        assert inner.trainable_variables  # nothing is frozen on the way


def test_layers_of_keras_hub_models_are_named_one_by_one():
    teacher, student = tiny_gemma3(width=8, num_layers=2), tiny_gemma3()
    ours, theirs = student.backbone, teacher.backbone
    embedding = theirs.token_embedding
    inputs = keras.Input((3,), dtype="int32")
    tied = keras.Model(inputs, embedding(embedding(inputs), reverse=True))
    with pytest.raises(ValueError, match="token_embedding"):
        BetaKDDistiller(teacher, tied, ForwardKLEnergy(), freeze=None)
    assert not {id(v) for v in ours.variables} & {id(v) for v in theirs.variables}
    BetaKDDistiller(teacher, student, ForwardKLEnergy())  # one vocabulary: no error


def test_layers_built_by_the_first_batch_are_compared_then():
    shared = keras.layers.Dense(CLASSES, name="shared_head")
    teacher = keras.Sequential([keras.layers.Dense(6), shared])
    student = keras.Sequential([keras.layers.Dense(6), shared])
    distiller = compiled(teacher, student)
    with pytest.raises(ValueError, match="share layers.*shared_head"):
        distiller.fit(*batch(), verbose=0)


def test_what_has_nothing_to_train_may_be_shared():
    scale = keras.layers.Normalization()
    scale.adapt(np.arange(8.0).reshape(2, 4))
    relu = keras.layers.ReLU()
    teacher, student = mlp(scale, relu), mlp(scale, relu)
    history = compiled(teacher, student).fit(*batch(), verbose=0).history
    assert np.isfinite(history["loss"]).all()


class Seeing(keras.Model):
    """A model with a vision tower, which may be another's too."""

    def __init__(self, tower):
        super().__init__()
        self.tower, self.rest = tower, mlp()
        self.built = True

    def call(self, x):
        return self.rest(self.tower(x))


class SeeingView(LogitsView):
    def vision_tower(self):
        return [self.model.tower]


register_view("Seeing", SeeingView)


def test_a_frozen_vision_tower_may_be_shared():
    tower = keras.layers.Dense(WIDTH, name="tower")
    tower.build((None, WIDTH))
    pair = Seeing(tower), Seeing(tower)
    with pytest.raises(ValueError, match="share layers.*tower"):
        BetaKDDistiller(*pair, ForwardKLEnergy(), freeze=None)
    for freeze in ("vision_tower", lambda layer: layer is tower):
        distiller = BetaKDDistiller(*pair, ForwardKLEnergy(), freeze=freeze)
        assert trained(pair[1]) == trained(pair[1].rest)
    lines = []
    distiller.summary(print_fn=lines.append)
    rows = {line[:34].strip(): line[34:].split() for line in lines}
    assert rows["vision tower of both"][:2] == ["20", "0"]
    assert rows["teacher"][0] == rows["student"][0] == "25"
    assert rows["total"][0] == "71"  # one beta
    with pytest.raises(ValueError, match="share layers.*tower"):
        BetaKDDistiller(*pair, ForwardKLEnergy(), freeze=None)  # not by its owner
    tower.trainable = False
    BetaKDDistiller(*pair, ForwardKLEnergy(), freeze=None)
    assert trained(pair[1]) == trained(pair[1].rest)


def test_states_of_betas_and_energies_are_apart():
    """One schedule would advance twice a step, one beta learn from two terms."""
    pair = mlp(), mlp()
    taid, learned = TAIDEnergy(total_steps=9), CTKDEnergy(total_steps=9)
    feature, beta = FeatureMSEEnergy("hidden_states"), FixedBeta(1.0)
    for energies in (
        {"a": taid, "b": taid},
        {"a": learned, "b": ImageTokenEnergy(learned)},
        {"a": feature, "b": feature},
    ):
        with pytest.raises(ValueError, match="energy b shares .* the energy a"):
            BetaKDDistiller(*pair, energies)
    with pytest.raises(ValueError, match="layers of their own"):
        BetaKDDistiller(*pair, ForwardKLEnergy(), beta, task_beta=beta)
    beta = TaskBeta()
    beta.network = pair[1].layers[-1]
    with pytest.raises(ValueError, match="beta of forward_kl shares"):
        BetaKDDistiller(*pair, ForwardKLEnergy(), beta)
    assert pair[1].trainable_variables


# Nothing trains


def test_a_student_in_which_nothing_trains():
    """It ran, and changed the betas alone."""
    teacher, student = mlp(), mlp()
    student.trainable = False
    distiller = compiled(teacher, student)
    with pytest.raises(ValueError, match="Nothing in the student trains"):
        distiller.fit(*batch(), verbose=0)
    with pytest.raises(ValueError, match="Nothing in the student trains"):
        distiller.train_on_batch(*batch())
    assert np.isfinite(distiller.evaluate(*batch(), verbose=0)).all()
    student.trainable = True
    distiller = compiled(teacher, student, freeze=lambda layer: True)
    with pytest.raises(ValueError, match="froze 2 .*lambda"):
        distiller.fit(*batch(), verbose=0)


# Stages


def test_the_second_stage_trains_what_its_own_freeze_leaves():
    """After "all_but_projector" only the projector ever trained again."""
    teacher, student = tiny_gemma3(width=12), tiny_gemma3()
    everything = trained(student)
    tower = {w.path for x in view_of(student).vision_tower() for w in x.weights}
    first = compiled(teacher, student, freeze="all_but_projector")
    assert 0 < len(trained(student)) < 10
    assert moved(first, vqa_records(4)) == trained(student)
    second = compiled(teacher, student)
    assert trained(student) == everything - tower
    lines = []
    second.summary(print_fn=lines.append)
    rows = {line[:34].strip(): line[34:].split() for line in lines}
    model = rows["student: language model"]
    assert model[0] == model[1] != "0"
    assert rows["student: vision tower"][1] == rows["teacher"][1] == "0"
    assert len(moved(second, vqa_records(4))) > 0.8 * len(everything - tower)
    compiled(teacher, student, freeze=None)
    assert trained(student) == everything
    compiled(teacher, student, freeze="all_but_projector")
    compiled(teacher, student, freeze="all_but_projector")
    assert trained(student) == {w.path for w in first.student.trainable_variables}


@pytest.mark.parametrize("when", ["before", "between"])
def test_what_its_owner_froze_stays_frozen(when):
    teacher, student = tiny_gemma3(width=12), tiny_gemma3()
    everything = trained(student)
    embedding = student.backbone.token_embedding
    block = student.backbone.get_layer("decoder_block_0")
    if when == "before":
        embedding.trainable = block.trainable = False
    compiled(teacher, student, freeze="all_but_projector")
    if when == "between":
        embedding.trainable = block.trainable = False
    compiled(teacher, student, freeze=None)
    by_hand = {v.path for layer in (embedding, block) for v in layer.weights}
    assert by_hand
    assert trained(student) == everything - by_hand


@pytest.mark.parametrize("when", ["before", "between"])
def test_the_base_of_lora_is_never_given_back(when):
    teacher, student = tiny_gemma3(width=12), tiny_gemma3()
    if when == "before":
        student.backbone.enable_lora(2)
    compiled(teacher, student, freeze="all_but_projector")
    if when == "between":
        student.backbone.enable_lora(2)
    compiled(teacher, student, freeze=None)
    expected = tiny_gemma3()
    expected.backbone.enable_lora(2)
    assert trained(student) == trained(expected)
    layer = tiny_gemma3().backbone.token_embedding
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layer])
    model.add(keras.layers.Dense(CLASSES))
    compiled(linear_model(0), model, freeze=lambda x: x is layer)
    layer.enable_lora(2)
    compiled(linear_model(0), model, freeze=None)
    assert not layer._embeddings.trainable
    assert layer.lora_embeddings_a.trainable


def test_a_teacher_becomes_a_student():
    """Born again: the first student teaches the next, and the first teacher learns."""
    first, second, third = mlp(), mlp(), mlp()
    second.layers[-1].bias.trainable = False
    compiled(first, second)
    compiled(second, third)
    assert not second.trainable
    assert second.trainable_variables == []
    distiller = compiled(third, second)
    assert second.trainable
    assert trained(second) == {second.layers[-1].kernel.path}
    assert third.trainable_variables == []
    distiller.fit(*batch(), verbose=0)


def test_two_models_teach_each_other_in_turn():
    """Each distiller trains its own student, whichever was made last."""
    one, two = mlp(), mlp()
    forth, back = compiled(one, two), compiled(two, one)
    for distiller in (forth, back, forth):
        before = [model.get_weights() for model in (one, two)]
        distiller.train_on_batch(*batch())
        after = [model.get_weights() for model in (one, two)]
        changed = [(a[0] != b[0]).any() for a, b in zip(before, after, strict=True)]
        assert changed == [distiller is back, distiller is forth]


def test_frozen_batch_normalisation_keeps_its_statistics():
    """With "all_but_projector" those of the tower went on moving."""
    normalization = keras.layers.BatchNormalization(name="normalization")
    student = mlp(normalization)
    x, y = batch()
    distiller = compiled(mlp(), student, freeze=lambda layer: layer is normalization)
    distiller.fit(x + 3.0, y, verbose=0)
    assert (keras.ops.convert_to_numpy(normalization.moving_mean) == 0).all()
    distiller = compiled(mlp(), student, freeze=None)
    assert normalization.trainable
    distiller.fit(x + 3.0, y, verbose=0)
    assert (keras.ops.convert_to_numpy(normalization.moving_mean) != 0).all()


@pytest.mark.backends
def test_models_that_the_first_batch_builds():
    """Of the teacher nothing trains, whenever its variables are made."""
    make = keras.layers.Dense
    teacher = keras.Sequential([make(16), make(CLASSES)])
    student = keras.Sequential([make(6, name="frozen"), make(CLASSES)])
    distiller = compiled(teacher, student, freeze=lambda x: x.name == "frozen")
    distiller.fit(*batch(), verbose=0)
    before, frozen = teacher.get_weights(), student.layers[0].get_weights()
    distiller.fit(*batch(), verbose=0)
    assert teacher.trainable_variables == []
    assert trained(student) == {w.path for w in student.layers[1].weights}
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(frozen[0], student.layers[0].get_weights()[0])


def test_stages_go_on_from_an_archive(tmp_path):
    """The library's own freezing is no part of a saved model's config."""
    distiller = compiled(mlp(keras.layers.Dense(6)), mlp(), freeze=lambda layer: True)
    distiller.save(tmp_path / "stage.keras")
    loaded = keras.saving.load_model(
        tmp_path / "stage.keras",
        custom_objects={"<lambda>": lambda layer: True},
        safe_mode=False,
    )
    assert loaded.student.trainable_variables == []
    assert loaded.teacher.trainable_variables == []
    compiled(loaded.teacher, loaded.student)
    assert len(loaded.student.trainable_variables) == 2
    compiled(loaded.student, loaded.teacher)
    assert len(loaded.teacher.trainable_variables) == 4


def test_a_quantised_student_is_told_how_little_of_it_trains():
    """It trained a few norms, without a word."""
    teacher, student = tiny_gemma3(width=16), tiny_gemma3()
    student.backbone.quantize("int8")
    distiller = BetaKDDistiller(teacher, student, ForwardKLEnergy())
    distiller.compile(optimizer="sgd")
    with pytest.warns(UserWarning, match="layers of the student are quantised"):
        distiller.fit(vqa_records(2), verbose=0)


def test_lora_factors_of_a_quantised_student_train_without_a_warning():
    teacher, student = tiny_gemma3(width=16), tiny_gemma3()
    student.backbone.quantize("int8")
    student.backbone.enable_lora(2)
    distiller = BetaKDDistiller(teacher, student, ForwardKLEnergy())
    distiller.compile(optimizer="sgd")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*are quantised")
        distiller.fit(vqa_records(2), verbose=0)
