"""Several sources with shares of each epoch."""

import collections
import pickle

import numpy as np
import pytest

from keras_betakd import ProcessShare
from keras_betakd.data import (
    EpochParts,
    LlavaRecord,
    MixedDataset,
    ScienceQARecord,
    load_vqa,
)

IMAGE = np.zeros((2, 2, 3), "uint8")
SIZES = {"a": 10, "b": 100, "c": 4}


def records(name, size, images=()):
    return [LlavaRecord(str(n), ["?"], [name], images) for n in range(size)]


def sources(**sizes):
    return {name: records(name, size) for name, size in (sizes or SIZES).items()}


def epochs(dataset, numbers):
    """The ids of epochs, batch by batch."""
    found = []
    for number in numbers:
        dataset.start_epoch(number)
        found.append([batch["ids"] for batch in dataset])
    return found


def flat(epoch):
    return [name for batch in epoch for name in batch]


def test_an_epoch_has_the_shares_and_no_record_comes_twice_before_all_came():
    shares = {"a": 1, "b": 2, "c": 1}
    dataset = MixedDataset(sources(), 4, shares, epoch_size=8, seed=3)
    found = epochs(dataset, range(50))
    for epoch in found:
        assert [len(batch) for batch in epoch] == [4, 4]
        counts = collections.Counter(name[0] for name in flat(epoch))
        assert counts == {"a": 2, "b": 4, "c": 2}
    for name, size in SIZES.items():
        seen = [own for epoch in found for own in flat(epoch) if own[0] == name]
        laps = [seen[i : i + size] for i in range(0, len(seen) - size + 1, size)]
        assert len(laps) >= 2
        assert all(len(set(lap)) == size for lap in laps)
        assert name == "c" or laps[0] != laps[1]


def test_without_shares_an_epoch_is_one_pass_over_all():
    dataset = MixedDataset(sources(), 8)
    first, second = epochs(dataset, range(2))
    assert len(set(flat(first))) == sum(SIZES.values())
    assert sorted(flat(first)) == sorted(flat(second)) != flat(first)
    assert first != second


def test_the_order_depends_on_seed_and_epoch_alone():
    options = {"shares": {"a": 1, "b": 1, "c": 1}, "epoch_size": 12}
    whole = epochs(MixedDataset(sources(), 4, seed=1, **options), range(6))
    # A training that is resumed, in another process.
    again = pickle.loads(pickle.dumps(MixedDataset(sources(), 4, seed=1, **options)))
    assert epochs(again, [4, 5]) == whole[4:]
    assert epochs(MixedDataset(sources(), 4, seed=2, **options), range(6)) != whole
    parts = EpochParts(MixedDataset(sources(), 4, seed=1, **options), 3)
    assert [batch for (batch,) in epochs(parts, range(6))] == whole[0] + whole[1]
    dataset = MixedDataset(sources(), 4, seed=1, **options)
    share = ProcessShare(dataset, index=1, count=2)
    assert share[0]["ids"] == whole[0][0][2:]


def test_batches_of_one_modality():
    mix = {"seen": records("seen", 20, [IMAGE]), "text": records("text", 20)}
    mix["text"] = [LlavaRecord(r.id, ["?"], r.responses) for r in mix["text"]]
    dataset = MixedDataset(mix, 4, group_by_modality=True)
    assert {len(set(map(len, batch["images"]))) for batch in dataset} == {1}
    assert len(dataset) == 10


def test_records_of_every_loader():
    question = ScienceQARecord("4", "A mammal?", ("cat", "trout"), 0)
    rows = [{"image": None, "question": "2 + 2?", "answer": 4}]
    dataset = MixedDataset({"sqa": [question], "vqa": load_vqa(rows)}, 2)
    (batch,) = dataset
    assert sorted(batch["ids"]) == ["sqa/4", "vqa/0"]
    assert sorted(batch["responses"]) == ["4", "A"]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"sources": {}}, ValueError, "at least one"),
        ({"sources": [records("a", 2)]}, ValueError, "dict of names and records"),
        ({"sources": {"a": []}}, ValueError, "source 'a' has no records"),
        ({"sources": {"a": load_vqa(iter([]))}}, TypeError, "'a' is a stream"),
        ({"sources": {"a": "a.json"}}, TypeError, "records of a loader.*str"),
        ({"sources": {"a": ["?"]}}, ValueError, "one of the loaders"),
        ({"shares": {"a": 1}}, ValueError, r"shares of \['a'\], sources"),
        ({"shares": {"a": 1, "b": 0, "c": 1}}, ValueError, "positive.*0 for 'b'"),
        ({"shares": {"a": 1, "b": np.nan, "c": 1}}, ValueError, "positive.*nan"),
        ({"epoch_size": 2}, ValueError, "share of 'a' in an epoch is no record"),
        ({"epoch_size": 0}, ValueError, "epoch_size=0"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
    ],
)
def test_impossible_mixes(arguments, error, message):
    with pytest.raises(error, match=message):
        MixedDataset(**{"sources": sources(), "batch_size": 2, **arguments})
