"""Shares of a batch: together they are the batch, read once."""

import keras
import numpy as np
import pytest
from plain_models import CLASSES, linear_model
from scienceqa_folder import write_folder

from keras_betakd import BetaKDDistiller, ForwardKLEnergy, ProcessShare, layout_map
from keras_betakd.data import EpochParts, ScienceQADataset, load_scienceqa


def test_shares_hold_every_record_once(tmp_path):
    """Each epoch keeps the order of the data set; padding copies have no weight."""
    records = load_scienceqa(write_folder(str(tmp_path), num=12), "train")
    whole = ScienceQADataset(records, 5, shuffle=True, seed=3)
    shares = [
        ProcessShare(ScienceQADataset(records, 5, shuffle=True, seed=3), None, i, 3)
        for i in range(3)
    ]
    for _ in range(2):
        for index in range(len(whole)):
            parts = [share[index] for share in shares]
            assert len({len(part["ids"]) for part in parts}) == 1
            ids = np.concatenate([part["ids"] for part in parts])
            weight = np.concatenate([part["sample_weight"] for part in parts])
            assert ids[weight > 0].tolist() == whole[index]["ids"].tolist()
        for dataset in (whole, *shares):
            dataset.on_epoch_end()


def test_only_the_images_of_a_share_are_read(tmp_path, monkeypatch):
    records = load_scienceqa(write_folder(str(tmp_path), num=12), "train")
    dataset = ScienceQADataset(records, 4)
    read = []
    monkeypatch.setattr(
        type(dataset), "batch", lambda self, rows: read.append(len(rows)) or {}
    )
    ProcessShare(dataset, index=1, count=2)[0]
    assert read == [2]
    parts = ProcessShare(EpochParts(dataset, 2), index=1, count=2)
    parts[0]
    assert read == [2, 2]


def test_shares_of_an_epoch_in_parts_hold_every_record_once(tmp_path):
    records = load_scienceqa(write_folder(str(tmp_path), num=12), "train")
    datasets = [ScienceQADataset(records, 3, shuffle=True, seed=3) for _ in range(3)]
    whole, *parts = [EpochParts(dataset, 2) for dataset in datasets]
    shares = [ProcessShare(part, index=i, count=2) for i, part in enumerate(parts)]
    for _ in range(4):
        for index, batch in enumerate(whole):
            taken = [share[index] for share in shares]
            ids = np.concatenate([part["ids"] for part in taken])
            weight = np.concatenate([part["sample_weight"] for part in taken])
            assert ids[weight > 0].tolist() == batch["ids"].tolist()
        for dataset in (whole, *shares):
            dataset.on_epoch_end()


@pytest.mark.backends
def test_copies_in_a_share_of_arrays_weigh_nothing():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 3, 4)), rng.integers(0, CLASSES, (3, 3))

    class Once(keras.utils.PyDataset):
        num_batches = 1

        def __getitem__(self, index):
            return x, y

    _, _, weight = ProcessShare(Once(), index=1, count=2)[0]
    assert weight.tolist() == [1, 0]
    distiller = BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
    distiller.compile()
    options = {"verbose": 0, "return_dict": True}
    share = distiller.evaluate(ProcessShare(Once(), index=1, count=2), **options)
    alone = distiller.evaluate(x[2:], y[2:], **options)
    for name, value in alone.items():
        assert share[name] == pytest.approx(value, rel=1e-5), name


def test_a_share_needs_both_numbers_and_batches():
    records = {"prompts": ["a"], "responses": ["b"]}
    with pytest.raises(ValueError, match="go together"):
        ProcessShare(records, 1, index=1)
    with pytest.raises(ValueError, match=r"lie in 0..1. Received: index=2"):
        ProcessShare(records, 1, index=2, count=2)
    with pytest.raises(ValueError, match="come in batches"):
        ProcessShare(np.zeros((2, 2)))


@pytest.mark.backends
def test_a_layout_says_which_axes_there_are():
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])
    with pytest.raises(ValueError, match="no axis 'data'"):
        layout_map(mesh, batch_axis="data")
    layouts = layout_map(mesh, batch_axis="batch")
    axes = {path: layouts[path] and tuple(layouts[path].axes) for path in _PATHS}
    assert axes == _PATHS


# Paths of keras-hub's weights, and the axis that each is spread over.
_PATHS = {
    "token_embedding/embeddings": ("model", "batch"),
    "text_model/embed_tokens/embedding/embeddings": ("model", "batch"),
    "token_embedding/reverse_embeddings": ("batch", "model"),
    "decoder_block_3/attention/query/kernel": ("model", "batch", None),
    "decoder_block_3/attention/key/kernel": None,
    "decoder_block_3/attention/attention_output/kernel": ("model", None, "batch"),
    "decoder_block_3/ffw_gating_2/kernel": ("batch", "model"),
    "text_model/decoder_block_0/mlp/down_proj/kernel": ("model", "batch"),
    "transformer_layer_11/self_attention/query/kernel": ("batch", "model", None),
    "transformer_layer_11/feedforward_gate_dense/kernel": ("batch", "model"),
    "transformer_layer_11/feedforward_output_dense/kernel": ("model", "batch"),
    "image_encoder/encoder_block_0/multi_head_attention/query_proj/kernel": None,
    "position_embedding/embeddings": None,
}


if keras.backend.backend() == "torch":

    def test_a_process_of_torchrun_that_joined_no_others_is_an_error(monkeypatch):
        """It would train a separate model without a warning."""
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        distiller = BetaKDDistiller(linear_model(1), linear_model(2), ForwardKLEnergy())
        distiller.compile()
        x, y = np.zeros((2, 3, 4)), np.zeros((2, 3), "int32")
        with pytest.raises(RuntimeError, match="started 2 processes"):
            distiller.fit(x, y, verbose=0)
