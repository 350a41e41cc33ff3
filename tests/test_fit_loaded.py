"""`fit` takes what a loader returns, or says which loader is missing."""

import datasets
import keras
import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_gemma3, tiny_gemma_text

from keras_betakd import BetaKDDistiller, ForwardKLEnergy, ProcessShare
from keras_betakd.data import (
    LlavaDataset,
    LlavaRecord,
    MixedDataset,
    ScienceQARecord,
    load_captions,
    load_chat,
    load_vqa,
)

ROWS = [{"question": f"{n}?", "answer": color, "image": None} for n, color in
        enumerate(("red", "blue", "green", "teal"))]  # fmt: skip


def distilling(model):
    distiller = BetaKDDistiller(model(), model(), ForwardKLEnergy())
    distiller.compile(optimizer=keras.optimizers.SGD(0.0))
    return distiller


@pytest.fixture(scope="module")
def text():
    return distilling(tiny_gemma_text)


def test_what_loaders_return_is_what_their_data_set_is(text):
    records = load_vqa(ROWS)
    expected = text.evaluate(LlavaDataset(records, 2), verbose=0)
    table = load_vqa(datasets.Dataset.from_list(ROWS))
    for x in (records, list(records), table):
        received = text.evaluate(x, batch_size=2, verbose=0)
        np.testing.assert_allclose(received, expected, rtol=1e-6)
    history = text.fit(records, batch_size=2, validation_split=0.5, verbose=0).history
    assert "val_loss" in history
    share = ProcessShare(records, 2, index=1, count=2)
    assert share[0]["ids"] == ["1"]
    mixed = MixedDataset({"a": records}, 2)
    assert len(text.fit(mixed, epochs=2, verbose=0).history["loss"]) == 2


def test_an_error_names_the_record_and_its_place(text):
    records = [*load_vqa(ROWS), LlavaRecord("long", ["?"], ["a " * 500])]
    with pytest.raises(ValueError, match=r"'long' \(number 4 of the data\)"):
        text.fit(records, batch_size=2, shuffle=False, verbose=0)


def test_no_record_is_lost_in_silence(text):
    with pytest.warns(UserWarning, match="1 of 1"):
        none = load_vqa([{"question": "?", "answer": None}], on_error="skip")
    with pytest.raises(ValueError, match="at least one record.*all skipped"):
        text.fit(none, verbose=0)


def test_images_are_read_batch_by_batch(tmp_path):
    """Captions without a question, of images in files, train a model that sees."""
    distiller = distilling(tiny_gemma3)
    for name in "ab":
        Image.new("RGB", (6, 4), "red").save(tmp_path / f"{name}.png")
    rows = [{"image": f"{name}.png", "caption": "red"} for name in "ab"]
    records = load_captions(rows, tmp_path)
    expected = distiller.evaluate(records, batch_size=2, verbose=0)
    stream = load_captions(iter(rows), tmp_path)
    received = distiller.evaluate(stream, batch_size=2, verbose=0)
    np.testing.assert_allclose(received, expected, rtol=1e-6)
    science = ScienceQARecord("4", "?", ("red", "blue"), 0, image=tmp_path / "a.png")
    assert np.isfinite(distiller.evaluate([science, *records], verbose=0)).all()
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"Record '1' \(number 1 of the data\)"):
        distiller.fit(records, batch_size=1, shuffle=False, verbose=0)


CHAT = {"messages": [{"role": "user", "content": "?"}], "images": []}
STREAM = datasets.Dataset.from_list(ROWS).to_iterable_dataset()


@pytest.mark.parametrize(
    "x, loader",
    [
        ([CHAT], "load_chat"),
        ({"messages": [CHAT["messages"]]}, "load_chat"),
        (datasets.Dataset.from_list([CHAT]), "load_chat"),
        (ROWS, "load_vqa"),
        (datasets.Dataset.from_list(ROWS), "load_vqa"),
        (STREAM, "load_vqa"),
        ([{"image": "a.png", "caption": "A cat."}], "load_captions"),
        ("records.json", "load_chat"),
    ],
)
def test_the_loader_that_is_missing_is_named(text, x, loader):
    with pytest.raises(ValueError, match=f"`keras_betakd.data.{loader}`"):
        text.fit(x, verbose=0)


def test_a_system_text_is_not_lost(text):
    turns = [{"role": "system", "content": "Be brief."}, *CHAT["messages"]]
    turns.append({"role": "assistant", "content": "a"})
    records = load_chat([{"messages": turns}])
    assert records[0].system == "Be brief."
    try:
        text.fit(records, verbose=0)
    except ValueError as error:  # by a family that has no place for it
        assert "system" in str(error)
