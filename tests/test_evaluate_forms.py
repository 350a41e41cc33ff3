"""What a benchmark is asked by: forms of prompts, question files, pixels, languages."""

import io
import json

import keras
import numpy as np
import pytest
from benchmark_folders import write_benchmark
from PIL import Image
from tiny_models import tiny_gemma3

from keras_betakd.data import load_image, load_scienceqa, scienceqa_prompt
from keras_betakd.evaluate import main
from keras_betakd.evaluation import read_jsonl, run
from keras_betakd.evaluation.benchmarks.mmbench import MMBench
from keras_betakd.evaluation.benchmarks.registry import BENCHMARKS
from keras_betakd.mobilevlm import MobileVLMImageConverter

RED, BLUE = (220, 30, 30), (30, 30, 220)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Runs the command; returns its report, and the records that it read."""
    read = []

    def decode(model, prompts, *args, **kwargs):
        for prompt in prompts:
            read.append(prompt)
            yield [(prompt, "B")]

    keras.utils.set_random_seed(0)
    model = tiny_gemma3(sequence_length=320)
    monkeypatch.setattr(run, "load_model", lambda preset, **options: model)
    monkeypatch.setattr(run, "answered_groups", decode)

    def ask(name, folder, *more):
        args = ["--model", "any", "--benchmark", name, "--data", str(folder)]
        code = main([*args, "--output", str(tmp_path / "out"), *more])
        assert code == 0
        lines = read_jsonl(tmp_path / "out" / "answers.jsonl")
        return json.loads((tmp_path / "out" / "report.json").read_text()), lines

    return ask


@pytest.fixture
def scienceqa(tmp_path):
    return write_benchmark("scienceqa", tmp_path / "data", 4)


def test_scienceqa_is_asked_in_the_form_of_published_numbers(asked, scienceqa):
    report, lines = asked("scienceqa", scienceqa)
    assert report["prompt_format"].endswith("in the form llava-1.5")
    assert "\nA. " in lines[0]["prompt"] and "Options:" not in lines[0]["prompt"]


def test_another_form_is_asked_by_its_name(asked, scienceqa, capsys):
    report, lines = asked("scienceqa", scienceqa, "--form", "llava-1.0")
    assert report["prompt_format"].endswith("in the form llava-1.0")
    assert "\nOptions: (A) " in lines[0]["prompt"]
    with pytest.raises(SystemExit):
        main("--model m --benchmark gqa --data d --form llava-1.0".split())
    assert "gqa has one form only" in capsys.readouterr().err


def test_a_question_file_is_asked_by_its_own_text(asked, scienceqa):
    entries = []
    for record in load_scienceqa(scienceqa, "test"):
        text = (
            scienceqa_prompt(record).removeprefix("<image>\n").replace("\nA.", "\n\nA.")
        )
        entry = {"id": record.id}
        if record.image is not None:
            text, entry["image"] = f"{text}\n<image>", f"{record.id}/image.png"
        turns = [
            {"from": "human", "value": text},
            {"from": "gpt", "value": "ABCDE"[record.answer]},
        ]
        entries.append({**entry, "conversations": turns})
    (scienceqa / "llava_test_CQM-A.json").write_text(json.dumps(entries))
    report, lines = asked("scienceqa", scienceqa)
    assert report["prompt_format"].endswith("by the text of the question file")
    assert all("\n\nA. " in line["prompt"] for line in lines)


def turned_png():
    """A file that is 4 x 2 pixels, and 2 x 4 when turned; transparent on the left."""
    image = Image.new("RGBA", (4, 2), (*RED, 255))
    image.putpixel((0, 0), (*BLUE, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


def test_published_pixels_are_those_of_pillow_alone():
    corrected, published = load_image(turned_png()), load_image(turned_png(), True)
    assert (corrected.shape, published.shape) == ((4, 2, 3), (2, 4, 3))
    assert tuple(published[0, 0]) == BLUE
    assert (255, 255, 255) in [tuple(pixel) for row in corrected for pixel in row]
    opened = Image.open(io.BytesIO(turned_png()))
    np.testing.assert_array_equal(published, np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("pixels, size", [("corrected", (4, 2)), ("published", (2, 4))])
def test_the_report_says_which_pixels_were_shown(
    asked, scienceqa, monkeypatch, pixels, size
):
    for path in scienceqa.glob("images/test/*/image.png"):
        path.write_bytes(turned_png())
    shown = []
    load = run.load_image
    monkeypatch.setattr(
        run, "load_image", lambda *args: shown.append(load(*args)) or shown[-1]
    )
    report, _ = asked("scienceqa", scienceqa, "--pixels", pixels)
    assert report["pixels"] == report["settings"]["pixels"] == pixels
    assert {image.shape[:2] for image in shown} == {size}


@pytest.mark.parametrize(
    "name, pixels, expected",
    [
        ("scienceqa", "published", "crop"),
        ("scienceqa", "corrected", "pad"),
        ("gqa", "published", "pad"),
    ],
)
def test_mobilevlm_crops_where_its_published_run_does(
    monkeypatch, name, pixels, expected
):
    class Model:
        preprocessor = type("Preprocessor", (), {})()

        def generate(self):
            raise NotImplementedError

    Model.preprocessor.image_converter = MobileVLMImageConverter((28, 28))
    monkeypatch.setattr(run, "load_model", lambda preset, **options: Model())
    args = type("Args", (), {"model": "m", "dtype": None, "sequence_length": None})
    args.pixels = pixels
    model = run.load_generator(args, BENCHMARKS[name], [])
    assert model.preprocessor.image_converter.aspect_ratio == expected


@pytest.mark.parametrize("name", ["MMBench_DEV_EN.tsv", "mmbench_dev_cn_20231003.tsv"])
def test_mmbench_tables_of_other_names_and_languages(tmp_path, name):
    folder = write_benchmark("mmbench", tmp_path, 2)
    (table,) = folder.glob("mmbench_dev_*.tsv")
    table.rename(folder / name)
    benchmark = MMBench()
    question = benchmark.load(folder)[0]
    prompt = benchmark.prompt(question)
    chinese = "\n请直接回答选项字母。"
    assert prompt.endswith(chinese) == ("_cn" in name)
    assert prompt.endswith("directly.") == ("_cn" not in name)
    assert not benchmark.logged_prompt(question).endswith((chinese, "directly."))
