"""Distils a preset into another on a folder of questions (Beta-KD).

    python examples/distil.py --teacher gemma3_instruct_12b \
        --student gemma3_instruct_4b --data my_vqa --lora-rank 16

The folder holds `train.jsonl` and, to be scored on, `test.jsonl`, one question a line:

    {"image": "images/1.jpg", "question": "What color is the car?", "answer": "red"}

`image` is a path that stays in the folder, a list of them, or left out for a question
without image. A preset is a folder that `save_to_preset` wrote, the name of a keras-hub
preset, or a handle such as `hf://...`. The teacher is held in bfloat16 (int8 with
`--quantize`); the student computes in bfloat16 and keeps its weights in float32, so
that small updates are not lost. With `--lora-rank`, only LoRA weights train, and the
saved student has them merged.

`--output` receives the history (as CSV and as a plot), the answers, and the student.
"""

import argparse
import json
import os
import pathlib
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from scienceqa import BETAS, ENERGIES, make_optimizer

import keras_betakd
from keras_betakd.data import IMAGE_MARK, load_image, neutralize_image_marks
from keras_betakd.evaluation import generate_answers
from keras_betakd.files import atomic_write
from keras_betakd.folders import FolderOwner, inside
from keras_betakd.models import load_model, save_preset

ENERGIES = {**ENERGIES, "uld": keras_betakd.ULDEnergy}
FREEZE = {
    "vision-tower": "vision_tower",
    "all-but-projector": "all_but_projector",
    "nothing": None,
}


class QuestionFolder(keras.utils.PyDataset):
    """Batches of a `.jsonl` file; images are read when their batch is."""

    def __init__(self, path, batch_size, limit=None, blind=False):
        super().__init__()
        self.blind = blind
        lines = path.read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines if line.strip()][:limit]
        self.folder = path.parent
        self.batch_size = batch_size

    def __len__(self):
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        rows = self.rows[start : start + self.batch_size]
        images = [self._images(row) for row in rows]
        pairs = zip(rows, images, strict=True)
        return {
            "ids": [str(start + i) for i in range(len(rows))],
            "prompts": [_prompt(row["question"], len(found)) for row, found in pairs],
            "responses": [row["answer"] for row in rows],
            "images": images,
        }

    def _images(self, row):
        names = [] if self.blind else row.get("image") or []
        names = [names] if isinstance(names, str) else names
        return [load_image(inside(self.folder, name)) for name in names]


def _prompt(question, images):
    return f"{IMAGE_MARK}\n" * images + neutralize_image_marks(question)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--teacher", required=True, help="preset of the large model")
    add("--student", required=True, help="preset of the small model")
    add("--data", required=True, type=pathlib.Path, help="folder with train.jsonl")
    add("--energy", choices=ENERGIES, default="cosine-probs")
    add("--beta", choices=BETAS, default="instance", help="kind of weight")
    add("--freeze", choices=FREEZE, default="vision-tower", help="in the student")
    add("--lora-rank", type=int, help="train LoRA weights of this rank only")
    add("--lora-layers", nargs="+", help="names of the layers that get LoRA weights")
    add("--quantize", choices=("int8", "int4"), help="the teacher's weights")
    add("--teacher-dtype", default="bfloat16", help="default: %(default)s")
    add("--student-dtype", default="mixed_bfloat16", help="default: %(default)s")
    add("--vocabulary-size", type=int, help="classes both have, if one is padded")
    add("--blind-student", action="store_true", help="the student gets no images")
    add("--epochs", type=int, default=1)
    add("--batch-size", type=int, default=8)
    add("--learning-rate", type=float, default=2e-5)
    add("--max-response-length", type=int, default=32, help="answer tokens at most")
    add("--limit", type=int, help="train and test on that many questions only")
    add("--seed", type=int, default=0)
    add("--output", type=pathlib.Path, default=pathlib.Path("output/distil"))
    return parser.parse_args()


def main():
    args = parse_arguments()
    keras.utils.set_random_seed(args.seed)
    with FolderOwner(args.output, "examples/distil.py"):
        run(args)


def run(args):
    batches = QuestionFolder(args.data / "train.jsonl", args.batch_size, args.limit)
    distiller = make_distiller(args)
    distiller.summary()
    distiller.compile(optimizer=make_optimizer(args, batches))
    history = keras_betakd.DistillationHistory()
    distiller.fit(batches, epochs=args.epochs, callbacks=[history])
    history.write_csv(args.output / "history.csv")
    history.plot(args.output / "history.png", f"{args.energy}, {args.beta} beta")
    save_preset(distiller.student, args.output / "student")
    if (args.data / "test.jsonl").exists():
        score(distiller.student, args)


def make_distiller(args):
    teacher = load_model(args.teacher, dtype=args.teacher_dtype)
    if args.quantize:
        teacher.backbone.quantize(args.quantize)
    student = load_model(args.student, dtype=args.student_dtype)
    if args.lora_rank:
        student.backbone.enable_lora(args.lora_rank, args.lora_layers)
    return keras_betakd.BetaKDDistiller(
        teacher,
        student,
        energies=ENERGIES[args.energy](),
        beta=BETAS[args.beta](),
        task_beta=True,  # wrong labels then cost less: see docs/study.md
        freeze=FREEZE[args.freeze],
        vocabulary_size=args.vocabulary_size,
        preprocessor=keras_betakd.DistillationPreprocessor(
            teacher.preprocessor,
            student.preprocessor,
            args.max_response_length,
            blind_student=args.blind_student,
            cross_tokenizer=args.energy == "uld",
        ),
    )


def score(student, args):
    """Writes the student's answers, and prints how many equal the expected text."""
    test = args.data / "test.jsonl"
    batches = QuestionFolder(test, args.batch_size, args.limit, args.blind_student)
    found = generate_answers(student, batches, max_new_tokens=args.max_response_length)
    right, lines = 0, []
    for row, answer in zip(batches.rows, found.values(), strict=True):
        right += answer.lower() == row["answer"].strip().lower()
        lines.append(json.dumps({**row, "student": answer}) + "\n")
    with atomic_write(args.output / "answers.jsonl") as draft:
        draft.write_text("".join(lines), encoding="utf-8")
    total = len(batches.rows)
    sys.stdout.write(f"{right} of {total} answers are the expected text\n")


if __name__ == "__main__":
    main()
