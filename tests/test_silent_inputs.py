"""Data and files that were once taken, or lost, without a word."""

import os
import struct
import warnings

import keras
import numpy as np
import pytest
from plain_models import linear_model, token_batch
from tiny_models import tiny_gemma3, vqa_records

from keras_betakd import (
    BetaKDDistiller,
    CosineProbsEnergy,
    DistillationHistory,
    ForwardKLEnergy,
    TaskBeta,
    TrainingBackup,
)
from keras_betakd.models import save_preset
from keras_betakd.preprocessing.adapters import RecordBatches, raw_records
from keras_betakd.preprocessing.record_checks import checked_records

WEIGHTS = [0.0, 1.0, 1.0, 0.0]


class Series:
    """As a column of a pandas data frame: positions by `iloc`, labels by []."""

    def __init__(self, values, labels):
        self.values, self.labels = values, labels
        self.iloc = self

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.values)

    def __getitem__(self, label):
        return self.values[self.labels.index(label)]


@pytest.fixture(scope="module")
def pair():
    keras.utils.set_random_seed(0)
    return tiny_gemma3(width=16), tiny_gemma3(width=8)


def distiller_of(pair):
    model = BetaKDDistiller(*pair, CosineProbsEnergy(), TaskBeta())
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    return model


def plain_distiller():
    model = BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    return model


@pytest.mark.parametrize("labels", [[2, 0, 3, 1], [10, 11, 12, 13]])
def test_columns_of_a_shuffled_data_frame_are_read_by_position(labels):
    """They were read by label: answers trained with the images of other records."""
    records = vqa_records()
    columns = {k: Series(list(records[k]), labels) for k in ("prompts", "responses")}
    mixed = {**columns, "images": records["images"]}
    batches = RecordBatches(raw_records(mixed), batch_size=2)
    found = [text for i in range(2) for text in batches[i]["responses"]]
    assert found == list(records["responses"])
    assert checked_records(mixed)["responses"] == [[r] for r in records["responses"]]


@pytest.mark.parametrize("column", [{3: "a"}, {"a"}], ids=["dict", "set"])
def test_a_column_without_positions_is_refused(column):
    with pytest.raises(ValueError, match='"responses" must be a list or an array'):
        raw_records({"prompts": ["q"], "responses": column})


def test_weights_beside_raw_records_count_from_a_data_set_too(pair):
    """They were dropped in `(records, None, weights)` of a generator."""
    model, records = distiller_of(pair), vqa_records()
    by_key = model.evaluate({**records, "sample_weight": WEIGHTS}, verbose=0)
    batch = records, None, np.array(WEIGHTS)
    beside = model.evaluate(iter([batch]), verbose=0)
    np.testing.assert_allclose(beside, by_key, rtol=1e-6)
    alone = model.test_on_batch(*batch)
    np.testing.assert_allclose(alone, by_key, rtol=1e-6)
    assert not np.allclose(by_key, model.evaluate(records, verbose=0))


def test_labels_and_second_weights_beside_raw_records_are_refused(pair):
    model, records = distiller_of(pair), vqa_records()
    with pytest.raises(ValueError, match="`y` beside x"):
        model.train_on_batch(records, np.zeros((4, 3)))
    twice = {**records, "sample_weight": WEIGHTS}, None, WEIGHTS
    with pytest.raises(ValueError, match='"sample_weight" of their own'):
        model.evaluate(iter([twice]), verbose=0)


def test_one_table_in_a_tuple_is_that_table(pair):
    model, records = distiller_of(pair), vqa_records()
    expected = model.evaluate(records, verbose=0)
    found = model.evaluate(iter([(records,)]), verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("file", ["README.md", ".git/HEAD", "results.csv"])
def test_a_preset_replaces_no_file_of_the_user(pair, tmp_path, file):
    """All files of the folder were deleted, as long as one preset was among them."""
    folder = tmp_path / "student"
    save_preset(pair[1], folder)
    save_preset(pair[1], folder)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("precious")
    with pytest.raises(ValueError, match="holds other things than a preset"):
        save_preset(pair[1], folder)
    assert (folder / file).read_text() == "precious"


def test_a_preset_is_written_where_a_link_leads(pair, tmp_path):
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "student")
    save_preset(pair[1], tmp_path / "student")
    assert (tmp_path / "student").is_symlink()
    assert (tmp_path / "disk" / "config.json").exists()


@pytest.mark.parametrize("cut", [1, 40, 80])
@pytest.mark.parametrize("more", [b"", b"x", bytes(200)])
def test_a_weights_file_without_its_whole_digest_is_refused(tmp_path, cut, more):
    """One byte less or more made it a file of an older version, which has none."""
    model, path = plain_distiller(), tmp_path / "x.weights.h5"
    model.fit(*token_batch()[:2], verbose=0)
    model.save_weights(path)
    whole = path.read_bytes()
    for damaged in (whole[:-cut] + more, whole + b"\n" + more):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            model.load_weights(path)
    path.write_bytes(whole[:-84])  # a digest line has 85 bytes
    with pytest.raises(ValueError, match="damaged"):
        model.load_weights(path)
    path.write_bytes(whole)
    model.load_weights(path)


def test_a_file_of_keras_has_no_digest_and_loads(tmp_path):
    model, path = linear_model(1), tmp_path / "x.weights.h5"
    model.save_weights(path)
    end = struct.unpack("<Q", path.read_bytes()[40:48])[0]
    assert end == path.stat().st_size  # what the check relies on
    model.load_weights(path)


def test_lora_after_compile_is_told_to_compile_again(pair):
    model = distiller_of((pair[0], tiny_gemma3(width=8)))
    model.student.backbone.enable_lora(2)
    with pytest.raises(ValueError, match="Call `compile` again"):
        model.fit(vqa_records(), verbose=0)


def test_rows_of_records_left_out_of_a_prediction_are_told_of(pair):
    model = BetaKDDistiller(
        *pair, CosineProbsEnergy(), max_response_length=4, on_too_long="skip"
    )
    records = vqa_records()
    records["responses"][1] = "red " * 20
    with pytest.warns(RuntimeWarning, match="their rows say nothing"):
        model.predict_on_batch(records)


def test_an_archive_in_an_older_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in '.keras'"):
        plain_distiller().save(tmp_path / "x.h5")


def test_a_history_replaces_no_other_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("my,precious,table\n")
    history, model = DistillationHistory(path=path), plain_distiller()
    with pytest.raises(ValueError, match="is no history of a training"):
        model.fit(*token_batch()[:2], verbose=0, callbacks=[history])
    assert path.read_text() == "my,precious,table\n"


def test_weights_that_overflow_are_refused():
    """Their sum was infinite, and every metric 0."""
    x, y, _ = token_batch()
    with pytest.raises(ValueError, match="add up to less than 1e"):
        plain_distiller().fit(x, y, sample_weight=np.full(y.shape, 1e38), verbose=0)


def test_what_is_missing_is_said(pair, tmp_path):
    model = distiller_of(pair)
    records = vqa_records()
    cases = {
        "prompts=None": lambda: model.fit({**records, "prompts": None}),
        "There are no records": lambda: model.generate([]),
        'need "prompts"': lambda: model.generate({"images": records["images"]}),
        '"ids" must be': lambda: model.fit({**records, "ids": np.array("a")}),
        "Call `compile` before `restore`": lambda: TrainingBackup(tmp_path).restore(
            BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
        ),
        "`optimizer` must be": lambda: model.compile(optimizer=None),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    "energy, warns",
    [(ForwardKLEnergy(temperature=2.0), True), (ForwardKLEnergy(), False)],
    ids=["other", "same"],
)
def test_weights_of_another_loss_are_not_loaded_without_a_word(tmp_path, energy, warns):
    """A run resumed with another temperature had the same variables, so it went on."""
    x, y, weight = token_batch()
    before = BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
    after = BetaKDDistiller(linear_model(1), linear_model(2), energy)
    for model in (before, after):
        model.compile(optimizer=keras.optimizers.Adam(1e-3))
    before.fit(
        x, y, sample_weight=weight, verbose=0, callbacks=TrainingBackup(tmp_path)
    )
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        TrainingBackup(tmp_path).restore(after)
    texts = [str(w.message) for w in found if "another loss" in str(w.message)]
    assert len(texts) == warns
    assert all("energies['forward_kl'] differ" in text for text in texts)


def test_a_refused_state_names_the_one_before_it(tmp_path):
    model = plain_distiller()
    x, y, weight = token_batch()
    model.fit(x, y, sample_weight=weight, verbose=0, callbacks=TrainingBackup(tmp_path))
    (tmp_path / "epoch_2.weights.h5").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="go on from epoch_1.weights.h5"):
        TrainingBackup(tmp_path).restore(model)
    (tmp_path / "epoch_1.weights.h5").unlink()
    with pytest.raises(ValueError, match="to start anew"):
        TrainingBackup(tmp_path).restore(model)


def test_a_metric_that_compares_nothing_is_refused():
    """It ended in a TypeError of Keras in the middle of the first step."""
    model = plain_distiller()
    with pytest.raises(ValueError, match="'mean' does not compare labels with logits"):
        model.compile(metrics=[keras.metrics.Mean()])
