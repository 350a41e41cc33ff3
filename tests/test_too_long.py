"""Records that are too long: refused by name, left out, or found before training."""

import keras
import numpy as np
import pytest
import torch
from tiny_models import tiny_gemma3, vqa_records

from keras_betakd import BetaKDDistiller, DistillationPreprocessor, ForwardKLEnergy

LONG = "one two three four five six seven eight nine ten"


def records(long=(), **changes):
    found = {**vqa_records(6), **changes}
    for row in long:
        found["responses"][row] = LONG
    return found


def distiller(**options):
    keras.utils.set_random_seed(0)
    options = {"max_response_length": 6, **options}
    model = BetaKDDistiller(tiny_gemma3(), tiny_gemma3(), ForwardKLEnergy(), **options)
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    return model


def test_the_limit_is_an_argument_of_the_distiller():
    assert distiller().preprocessor.max_response_length == 6
    assert distiller(max_response_length=None).preprocessor.max_response_length == 64
    ours = distiller().preprocessor
    with pytest.raises(ValueError, match="max_response_length.*your `Distillation"):
        distiller(preprocessor=ours)
    with pytest.raises(ValueError, match="on_too_long='never'"):
        distiller(on_too_long="never")


def test_a_saved_distiller_keeps_what_it_does():
    config = distiller(on_too_long="skip").get_config()
    loaded = BetaKDDistiller.from_config(config)
    assert loaded.preprocessor.on_too_long == "skip"
    del config["on_too_long"]  # as archives of earlier versions
    assert BetaKDDistiller.from_config(config).preprocessor.on_too_long == "raise"


@pytest.mark.parametrize("ids", [True, False])
def test_the_error_says_where_in_the_data_the_record_is(ids):
    """It once said "number 0 of the batch", whatever the batch and the order."""
    data = records(long=[4])
    if not ids:
        del data["ids"]
    name = r"'q4' \(number 4 of the data\)" if ids else "number 4 of the data"
    for shuffle in (True, False):
        with pytest.raises(ValueError, match=f"answer of record {name} has 1. tokens"):
            distiller().fit(data, batch_size=2, shuffle=shuffle, verbose=0)
    with pytest.raises(ValueError, match=f"answer of record {name} has 1. tokens"):
        distiller().fit(data, batch_size=2, validation_split=0.5, verbose=0)


def test_the_error_says_in_which_batch_of_a_stream_the_record_is():
    data = records(long=[4], ids=None)
    rows = [{k: data[k][i] for k in ("prompts", "responses")} for i in range(6)]
    rows = [{**row, "images": data["images"][i][0]} for i, row in enumerate(rows)]
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    with pytest.raises(ValueError, match="record number 0 of batch 2 has"):
        distiller().fit(loader, verbose=0)


def test_records_that_are_skipped_change_nothing():
    """The run is that without them; they are named once at the end of the epoch."""
    options = {"batch_size": 3, "shuffle": False, "verbose": 0}
    data = records(long=[1, 3])
    skipping = distiller(on_too_long="skip")
    with pytest.warns(RuntimeWarning, match=r"left out in epoch 1, .*: 2 \('q1'"):
        skipped = skipping.fit(data, **options).history
    kept = distiller()
    weight = np.array([1, 0, 1, 0, 1, 1], "float32")
    expected = kept.fit({**records(), "sample_weight": weight}, **options).history
    for name, values in expected.items():
        np.testing.assert_allclose(skipped[name], values, rtol=1e-5, err_msg=name)
    with pytest.warns(RuntimeWarning, match="left out in this evaluation, .*: 2"):
        skipping.evaluate(data, batch_size=3, verbose=0)
    with pytest.warns(RuntimeWarning, match="left out in this step, .*: 1"):
        skipping.train_on_batch({k: v[:2] for k, v in data.items()})


def test_a_batch_of_which_nothing_fits_is_skipped_as_a_whole():
    preprocessor = distiller(on_too_long="skip").preprocessor
    data = records(long=[2, 3])
    batches = [{k: v[i : i + 2] for k, v in data.items()} for i in (0, 2)]
    with pytest.raises(ValueError, match="No record of the first batch fits"):
        preprocessor(batches[1])
    first, second = map(preprocessor, batches)
    assert (second[2] == 0).all() and (first[2].sum(axis=1) > 0).all()
    assert [x.shape for x in second[1:]] == [x.shape for x in first[1:]]
    assert list(preprocessor.skipped) == ["'q2'", "'q3'"]


def test_a_sequence_that_is_too_long_is_skipped_too():
    gemma3 = tiny_gemma3(sequence_length=40).preprocessor
    preprocessor = DistillationPreprocessor(gemma3, gemma3, 6, on_too_long="skip")
    data = vqa_records(2)
    data["prompts"] = [data["prompts"][0], data["prompts"][1] + LONG]
    _, _, weight = preprocessor(data)
    assert (weight.sum(axis=1) > 0).tolist() == [True, False]
    assert "needs a sequence_length of" in preprocessor.skipped["'q1'"]


def test_all_records_are_checked_before_training():
    model = distiller(on_too_long="skip")
    assert model.check_records(vqa_records(5), batch_size=2) == 5
    data = records(long=[1, 4])
    data["prompts"][2] = "no mark for the image"
    with pytest.raises(
        ValueError, match="Of 6 records, this many cannot be used: 3"
    ) as error:
        model.check_records(data, batch_size=4)
    lines = str(error.value).splitlines()[1:]
    for row, line in zip((1, 2, 4), lines, strict=True):
        assert f"'q{row}' (number {row} of the data)" in line, line
        # It advised `on_too_long="skip"`, which is set, and to run itself.
        assert "on_too_long" not in line and "check_records" not in line
    assert model.preprocessor.skipped == {}
    with pytest.raises(ValueError, match="would be used up"):
        model.check_records(iter([data]))
