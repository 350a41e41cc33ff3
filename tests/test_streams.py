"""Streams of records: read once, in order, shuffled in a buffer, out of tar files."""

import io
import json
import tarfile

import datasets
import keras
import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_gemma_text

from keras_betakd import BetaKDDistiller, ForwardKLEnergy, ProcessShare
from keras_betakd.data import load_captions, load_chat, load_vqa, tar_files
from keras_betakd.data.llava_records import read_images
from keras_betakd.preprocessing.adapters import as_dataset
from keras_betakd.preprocessing.batches import BatchFormatter, formatted
from keras_betakd.preprocessing.epochs import FormattedDataset


def png(color=(220, 30, 30)):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
                continue
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard(path, first, count=3, **options):
    """A shard as img2dataset writes it."""
    members = []
    for number in range(first, first + count):
        key, text = f"{number:06d}", f"Picture {number}."
        meta = {"caption": text, "url": "https://x.org/a.jpg", "key": key}
        members += [(f"{key}.jpg", png()), (f"{key}.json", json.dumps(meta))]
        members += [(f"{key}.txt", text)]
    return write_tar(path, members, **options)


def ids(records):
    return [record.id for record in records]


# --- Tar files ---


def test_captions_out_of_tar_files(tmp_path):
    shard(tmp_path / "00001.tar", 3)
    shard(tmp_path / "00000.tar", 0)
    expected = [f"{number:06d}" for number in range(6)]
    sources = [tmp_path, tmp_path / "*.tar"]
    sources.append([tmp_path / "00000.tar", tmp_path / "00001.tar"])
    for source in sources:
        stream = load_captions(source, prompt="Describe.")
        assert ids(stream) == ids(stream) == expected  # a second pass is the same
    record = next(iter(stream))
    assert record.prompts == ("<image>\nDescribe.",)
    assert record.responses == ("Picture 0.",)
    assert tuple(read_images(record)[0][0, 0].tolist()) == (220, 30, 30)
    zipped = shard(tmp_path / "zipped.tar.gz", 0, mode="w:gz")
    assert ids(load_captions(zipped)) == expected[:3]


def test_a_tar_file_without_members_is_named(tmp_path):
    stream = load_captions(write_tar(tmp_path / "a.tar", []))
    with pytest.raises(ValueError, match=r"no records in the tar files \['.*a\.tar'\]"):
        list(stream)


def test_conversations_out_of_tar_files(tmp_path):
    turns = [{"role": "user", "content": "<image> or <image>?"}]
    turns.append({"role": "assistant", "content": "Both."})
    members = [("a/7.0.jpg", png()), ("a/7.1.jpg", png((0, 0, 255)))]
    members += [("a/7.json", json.dumps({"messages": turns, "image": "old/7.jpg"}))]
    members += [("a/7.cls", "3"), ("a/7.npy", "features")]
    (record,) = load_chat(write_tar(tmp_path / "a.tar", members))
    assert (record.id, len(record.images)) == ("a/7", 2)
    assert read_images(record)[1][0, 0].tolist() == [0, 0, 255]


ENDINGS = ("image.png", "left.jpg", "v1.0.png", "ppm", "jp2", "jfif", "tga", "PPM")


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_image_of_a_tar_file_is_seen(ending, tmp_path):
    """Those with other endings were left out, and their text was trained blind."""
    row = json.dumps({"question": "What?", "answer": "A cat."})
    members = [(f"7.{ending}", png()), ("7.json", row)]
    (record,) = load_vqa(write_tar(tmp_path / "a.tar", members))
    assert read_images(record)[0][0, 0].tolist() == [220, 30, 30]


def test_one_of_two_images_is_named(tmp_path):
    members = [("7.a.png", png()), ("7.b.png", png((0, 0, 255))), ("7.txt", "A.")]
    path = write_tar(tmp_path / "a.tar", members)
    (record,) = load_captions(path, image_column="b.png")
    assert read_images(record)[0][0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("names", ["0.json 1.json 0.png 1.png", "0.png 0.txt 1.png"])
def test_an_image_without_text_is_never_skipped(names, tmp_path):
    """Of a tar file that is not grouped, the texts were trained blind."""
    row = json.dumps({"question": "What?", "answer": "A cat.", "caption": "A cat."})
    contents = {"json": row, "png": png(), "txt": "A cat."}
    members = [(name, contents[name.split(".")[1]]) for name in names.split()]
    path = write_tar(tmp_path / "a.tar", members)
    for load in (load_vqa, load_captions):
        with pytest.raises(ValueError, match="must follow one another"):
            list(load(path, on_error="skip"))


def test_what_tools_put_around_texts_and_files(tmp_path):
    """The end of a line was trained, and macOS' notes were records."""
    members = [("._7.png", b"x"), ("7.png", png()), ("7.txt", "A cat.\r\n")]
    members += [("7.json", json.dumps({"caption": "A cat. "})), (".DS_Store", b"x")]
    (record,) = load_captions(write_tar(tmp_path / "a.tar", members))
    assert record.responses == ("A cat. ",)
    (record,) = load_captions(write_tar(tmp_path / "a.tar", members[:3]))
    assert record.responses == ("A cat.",)


def link(kind):
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "members, reason",
    [
        ([("7.jpg", link(tarfile.SYMTYPE))], "regular file, no link"),
        ([("7.jpg", link(tarfile.LNKTYPE))], "regular file, no link"),
        ([("7.jpg", link(tarfile.CHRTYPE))], "regular file, no link"),
        ([("7.jpg", png()), ("7.txt", "x" * 2000)], "2000 bytes, more than the 1000"),
        ([("7.jpg", png()), ("7.json", "{")], "Record '7' of .*a.tar"),
        ([("7.jpg", png()), ("7.json", "[]")], "must hold an object"),
        ([("7.jpg", png()), ("7.txt", b"\xff")], "Record '7' of .*utf-8"),
        ([("7.jpg", png()), ("7.txt", "a"), ("7.txt", "b")], "two members"),
        ([("7.jpg", png()), ("7.cls", "3")], "one caption"),
        ([("7.txt", "A.")], "needs one image"),
        # These were trained as text alone, or on one of two images.
        ([("7.heic", "x"), ("7.txt", "A.")], "'heic' is of a kind that cannot be"),
        ([("7.image.npy", "x"), ("7.txt", "A.")], "'image.npy' is of a kind that"),
        ([("7.jpg", png()), ("7.png", png()), ("7.txt", "A.")], "there are two images"),
        ([("7.jpg", png()), ("7.b.png", png()), ("7.txt", "A.")], "under 'b.png' is"),
        ([("7.a.png", png()), ("7.b.png", png()), ("7.txt", "A.")], "'a.png' is not r"),
        ([("7.mp4", "x"), ("7.txt", "A.")], "video and audio are not read"),
    ],
)
def test_members_that_cannot_be_used(members, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(tar_files, "MAX_MEMBER_BYTES", 1000)
    ok = [("8.jpg", png()), ("8.txt", "A.")]
    path = write_tar(tmp_path / "a.tar", [*members, *ok])
    with pytest.raises(ValueError, match=reason):
        list(load_captions(path))
    stream = load_captions(path, on_error="skip")
    with pytest.warns(UserWarning, match="Left out a record of a stream"):
        assert ids(stream) == ["8"]
    assert stream.num_skipped == len(stream.skipped) == 1


def test_files_that_are_no_tar_files(tmp_path):
    path = shard(tmp_path / "a.tar", 0)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="a.tar' cannot be read to its end"):
        list(load_captions(path))
    whole = shard(tmp_path / "b.tar", 3)
    with pytest.warns(UserWarning, match="a.tar' cannot be read to its end"):
        assert len(ids(load_captions([path, whole], on_error="skip"))) == 3
    path.write_bytes(b"no tar file")
    with pytest.raises(ValueError, match="a.tar' cannot be read to its end"):
        list(load_captions(path))
    with pytest.raises(FileNotFoundError, match="no tar file at this path"):
        load_captions(tmp_path / "b-*.tar")
    (tmp_path / "a.parquet").write_text("")
    with pytest.raises(ValueError, match="not both"):
        load_captions(tmp_path)


# --- Streams of rows ---


def rows(count):
    return [{"image": None, "question": f"{n}?", "answer": n} for n in range(count)]


def test_a_stream_is_read_as_it_is_needed():
    read = []

    def source():
        for row in rows(100):
            read.append(row)
            yield row

    stream = load_vqa(source())
    assert read == []
    records = iter(stream)
    assert [next(records).id for _ in range(3)] == ["0", "1", "2"]
    assert len(read) == 3
    with pytest.raises(ValueError, match="An iterator can be read once"):
        list(stream)


def test_a_stream_of_hugging_face_is_shuffled_in_a_buffer():
    table = datasets.Dataset.from_list(rows(50)).to_iterable_dataset()
    stream = load_vqa(table)
    assert ids(stream) == [str(n) for n in range(50)]
    shuffled = stream.shuffled(8, seed=1)
    first, second = ids(shuffled.records(0)), ids(shuffled.records(1))
    assert sorted(first) == sorted(second) == sorted(ids(stream))
    assert first != second != ids(stream)
    assert ids(shuffled.records(1)) == second, "a resumed training sees another order"
    assert min(map(int, first[20:])) >= 0 and max(map(int, first[:1])) < 8
    with pytest.raises(ValueError, match="buffer_size=0"):
        stream.shuffled(0)


def test_marks_without_image_in_a_stream():
    # Of a stream not all records are known, so each one is refused.
    row = {"messages": [{"role": "user", "content": "<image>?"}]}
    row["messages"].append({"role": "assistant", "content": "a"})
    with pytest.raises(ValueError, match="Record '0': its text has marks of images"):
        list(load_chat(iter([row])))


def test_a_stream_of_something_else_is_not_skipped_for_ever():
    source = ({"a": n} for n in range(1000))
    with pytest.warns(UserWarning, match="Left out a record"):
        with pytest.raises(ValueError, match="None of the first 100 records"):
            list(load_chat(source, on_error="skip"))


# --- Training ---


def seen(dataset, epochs):
    """The ids that each epoch of a `FormattedDataset` of raw records trains on."""
    found = []
    for epoch in epochs:
        dataset.start_epoch(epoch)
        found.append([name for batch in dataset for name in batch["ids"]])
    return found


def epochs_of(stream, steps=None):
    return FormattedDataset(as_dataset(stream, 4), lambda batch, _: batch, steps=steps)


def table(count):
    return datasets.Dataset.from_list(rows(count)).to_iterable_dataset()


def test_epochs_of_a_stream_are_whole_or_go_on_where_the_last_ended():
    stream = load_vqa(table(10)).shuffled(5)
    passes = [ids(stream.records(n)) for n in range(3)]
    assert seen(epochs_of(stream), range(3)) == passes
    parts = seen(epochs_of(stream, steps=2), range(4))
    assert parts == [passes[0][:8], passes[0][8:], passes[1][:8], passes[1][8:]]


@pytest.mark.parametrize("steps", [None, 2])
def test_a_resumed_training_sees_the_same_records(steps):
    stream = load_vqa(table(10)).shuffled(5)
    whole = seen(epochs_of(stream, steps), range(4))
    resumed = epochs_of(stream, steps)
    next(iter(resumed))  # Keras looks at a batch before it trains.
    assert seen(resumed, [2, 3]) == whole[2:]


def test_shares_of_a_stream():
    shares = [ProcessShare(load_vqa(table(6)), 4, index=i, count=2) for i in range(2)]
    first = [share[0]["ids"] for share in shares]
    assert first == [["0", "1"], ["2", "3"]]


def test_errors_name_the_record_and_its_place():
    def preprocessor(records):
        raise ValueError(records.places[1])

    dataset, _, _ = formatted(
        load_vqa(table(6)), batch_size=4, formatter=BatchFormatter(preprocessor)
    )
    with pytest.raises(ValueError, match="number 5 of the pass"):
        dataset[1]


@pytest.mark.backends
def test_fit_takes_a_stream():
    model = BetaKDDistiller(tiny_gemma_text(), tiny_gemma_text(), ForwardKLEnergy())
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    source = [{"image": None, "question": "a?", "answer": a} for a in "abcdefgh"]
    expected = model.evaluate(load_vqa(source), batch_size=2, verbose=0)
    stream = load_vqa(datasets.Dataset.from_list(source).to_iterable_dataset())
    received = model.evaluate(stream, batch_size=2, verbose=0)
    np.testing.assert_allclose(received, expected, rtol=1e-6)
    options = {"batch_size": 2, "steps_per_epoch": 2, "epochs": 2, "verbose": 0}
    history = model.fit(stream.shuffled(3), **options).history
    assert len(history["loss"]) == 2
