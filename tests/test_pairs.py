"""Pairs that differ: vocabularies, tokenizers, images; and what of a pair trains."""

import keras
import numpy as np
import pytest
from keras import ops
from marks import kept
from tiny_families import FAMILIES, tiny_blip2_opt, tiny_gemma3n, tiny_text
from tiny_models import tiny_gemma3, tiny_gemma_text, tiny_pali_gemma, vqa_records

from keras_betakd import (
    BetaKDDistiller,
    CosineProbsEnergy,
    DistillationPreprocessor,
    FeatureMSEEnergy,
    FixedBeta,
    ForwardKLEnergy,
    InstanceBeta,
    ULDEnergy,
)
from keras_betakd.models import load_model
from keras_betakd.preprocessing.token_alignment import aligned_slots

RECORDS = vqa_records(4)
TEXT = {
    "prompts": ["what color is it?"] * 3,
    "responses": ["red", "yes, yes", "the color is reddish"],
}


def kl(p_logits, q_logits):
    p, q = (np.asarray(x, "float64") for x in (p_logits, q_logits))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(-1)


def fitted(distiller, records, **kwargs):
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    return distiller.fit(records, batch_size=2, verbose=0, **kwargs).history


# Vocabularies of different width


@pytest.mark.backends
def test_padded_vocabularies_are_cut_before_they_are_normalised():
    """Cutting after the softmax gives -0.06, padding with zeros 1.55."""
    teacher = np.array([[2, 1, 0, -1, 0.5, 6, 6]], "float32")
    student = np.array([[1, 1, 0, 0, 0, 9]], "float32")
    models = []
    for row in (teacher, student):
        inputs = keras.Input((1,))
        outputs = keras.layers.Dense(row.shape[1])(inputs)
        model = keras.Model(inputs, outputs)
        model.layers[-1].set_weights([np.zeros_like(row), row[0]])
        models.append(model)
    distiller = BetaKDDistiller(
        *models, ForwardKLEnergy(), FixedBeta(1.0), vocabulary_size=5
    )
    distiller.compile()
    found = distiller.evaluate(
        np.ones((2, 1)), np.array([0, 1]), verbose=0, return_dict=True
    )
    assert found["forward_kl"] == pytest.approx(0.155941, abs=1e-6)


def test_plain_models_of_other_classes_are_refused_at_once():
    """They were once accepted, compiled, and refused by the first step."""
    x = keras.Input((4,))
    models = [keras.Model(x, keras.layers.Dense(size)(x)) for size in (6, 5)]
    with pytest.raises(ValueError, match="vocabulary_size=6 .*vocabulary_size=5"):
        BetaKDDistiller(*models, ForwardKLEnergy())


@pytest.mark.backends
@pytest.mark.parametrize("fused", kept([True, False], True))
def test_padded_vocabularies_of_real_models(fused):
    teacher = tiny_gemma_text(12)
    config = teacher.backbone.get_config()
    size = config["vocabulary_size"]
    padded = type(teacher.backbone).from_config(
        {**config, "vocabulary_size": size + 5, "name": None}
    )
    teacher = type(teacher)(backbone=padded, preprocessor=teacher.preprocessor)
    student = tiny_gemma_text()
    with pytest.raises(ValueError, match=f"vocabulary_size={size + 5}.*={size}"):
        BetaKDDistiller(teacher, student, ForwardKLEnergy())
    distiller = BetaKDDistiller(
        teacher, student, ForwardKLEnergy(), vocabulary_size=size, fused=fused
    )
    history = fitted(distiller, TEXT, epochs=2)
    assert np.isfinite(history["loss"]).all()
    again = BetaKDDistiller.from_config(distiller.get_config())
    assert again.vocabulary_size == size
    with pytest.raises(ValueError, match="no more than the models have"):
        BetaKDDistiller(teacher, student, ForwardKLEnergy(), vocabulary_size=size + 1)


# Different tokenizers


@pytest.mark.backends
def test_uld_against_its_definition():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(4, 7)), rng.normal(size=(4, 5))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (teacher, student))
    p, q = -np.sort(-p), -np.sort(-q)
    q = np.concatenate([q, np.zeros((4, 2))], axis=1)
    expected = np.abs(p - q).sum(axis=1)
    for pair in ((teacher, student), (student, teacher)):
        values = ULDEnergy().call(*(x.astype("float32") for x in pair))
        np.testing.assert_allclose(ops.convert_to_numpy(values), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="same number of rows"):
        ULDEnergy()(teacher, student[:3])


def test_tokens_are_paired_where_the_same_text_was_read():
    """One splits "red" as r-ed, one as re-d: only start and end can be compared."""

    class Tokenizer:
        def __init__(self, pieces):
            self.pieces = pieces

        def detokenize(self, ids):
            return "".join(self.pieces[i] for i in ids)

    one, other = (
        Tokenizer(["r", "ed", " fox", "<e>"]),
        Tokenizer(["re", "d", " fox", "."]),
    )
    assert aligned_slots(one, other, [0, 1, 2, 3], [0, 1, 2, 3]).tolist() == [
        0,
        -1,
        2,
        3,
    ]
    assert aligned_slots(one, other, [0, 1, 3], [0, 1, 3]).tolist() == [0, -1, 2]


@pytest.mark.parametrize(
    "teacher, student",
    [
        pytest.param(
            tiny_gemma_text,
            lambda: tiny_text("GPT2"),
            marks=pytest.mark.backends,
        ),
        (tiny_gemma3n, tiny_blip2_opt),
    ],
    ids=["gemma_gpt2", "gemma3n_blip2"],
)
def test_models_with_different_tokenizers(teacher, student):
    teacher, student = teacher(width=12), student()
    takes_images = getattr(teacher.preprocessor, "image_converter", None) is not None
    records = vqa_records(3) if takes_images else TEXT
    with pytest.raises(ValueError, match="ULDEnergy"):
        BetaKDDistiller(teacher, student, ForwardKLEnergy())
    with pytest.raises(ValueError, match="Tokenizer.*Tokenizer.*ULDEnergy"):
        pair = teacher.preprocessor, student.preprocessor
        DistillationPreprocessor(*pair)(records)
    distiller = BetaKDDistiller(teacher, student, ULDEnergy(), InstanceBeta())
    x, y, weight = distiller.preprocessor(records)
    assert (x["aligned"] <= weight).all()
    # The first token and the end mark at least.
    assert (x["aligned"].sum(axis=1) >= 2).all()
    history = fitted(distiller, records, epochs=2)
    assert np.isfinite(history["loss"]).all()
    assert 0 < history["uld"][0] < 2


# Images


def test_teacher_takes_images_and_student_text_alone():
    teacher, student = tiny_gemma3(width=12), tiny_gemma_text()
    records = vqa_records(4)
    pair = teacher.preprocessor, student.preprocessor
    with pytest.raises(ValueError, match="blind_student=True"):
        DistillationPreprocessor(*pair)(records)
    preprocessor = DistillationPreprocessor(*pair, blind_student=True)
    x, *_ = preprocessor(records)
    assert "images" in x["teacher"]
    assert "images" not in x["student"]
    distiller = BetaKDDistiller(
        teacher, student, CosineProbsEnergy(), preprocessor=preprocessor
    )
    assert np.isfinite(fitted(distiller, records)["loss"]).all()
    again = BetaKDDistiller.from_config(distiller.get_config())
    assert again.preprocessor.blind_student


def test_families_with_one_tokenizer():
    teacher, student = tiny_pali_gemma(width=12, image_size=32), tiny_gemma3()
    distiller = BetaKDDistiller(teacher, student, ForwardKLEnergy())
    assert np.isfinite(fitted(distiller, vqa_records(4))["loss"]).all()


# What trains


@pytest.mark.parametrize("name", ["Gemma3", "Gemma3n", "Qwen3_5", "BLIP2_OPT"])
def test_only_the_projector_trains(name):
    teacher, student = FAMILIES[name](width=12), FAMILIES[name]()
    distiller = BetaKDDistiller(
        teacher, student, ForwardKLEnergy(), freeze="all_but_projector"
    )
    projector = {
        w.path for layer in distiller.student_view.projector() for w in layer.weights
    }
    trainable = {w.path for w in student.trainable_variables}
    assert trainable
    assert trainable <= projector
    lines = []
    distiller.summary(print_fn=lines.append)
    table = {line[:34].strip(): line[34:].split() for line in lines}
    count = sum(int(np.prod(w.shape)) for w in student.trainable_variables)
    assert table["student: projector"][1] == f"{count:,}"
    assert table["student: vision tower"][1] == "0"
    assert table["student: language model"][1] == "0"
    assert table["teacher"][0] == f"{teacher.count_params():,}"
    assert table["teacher"][1] == "0"


def test_a_text_student_has_no_projector():
    pair = tiny_gemma_text(), tiny_gemma_text()
    with pytest.raises(ValueError, match="student with a projector"):
        BetaKDDistiller(*pair, ForwardKLEnergy(), freeze="all_but_projector")


def test_summary_counts_betas_and_what_energies_learn(capsys):
    distiller = BetaKDDistiller(
        tiny_gemma3(width=12),
        tiny_gemma3(),
        [ForwardKLEnergy(), FeatureMSEEnergy("hidden_states", name="features")],
    )
    distiller.summary()
    table = {
        line[:34].strip(): line[34:].split()
        for line in capsys.readouterr().out.splitlines()
    }
    assert table["beta of forward_kl"][:2] == ["1", "1"]
    assert table["energies"][0] == str(8 * 12 + 12)
    models = distiller.teacher.count_params() + distiller.student.count_params()
    assert table["total"][0] == f"{models + 2 + 8 * 12 + 12:,}"


# Presets


def test_presets_load_by_folder_whatever_their_class(tmp_path):
    for name in ("Gemma3", "BLIP2_FlanT5"):
        model = FAMILIES[name]()
        model.save_to_preset(tmp_path / name)
        assert type(load_model(tmp_path / name)) is type(model)
    loaded = load_model(tmp_path / "Gemma3", dtype="bfloat16")
    assert loaded.backbone.token_embedding.compute_dtype == "bfloat16"


def test_presets_that_cannot_be_loaded_are_explained(tmp_path):
    with pytest.raises(ValueError, match="no preset folder"):
        load_model(tmp_path / "nothing")
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(ValueError, match="no config.json.*readme.txt"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="'no_such_preset' cannot be loaded"):
        load_model("no_such_preset")


def test_lora_is_merged_into_the_exported_preset(tmp_path):
    """keras-hub would save the factors alone, without the base weights."""
    student = tiny_gemma3()
    distiller = BetaKDDistiller(tiny_gemma3(width=12), student, ForwardKLEnergy())
    student.backbone.enable_lora(2)
    fitted(distiller, RECORDS, epochs=2)
    x = distiller.preprocessor(RECORDS)[0]["student"]
    expected = ops.convert_to_numpy(student(x))
    student.save_to_preset(tmp_path / "merged")
    merged = load_model(tmp_path / "merged")
    assert not any("lora" in w.path for w in merged.weights)
    np.testing.assert_allclose(ops.convert_to_numpy(merged(x)), expected, atol=1e-5)
