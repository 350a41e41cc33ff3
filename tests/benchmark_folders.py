"""Writes a tiny data set of each benchmark, in its published files."""

import base64
import io
import json

import numpy as np
from benchmark_golden import write_jsonl
from PIL import Image
from scienceqa_folder import COLORS, write_folder

from keras_betakd.evaluation import MME_COGNITION, MME_PERCEPTION, POPE_CATEGORIES

SUFFIX = "\nAnswer the question using a single word or phrase."
APART = ("artwork", "celebrity", "landmark", "posters", "scene")
# The right answer to a question, as a model would give it.
RIGHT = {
    "scienceqa": lambda question: "ABCDE"[question.answer],
    "gqa": lambda question: question.answer,
    "textvqa": lambda question: question.answers[0],
    "pope": lambda question: question.label,
    "mme": lambda question: question.answer,
    "mmbench": lambda question: question.answer,
}


def write_benchmark(name, folder, num):
    """Writes the files of a benchmark to `folder`, and returns it.

    The right answers are colours, yes or no, or letters. `num` is the number of
    questions; in MME that of images a task, in POPE that of questions a category,
    in MMBench that of questions, each in two rotations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _WRITERS[name](folder, num)
    return folder


def _scienceqa(folder, num):
    write_folder(folder, num=num, split_sizes={"test": num})


def _gqa(folder, num):
    lines, annotations = [], {}
    for k in range(num):
        text, answer = _colored_question(k)
        image = _image(folder / "images", f"n{k}.jpg", k)
        lines.append({"question_id": str(200 + k), "image": image, "text": text})
        annotations[str(200 + k)] = {
            "question": text,
            "answer": answer,
            "isBalanced": True,
            "types": {"structural": "query" if k % 2 else "verify", "semantic": "attr"},
            "groups": {"global": "color" if k % 2 else None},
            "semantic": [{"operation": "select", "argument": "it"}],
            "entailed": [],
        }
    _questions(folder / "llava_gqa_testdev_balanced.jsonl", lines)
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(annotations))


def _textvqa(folder, num):
    lines, entries = [], []
    for k in range(num):
        text, answer = _colored_question(k)
        # Two questions about each image, so that the id of a line is not unique.
        name = f"a{k // 2}"
        image = _image(folder / "train_images", f"{name}.jpg", k // 2)
        prompt = f"{text}\nReference OCR token: RED, {k}"
        lines.append({"question_id": name, "image": image, "text": prompt})
        entries.append(
            {
                "question_id": 34600 + k,
                "image_id": name,
                "question": text,
                "answers": [answer] * 9 + ["other"],
            }
        )
    _questions(folder / "llava_textvqa_val_v051_ocr.jsonl", lines)
    path = folder / "TextVQA_0.5.1_val.json"
    path.write_text(json.dumps({"data": entries}))


def _pope(folder, num):
    (folder / "coco").mkdir()
    lines = []
    for category in POPE_CATEGORIES:
        labels = []
        for k in range(num):
            image = _image(folder / "val2014", f"COCO_{k}.jpg", k)
            text = f"Is there a cat or {k} in the image?"
            label = "no" if k % 2 else "yes"
            labels.append({"image": image, "text": text, "label": label})
            fields = {"image": image, "text": text, "category": category}
            lines.append({"question_id": len(lines), **fields})
        write_jsonl(folder / "coco" / f"coco_pope_{category}.json", labels)
    _questions(folder / "llava_pope_test.jsonl", lines)


def _mme(folder, num):
    root = folder / "MME_Benchmark_release_version"
    for task in MME_PERCEPTION + MME_COGNITION:
        texts = root / task / ("questions_answers_YN" if task in APART else "")
        images = root / task / ("images" if task in APART else "")
        texts.mkdir(parents=True)
        for k in range(num):
            _image(images, f"{k:04d}.png", k)
            lines = [("yes", "Yes"), ("no", "No")]
            text = "".join(
                f"Is it {word}? Please answer yes or no.\t{answer}\n"
                for word, answer in lines
            )
            (texts / f"{k:04d}.txt").write_text(text)


def _mmbench(folder, num):
    columns = "index question hint A B C D answer category image l2-category split"
    rows = [columns.split()]
    for copy in (0, 1):
        for k in range(num):
            options = sorted(COLORS)[:4]
            options = options[copy:] + options[:copy]
            answer = "ABCD"[options.index(sorted(COLORS)[k % 4])]
            rows.append(
                [
                    str(copy * 1_000_000 + k),
                    f"What color is the shape {k}?",
                    "Look." if k % 2 else "",
                    *options,
                    answer,
                    f"leaf {k % 2}",
                    base64.b64encode(_image_bytes(k, "PNG")).decode(),
                    "logic_reasoning",
                    "dev",
                ]
            )
    text = "\n".join("\t".join(row) for row in rows) + "\n"
    (folder / "mmbench_dev_20230712.tsv").write_text(text)


def _colored_question(k):
    """A question and its answer; the questions differ in length."""
    words = "one two three".split()[: k % 3]
    text = " ".join(["What color is the shape", *words, f"{k}?"])
    return text, sorted(COLORS)[k % len(COLORS)]


def _questions(path, lines):
    write_jsonl(path, [{**line, "text": line["text"] + SUFFIX} for line in lines])


def _image(folder, name, k):
    folder.mkdir(parents=True, exist_ok=True)
    file_format = "PNG" if name.endswith("png") else "JPEG"
    (folder / name).write_bytes(_image_bytes(k, file_format))
    return name


def _image_bytes(k, file_format):
    color = list(COLORS.values())[k % len(COLORS)]
    file = io.BytesIO()
    pixels = np.broadcast_to(np.array(color, "uint8"), (9 + k % 5, 12, 3))
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, file_format)
    return file.getvalue()


_WRITERS = {
    "scienceqa": _scienceqa,
    "gqa": _gqa,
    "textvqa": _textvqa,
    "pope": _pope,
    "mme": _mme,
    "mmbench": _mmbench,
}
