"""LLaVA's training format: the loader and its batches."""

import copy
import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_betakd import ProcessShare
from keras_betakd.data.llava import LlavaDataset
from keras_betakd.data.llava_files import load_llava
from keras_betakd.data.llava_records import LlavaRecord, read_images


def talk(*texts, first="human"):
    other = {"human": "gpt", "gpt": "human"}[first]
    return [
        {"from": (first, other)[i % 2], "value": text} for i, text in enumerate(texts)
    ]


def item(*texts, **fields):
    return {"id": "x", "conversations": talk(*(texts or ("Hi", "Hello!"))), **fields}


def only(entry, folder=None):
    (record,) = load_llava([entry], folder)
    return record


@pytest.fixture
def folder(tmp_path):
    """Three images of different size and mode."""
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (4, 3), (9, 8, 7)).save(tmp_path / "a.png")
    Image.new("LA", (2, 5), (255, 0)).save(tmp_path / "sub" / "b.png")
    Image.new("CMYK", (6, 2)).save(tmp_path / "c.jpg")
    return tmp_path


ITEMS = [
    item("<image>\nWhat is it?", "A cat.", id="1", image="a.png"),
    item("Hi", "Hello!", "How?", "Well.", id="2"),
    item("<image> and <image>?", "Two.", id="3", image=["sub/b.png", "c.jpg"]),
]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("lines", [False, True])
def test_json_and_jsonl_are_told_by_their_content(folder, name, encoding, lines):
    items = [*ITEMS, item("\u2028 in a line", "\u00fc\x85")]
    dumped = [json.dumps(entry, ensure_ascii=False) for entry in items]
    text = "\r\n".join([*dumped, "", ""]) if lines else f"\n[{', '.join(dumped)}]"
    (folder / name).write_bytes(text.encode(encoding))
    records = load_llava(folder / name, folder)
    assert list(records) == list(load_llava(items, folder))
    assert [record.id for record in records] == ["1", "2", "3", "x"]
    # `str.splitlines` would have cut this record in two.
    assert records[3].prompts == ("\u2028 in a line",)
    assert records.skipped == ()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"{", "line 1"),
        (b'{"id": "x"}', "'conversations'"),
        (b"[{}", "JSON list"),
        (b"7", "Record '0'.*must be a dict"),
        ("[]".encode("utf-16"), "UTF-8"),
        (b"[" * 100_000, "JSON list"),
    ],
)
def test_a_file_of_something_else(tmp_path, data, message):
    path = tmp_path / "data.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_llava(path)


def test_invalid_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.json"):
        load_llava(tmp_path / "no.json")
    with pytest.raises(FileNotFoundError, match="`image_folder`.*'no'"):
        load_llava([], "no")
    with pytest.raises(TypeError, match="int"):
        load_llava(7)
    with pytest.raises(ValueError, match="on_error='ignore'"):
        load_llava([], on_error="ignore")


def test_turns_and_images_of_a_record(folder):
    first, second, third = load_llava(ITEMS, folder)
    assert first.prompts == ("<image>\nWhat is it?",)
    assert first.images == (str(folder / "a.png"),)
    assert (second.prompts, second.responses) == (("Hi", "How?"), ("Hello!", "Well."))
    assert second.images == ()
    assert [image.shape for image in read_images(third)] == [(5, 2, 3), (2, 6, 3)]


def test_other_names_of_speakers_and_a_first_turn_of_gpt():
    turns = talk("I start.", "Hi", "Hello!", first="gpt")
    turns[1]["from"], turns[2]["from"] = "user", "assistant"
    record = only({"conversations": turns})
    assert (record.prompts, record.responses) == (("Hi",), ("Hello!",))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"conversations": talk("Hi")}, "needs an answer"),
        ({"conversations": []}, "needs an answer"),
        ({"conversations": talk("Hi", first="gpt")}, "needs an answer"),
        ({"conversations": talk("a", "b", "c")}, "needs an answer"),
        ({"conversations": talk("a", "b") + talk("c", first="gpt")}, "take turns"),
        ({"conversations": talk("a") + talk("b")}, "take turns"),
        ({"conversations": None}, "'conversations'"),
        ({"conversations": "Hi"}, "'conversations'"),
        ({"conversations": ["Hi", "Hello!"]}, "turn 0 must be a dict"),
        ({"conversations": [{"from": "human"}]}, "turn 0.*'value'"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, "turn 0.*'from'"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, "turn 0.*'from'"),
        ({"conversations": talk("Hi", None)}, "turn 1.*a string"),
        ({"conversations": talk("Hi", " \n")}, "`responses` must not be empty"),
        ({"conversations": talk("", "Hello!")}, "`prompts` must not be empty"),
        ({"image": 7}, "an image must be"),
        ({"image": {"path": None}}, "an image must be"),
        # Text where bytes belong must not be taken for a path.
        ({"image": {"bytes": "iVBORw0KGgo="}}, "an image must be"),
        # Read as text alone, the images would be lost in silence.
        ({"images": ["a.png"]}, "'image'"),
        ({"video": "a.mp4"}, "'image'"),
    ],
)
def test_an_invalid_record_is_named(changes, message):
    with pytest.raises(ValueError, match=f"Record 'x': .*{message}.*Received: "):
        load_llava([item(**changes)])
    del (unnamed := item(**changes))["id"]
    with pytest.raises(ValueError, match="Record '1': "):
        load_llava([item(), unnamed])


def test_ids_are_made_unique():
    # LLaVA's public mixes repeat ids, which must not stop a run.
    given_ids = ["a", "a#2", "a", None, "a", 7, "3", "a#2"]
    records = load_llava([item(id=own_id) for own_id in given_ids])
    assert [record.id for record in records] == [
        *("a", "a#2", "a#3", "3", "a#4", "7", "3#2", "a#2#2")
    ]
    for invalid in (True, 1.5, ["a"]):
        with pytest.raises(ValueError, match="Record '1': `id`"):
            load_llava([item(), item(id=invalid)])


def test_a_single_image_without_a_mark_gets_one(folder):
    # LLaVA's trainers lose the image of such a record.
    record = only(item(" Hi", "Hello!", "Why?", "So.", image="a.png"), folder)
    assert record.prompts == ("<image>\n Hi", "Why?")


def test_the_mark_may_stand_in_a_later_turn(folder):
    record = only(item("Hi", "Hello!", "This <image>?", "So.", image="a.png"), folder)
    assert record.prompts == ("Hi", "This <image>?")


@pytest.mark.parametrize("marks, images", [(2, 1), (1, 2), (3, 2), (0, 2)])
def test_marks_and_images_must_agree(folder, marks, images):
    # Reported bug: the difference was found by the model, in the middle of a run.
    entry = item("<image>" * marks + "?", "A.", image=["a.png"] * images)
    received = f"Record 'x'.*Received: {marks} marks, {images} images"
    with pytest.raises(ValueError, match=received):
        load_llava([entry], folder)


def test_marks_that_mean_no_image_are_neutralized(folder):
    # Reported bug: literal marks in user text counted as images.
    texts = ("  <image>a  b <IMAGE> <|im_end|>[img] x<y ", "See <image>. ")
    record = only(item(*texts, image="a.png"), folder)
    assert record.prompts == ("  <image>a  b < IMAGE> < |im_end|>[ img] x<y ",)
    assert record.responses == ("See < image>. ",)
    with pytest.warns(UserWarning, match="1 records without image have marks.*'y'"):
        _, record = load_llava([item(image="a.png"), item(*texts, id="y")], folder)
    assert record.prompts == ("  < image>a  b < IMAGE> < |im_end|>[ img] x<y ",)
    assert LlavaRecord("y", record.prompts, record.responses) == record


def test_images_of_every_mode_from_every_source(folder):
    # Reported bug: a loader that expected an image got a dict or bytes instead.
    file = io.BytesIO()
    Image.new("P", (3, 3)).save(file, "PNG")
    data = file.getvalue()
    sources = [
        data,
        {"bytes": data, "path": "gone.png"},
        {"bytes": None, "path": "sub/b.png"},
        Image.new("1", (3, 3)),
        np.zeros((3, 3), "uint16"),
        folder / "c.jpg",
    ]
    entry = item("<image>" * 5, "Five.", image=sources[:5])
    images = read_images(only(entry, folder))
    assert all(p.dtype == np.uint8 and p.shape[-1] == 3 for p in images)
    assert (images[2] == 255).all()  # Fully transparent.
    assert only(item(image=sources[5])).images == (str(folder / "c.jpg"),)


@pytest.mark.parametrize("path", ["../a.png", "sub/../../a.png", "/etc/a.png"])
def test_paths_must_not_leave_the_folder(folder, path):
    with pytest.raises(ValueError, match="Record 'x'.*inside `image_folder`"):
        load_llava([item(image=path)], folder / "sub")


def test_a_path_may_turn_inside_the_folder(folder):
    assert only(item(image="sub/../a.png"), folder).images == (str(folder / "a.png"),)
    outside = str(folder / "sub" / ".." / "a.png")
    assert only(item(image=outside)).images == (outside,)


def test_missing_images(folder):
    # Reported bug: a missing file was found only in the middle of the run.
    items = [*ITEMS, item(image="gone.png"), item(image="lost.png"), ITEMS[0]]
    with pytest.raises(FileNotFoundError, match="Record 'x'.*gone.png"):
        load_llava(items, folder)
    with pytest.warns(UserWarning, match="Left out 2 of 6 .*: 'x', 'x#2'") as caught:
        records = load_llava(items, folder, on_error="skip")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [record.id for record in records] == ["1", "2", "3", "1#2"]
    assert "lost.png" in dict(records.skipped)["x#2"]
    with pytest.raises(ValueError, match="Record 'x'.*regular file"):
        load_llava([item(image="sub")], folder)


def test_records_of_every_kind_that_cannot_be_used_are_skipped(folder):
    # Reported bug: one empty answer among 665,000 records refused them all.
    invalid = [
        item("Hi", " ", id="empty"),
        item("Hi", "Hello!", "Bye", id="odd"),
        item(id="marks", image=["a.png", "c.jpg"]),
        item(id="gone", image="gone.png"),
        item(id="folder", image="sub"),
        item(id="outside", image="../a.png"),
        item(id="key", images=["a.png"]),
        item(id=1.5),
        "no dict",
        item(id="empty", conversations=None),
    ]
    for entry in invalid:
        with pytest.raises((ValueError, FileNotFoundError)):
            load_llava([entry], folder)
    items = [ITEMS[0], *invalid, *ITEMS[1:], item(id="empty")]
    with pytest.warns(UserWarning, match="10 of 14 .*'empty', 'odd'") as caught:
        records = load_llava(items, folder, on_error="skip")
    assert len(caught) == 1
    ids = ["empty", "odd", "marks", "gone", "folder", "outside", "key"]
    assert [own_id for own_id, _ in records.skipped] == [*ids, "8", "9", "empty#2"]
    for own_id, reason in records.skipped:
        assert f"Record {own_id!r}: " in reason
    # The others have the ids that they have where all are read.
    assert [record.id for record in records] == ["1", "2", "3", "empty#3"]
    assert len(LlavaDataset(records, batch_size=2)) == 2


def test_lines_that_are_no_json_are_skipped(folder):
    path = folder / "data.jsonl"
    lines = [json.dumps(item(id=None)), '{"id": "cut', "[" * 9000, json.dumps(item())]
    path.write_text("\n\n".join(lines))
    with pytest.raises(ValueError, match="one JSON record a line.*file line 3"):
        load_llava(path)
    with pytest.warns(UserWarning, match="2 of 4 .*'1', '2'"):
        records = load_llava(path, on_error="skip")
    assert [record.id for record in records] == ["0", "x"]
    assert "data.jsonl' (file line 3: " in dict(records.skipped)["1"]
    # A file none of whose lines is JSON is no file of records.
    path.write_text("id\nx")
    with pytest.raises(ValueError, match="one JSON record a line.*file line 1"):
        load_llava(path, on_error="skip")


def test_a_data_set_of_records_that_were_all_skipped(folder):
    with pytest.warns(UserWarning, match="1 of 1"):
        records = load_llava([item("Hi", "")], folder, on_error="skip")
    with pytest.raises(ValueError, match="at least one record.*all skipped"):
        LlavaDataset(records, batch_size=2)


def test_the_warning_stays_short(folder):
    items = [item(id=i, image="gone.png") for i in range(30)]
    with pytest.warns(UserWarning, match="30 of 30.*'9', ") as caught:
        load_llava(items, folder, on_error="skip")
    assert "'10'" not in str(caught[0].message)


def test_batches(folder):
    dataset = LlavaDataset(load_llava(ITEMS, folder), batch_size=2)
    assert len(dataset) == 2
    first, last = dataset
    assert first["ids"] == ["1", "2"]
    assert first["prompts"] == ["<image>\nWhat is it?", ["Hi", "How?"]]
    assert first["responses"] == ["A cat.", ["Hello!", "Well."]]
    assert [len(images) for images in first["images"]] == [1, 0]
    np.testing.assert_array_equal(first["images"][0][0][0, 0], (9, 8, 7))
    assert [image.shape for image in last["images"][0]] == [(5, 2, 3), (2, 6, 3)]
    with pytest.raises(IndexError, match="index=2"):
        dataset[2]


def test_an_image_that_breaks_later_is_named(folder):
    dataset = LlavaDataset(load_llava(ITEMS, folder), batch_size=3)
    (folder / "a.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="Record '1'.*a.png"):
        dataset[0]
    (folder / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="Record '1'.*a.png"):
        dataset[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"records": []}, "at least one record"),
    ],
)
def test_impossible_options(options, message):
    options = {"records": many(3), "batch_size": 2, **options}
    with pytest.raises(ValueError, match=message):
        LlavaDataset(**options)


def test_raw_records_are_no_records():
    with pytest.raises(TypeError, match="`load_llava`.*dict"):
        LlavaDataset([item()], batch_size=2)


IMAGE = np.zeros((2, 2, 3), "uint8")


def many(texts, with_image=0, seed=0):
    """Records "0", "1", ... of random lengths, some with an image, in random order."""
    generator = np.random.default_rng(seed)
    counts = generator.permutation([0] * texts + [1] * with_image)
    lengths = generator.integers(1, 200, len(counts))
    return [
        LlavaRecord(str(i), ["q"], ["a" * int(length)], [IMAGE] * int(count))
        for i, (count, length) in enumerate(zip(counts, lengths, strict=True))
    ]


def ids_of_epochs(dataset, epochs=1):
    result = []
    for _ in range(epochs):
        result.append([batch["ids"] for batch in dataset])
        dataset.on_epoch_end()
    return result


@pytest.mark.parametrize("group", [False, True])
def test_order_depends_on_seed_and_epoch_only(group):
    def epochs(seed):
        options = {"shuffle": True, "seed": seed, "group_by_modality": group}
        return ids_of_epochs(LlavaDataset(many(20, 15), 4, **options), 3)

    assert epochs(1) == epochs(1)
    assert epochs(1) != epochs(2)
    first, second, third = epochs(1)
    assert first != second != third
    everything = sorted(map(str, range(35)))
    for epoch in epochs(1):
        assert sorted(sum(epoch, [])) == everything


def test_without_shuffling_every_epoch_keeps_the_order():
    expected = [["0", "1"], ["2", "3"], ["4"]]
    assert ids_of_epochs(LlavaDataset(many(5), 2), 2) == [expected, expected]


def test_a_pickled_copy_goes_on_where_the_original_was():
    dataset = LlavaDataset(many(9), 2, shuffle=True, seed=1)
    dataset.on_epoch_end()
    twin = pickle.loads(pickle.dumps(dataset))
    assert ids_of_epochs(twin, 2) == ids_of_epochs(dataset, 2)


@pytest.mark.parametrize("shuffle", [False, True])
def test_groups_are_pure_and_of_like_length(shuffle):
    records = many(403, 398)
    lengths = {r.id: len(r.prompts[0] + r.responses[0]) for r in records}
    plain = LlavaDataset(records, 4, shuffle)
    grouped = LlavaDataset(records, 4, shuffle, group_by_modality=True)
    for batch in grouped:
        assert len({len(images) for images in batch["images"]}) == 1

    def spread(dataset):
        return np.mean([np.ptp([lengths[i] for i in b["ids"]]) for b in dataset])

    assert spread(grouped) < spread(plain) / 5
    assert len(grouped) == 101 + 100


def test_shuffled_groups_come_mixed():
    dataset = LlavaDataset(many(40, 40), 4, True, group_by_modality=True)
    kinds = [len(batch["images"][0]) for batch in dataset]
    assert sum(a != b for a, b in zip(kinds, kinds[1:], strict=False)) > 3


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("texts, with_image", [(17, 11), (1, 1), (8, 8), (0, 5)])
def test_shards_march_in_step(shuffle, group, texts, with_image):
    # Reported bug: one process with text alone waited for another's vision tower.
    options = {"batch_size": 5, "shuffle": shuffle, "group_by_modality": group}
    records = many(texts, with_image)
    whole = LlavaDataset(records, seed=3, **options)
    shares = [
        ProcessShare(LlavaDataset(records, seed=3, **options), index=i, count=4)
        for i in range(4)
    ]
    for _ in range(2):
        seen = []
        for index, batch in enumerate(whole):
            step = [share[index] for share in shares]
            assert len({len(part["ids"]) for part in step}) == 1
            if group:
                assert len({len(i) for part in step for i in part["images"]}) == 1
            ids = np.concatenate([part["ids"] for part in step])
            weights = np.concatenate([part["sample_weight"] for part in step])
            assert ids[weights > 0].tolist() == batch["ids"]
            seen += batch["ids"]
        assert sorted(seen) == sorted(record.id for record in records)
        for dataset in (whole, *shares):
            dataset.on_epoch_end()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=4,
) | st.sampled_from(["<image>", "human", "gpt", "a.png", "../a.png", "sub"])


def places(value):
    """Each container inside a nested value, with each of its keys."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@settings(max_examples=150)
@given(st.data())
def test_mutated_records_are_valid_or_refused(folder, data):
    entries = copy.deepcopy(ITEMS)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(list(places(entries))))
        if data.draw(st.booleans()):
            del container[key]
        else:
            container[key] = data.draw(JSON_VALUES)
        if not any(places(entries)):
            break
    try:
        records = load_llava(entries, folder)
    except (ValueError, FileNotFoundError):
        return
    assert len({record.id for record in records}) == len(records)
    for record in records:
        assert len(record.prompts) == len(record.responses) >= 1
        assert "".join(record.prompts).count("<image>") == len(record.images)
        assert len(read_images(record)) == len(record.images)


@settings(max_examples=100)
@given(st.data())
def test_a_file_with_a_hole_is_valid_or_refused(folder, data):
    text = "\n".join(map(json.dumps, ITEMS)).encode()
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    (folder / "data.jsonl").write_bytes(text[:start] + text[stop:])
    try:
        load_llava(folder / "data.jsonl", folder)
    except (ValueError, FileNotFoundError):
        return
