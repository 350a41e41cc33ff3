"""Names of images and questions that are read from files stay in their folder."""

import json

import numpy as np
import pytest
from benchmark_folders import write_benchmark
from PIL import Image

from keras_betakd.data import load_llava, load_scienceqa, load_vqa
from keras_betakd.evaluation.benchmarks.registry import BENCHMARKS

TURNS = [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Hello"}]
QUESTIONS = {
    "gqa": "llava_gqa_testdev_balanced.jsonl",
    "textvqa": "llava_textvqa_val_v051_ocr.jsonl",
    "pope": "llava_pope_test.jsonl",
}


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.png"
    Image.fromarray(np.full((2, 2, 3), 7, "uint8")).save(path)
    return path


def scienceqa(folder, pid="1", split="test", image="image.png", on_error="raise"):
    problem = {
        **{"question": "q", "choices": ["a", "b"], "answer": 0, "hint": ""},
        **{"image": image, "split": split, "subject": "s", "grade": "g"},
    }
    good = {**problem, "image": None, "split": "test"}
    (folder / "images" / "test").mkdir(parents=True, exist_ok=True)
    (folder / "problems.json").write_text(json.dumps({pid: problem, "good": good}))
    (folder / "pid_splits.json").write_text(json.dumps({"test": [pid, "good"]}))
    return load_scienceqa(folder, "test", on_error)


@pytest.mark.parametrize(
    "names",
    [
        {"pid": "../../.."},
        {"pid": ".."},
        {"pid": "a/b"},
        {"pid": "/etc"},
        {"pid": " "},
        {"pid": "..", "split": ".."},
        {"split": "../.."},
        {"split": "/etc"},
        {"split": 5},
        {"image": "../secret.png"},
        {"image": "/etc/hosts"},
        {"image": ["image.png"]},
        {"pid": "..", "image": None},
    ],
)
def test_scienceqa_ids_splits_and_images_are_plain_names(names, tmp_path, secret):
    """An id "../../.." or an absolute one read any file of the machine."""
    pid = names.get("pid", "1")
    with pytest.raises(ValueError, match="must be plain names") as caught:
        scienceqa(tmp_path, **names)
    assert repr(pid) in str(caught.value)
    with pytest.warns(UserWarning, match="Left out 1 of 2"):
        records = scienceqa(tmp_path, **names, on_error="skip")
    assert [record.id for record in records] == ["good"]
    assert records.skipped[0][0] == pid


@pytest.mark.parametrize("link", ["images/test/1/image.png", "images/test/1"])
def test_links_of_scienceqa_stay_in_the_folder(link, tmp_path, secret):
    folder, path = tmp_path / "data", tmp_path / "data" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(secret if link.endswith("png") else tmp_path)
    with pytest.raises(ValueError, match="Record '1'.*leads out of the folder"):
        scienceqa(folder)
    # The folder of all images may be elsewhere: that is where the user put them.
    (tmp_path / "images" / "test" / "1").mkdir(parents=True)
    secret.rename(tmp_path / "images" / "test" / "1" / "image.png")
    other = tmp_path / "other"
    other.mkdir()
    (other / "images").symlink_to(tmp_path / "images")
    assert len(scienceqa(other)) == 2


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("image", ["absolute", "../../secret.png", "link.png", ""])
def test_benchmark_images_stay_in_their_folder(name, image, tmp_path, secret):
    folder = write_benchmark(name, tmp_path / "data", 1)
    path = folder / QUESTIONS[name]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for parent in ("images", "train_images", "val2014"):
        if (folder / parent).is_dir():
            (folder / parent / "link.png").symlink_to(secret)
    lines[0]["image"] = str(secret) if image == "absolute" else image
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=r"name must|leads out") as caught:
        BENCHMARKS[name].load(folder)
    assert f"Record '{lines[0]['question_id']}': " in str(caught.value)


def test_a_category_of_pope_names_no_other_file(tmp_path):
    folder = write_benchmark("pope", tmp_path / "data", 1)
    path = folder / QUESTIONS["pope"]
    path.write_text(path.read_text().replace("adversarial", "../../secret"))
    with pytest.raises(ValueError, match="Question '0': `category` must be one of"):
        BENCHMARKS["pope"].load(folder)


@pytest.mark.parametrize("ending", ["png", "txt"])
def test_links_of_mme_stay_in_the_folder(ending, tmp_path):
    folder = write_benchmark("mme", tmp_path / "data", 1)
    path = folder / "MME_Benchmark_release_version" / "count" / f"0000.{ending}"
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    with pytest.raises(ValueError, match="count/0000.*leads out of the folder"):
        BENCHMARKS["mme"].load(folder)


@pytest.mark.parametrize("image", ["link.png", "up/secret.png", "../secret.png"])
def test_images_of_training_data_stay_in_their_folder(image, tmp_path, secret):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    conversation = {"id": "x", "image": image, "conversations": TURNS}
    with pytest.raises(ValueError, match="Record 'x'.*inside `image_folder`"):
        load_llava([conversation], folder)
    with pytest.warns(UserWarning, match="Left out 1 of 1"):
        assert load_llava([conversation], folder, on_error="skip").skipped
    row = {"image": image, "question": "q", "answer": "a"}
    with pytest.raises(ValueError, match="Record '0'.*inside `image_folder`"):
        load_vqa([row], folder)
    # Without a folder, paths are the user's own.
    (record,) = load_vqa([{**row, "image": str(secret)}])
    assert record.images == (str(secret),)
