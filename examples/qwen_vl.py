"""Distils one Qwen-VL into another on conversations about images (Beta-KD).

    python examples/qwen_vl.py small      # all of it in miniature, on drawn images

    python examples/qwen_vl.py --teacher Qwen2.5-VL-7B-Instruct \
        --student Qwen2.5-VL-3B-Instruct --data train.jsonl \
        --lora-rank 16 --quantize int8

Models are folders with a public checkpoint, or presets; data is in chat format, of
which `--test` is answered before and after. Both models resize images by themselves: by
default to 256 to 1,280 tokens, by `--max-pixels` and `--teacher-max-pixels` to others.
`--output` receives the history (as CSV and as a plot), the answers, a plot of some, and
the student.

What 7B into 3B needs, computed from their parameters (8.29 and 3.75 billion; of the
student 3.12 train without the vision encoder, and with LoRA of rank 16, whose factors
Keras makes for each head of queries and values, 36 x (2048 x 18 x 16 + 2 x 16 x 128 +
18 x 128), 21.5 million):

- the teacher: 16.6 GB in bfloat16, 8.3 GB as `int8` (it is loaded in bfloat16 first);
- the student in float32: 15.0 GB, of which mixed precision computes in bfloat16;
- gradient and two moments of AdamW, 12 bytes a trained parameter: 37.5 GB, with LoRA
  0.26 GB.

Activations come on top of that, by batch size and sequence length.
"""

import argparse
import collections
import json
import os
import pathlib
import sys
import textwrap

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from distil import FREEZE
from matplotlib.figure import Figure
from mobilevlm import IMAGE_ENERGIES
from progress import Progress
from scienceqa import BETAS, ENERGIES, set_defaults

import keras_betakd
from keras_betakd.data import IMAGE_MARK, LlavaDataset, load_chat, load_image
from keras_betakd.evaluation import generate_answers
from keras_betakd.files import atomic_write
from keras_betakd.folders import FolderOwner
from keras_betakd.models import load_model, save_preset
from keras_betakd.qwen_vl import load_qwen_vl

FULL = {
    "freeze": "vision-tower",
    "teacher_dtype": "bfloat16",
    "student_dtype": "mixed_bfloat16",
    "sequence_length": 2048,
    "max_response_length": 512,
    "epochs": 1,
    "batch_size": 2,
    "accumulate": 8,
}
# Untrained models, which learn to see, too.
SMALL = {
    "freeze": "nothing",
    "teacher_dtype": "float32",
    "student_dtype": "float32",
    "sequence_length": 44,
    "max_response_length": 4,
    "epochs": 4,
    "batch_size": 32,
    "accumulate": 1,
    "learning_rate": 5e-3,
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("setting", nargs="?", choices=("small",), help="all of it in miniature")
    add("--teacher", help="folder of the large model: a checkpoint, or a preset")
    add("--student", help="folder of the small model")
    add("--data", help="conversations to train on, in chat format")
    add("--test", help="conversations whose last answers are compared")
    add("--images", help="folder that the paths of images start from")
    add("--energy", choices=ENERGIES, default="cosine-probs", help="of the answers")
    add("--image-energy", choices=(*IMAGE_ENERGIES, "none"), default="none")
    add("--beta", choices=BETAS, default="instance", help="kind of weight")
    add("--freeze", choices=FREEZE, help="in the student; default: vision-tower")
    add("--lora-rank", type=int, help="train LoRA weights of this rank only")
    add("--lora-layers", nargs="+", help="names of the layers that get LoRA weights")
    add("--quantize", choices=("int8", "int4"), help="the teacher's weights")
    add("--teacher-dtype", help="default: bfloat16")
    add("--student-dtype", help="default: mixed_bfloat16")
    for prefix in ("", "teacher-"):
        for name in ("min", "max"):
            of = "the teacher's" if prefix else "the student's"
            add(f"--{prefix}{name}-pixels", type=int, help=f"of {of} resized images")
    add("--sequence-length", type=int, help="tokens with those of images; 2048")
    add("--max-response-length", type=int, help="answer tokens at most; 512")
    add("--epochs", type=int, help="default: 1")
    add("--batch-size", type=int, help="default: 2")
    add("--accumulate", type=int, help="batches of an optimizer step; default: 8")
    add("--learning-rate", type=float, help="default: 2e-5, or 1e-4 with LoRA")
    add("--limit", type=int, help="train and test on that many records only")
    add("--seed", type=int, default=0)
    add("--resume", action="store_true", help="go on with a run that was killed")
    add("--output", type=pathlib.Path, default=pathlib.Path("output/qwen_vl"))
    args = parser.parse_args()
    needed = args.teacher, args.student, args.data
    if args.setting != "small" and not all(needed):
        parser.error("--teacher, --student and --data are needed")
    return args


def main():
    args = parse_arguments()
    if args.setting == "small":
        args.output = args.output / "small"
    with FolderOwner(args.output, "examples/qwen_vl.py"):
        progress = Progress(args)
        if args.setting == "small":
            prepare_small(args, progress)
        run(args, progress)


def prepare_small(args, progress):
    """Makes checkpoints, data and a trained teacher, and names them in `args`."""
    import qwen_vl_data

    set_defaults(args, **SMALL)
    folder = args.output / "made"
    qwen_vl_data.write_checkpoints(folder)
    qwen_vl_data.write_data(folder, "train", 1024)
    qwen_vl_data.write_data(folder, "test", 128)
    args.data, args.test = folder / "train.jsonl", folder / "test.jsonl"
    args.images = folder
    args.student, args.teacher = folder / "student", folder / "trained_teacher"
    qwen_vl_data.train_teacher(folder / "teacher", args, progress)


def run(args, progress):
    set_defaults(args, **FULL, learning_rate=1e-4 if args.lora_rank else 2e-5)
    teacher = load(args.teacher, args, "teacher_")
    if args.quantize:
        teacher.backbone.quantize(args.quantize)
    student = load(args.student, args, "")
    if args.lora_rank:
        student.backbone.enable_lora(args.lora_rank, args.lora_layers)
    student.compile(sampler="greedy")  # one function of both tests
    train, test = (load_records(path, args) for path in (args.data, args.test))
    answers = {"the question alone": usual_answers(train, test)} if test else {}
    answer_all("teacher", teacher, test, answers, args, progress)
    answer_all("student before", student, test, answers, args, progress)
    # The same initial betas, whether the answers were generated now or before.
    keras.utils.set_random_seed(args.seed)
    distil(teacher, student, train, args, progress)
    answer_all("student after", student, test, answers, args, progress)
    save_preset(student, args.output / "student")
    written = "history.csv, history.png, student/"
    if test:
        sys.stdout.write("\n" + table(test, answers) + "\n")
        write_answers(args.output / "answers.jsonl", test, answers)
        draw_answers(args.output / "answers.png", test, answers)
        written += ", answers.jsonl, answers.png"
    sys.stdout.write(f"Written to {args.output}: {written}\n")


def load(folder, args, prefix):
    """The model of a public checkpoint, or of a preset such as an earlier student."""
    settings = vars(args)
    dtype = settings[f"{prefix or 'student_'}dtype"]
    limits = {f"{m}_pixels": settings[f"{prefix}{m}_pixels"] for m in ("min", "max")}
    if not (pathlib.Path(folder) / "task.json").exists():
        length = args.sequence_length
        return load_qwen_vl(folder, dtype=dtype, sequence_length=length, **limits)
    model = load_model(folder, dtype=dtype)
    model.preprocessor.sequence_length = args.sequence_length
    for name, value in limits.items():
        if value is not None:
            setattr(model.preprocessor.image_converter, name, value)
    return model


def load_records(path, args):
    return load_chat(path, args.images)[: args.limit] if path else ()


def distil(teacher, student, records, args, progress):
    batches = LlavaDataset(records, args.batch_size, shuffle=True, seed=args.seed)
    distiller = make_distiller(teacher, student, args)
    distiller.summary()
    steps = args.epochs * len(batches)
    distiller.compile(optimizer=make_optimizer(steps, args))
    history = keras_betakd.DistillationHistory(
        every=max(1, steps // 100), path=args.output / "history.csv"
    )
    progress.fit("beta_kd", distiller, batches, args.epochs, [history])
    history.plot(args.output / "history.png", f"{args.energy}, {args.beta} beta")


def make_distiller(teacher, student, args):
    energies = {"answer": ENERGIES[args.energy]()}
    if args.image_energy != "none":
        energies["image"] = IMAGE_ENERGIES[args.image_energy]("image_features")
    return keras_betakd.BetaKDDistiller(
        teacher,
        student,
        energies=energies,
        beta=BETAS[args.beta](),
        task_beta=True,  # wrong labels then cost less: see docs/study.md
        freeze=FREEZE[args.freeze],
        vocabulary_size=common_classes(teacher, student),
        preprocessor=keras_betakd.DistillationPreprocessor(
            teacher.preprocessor,
            student.preprocessor,
            args.max_response_length,
            on_too_long="skip",
        ),
    )


def common_classes(teacher, student):
    """How many classes both have, if one embedding is padded to more rows."""
    rows = [model.backbone.vocabulary_size for model in (teacher, student)]
    if rows[0] == rows[1]:
        return None
    sys.stdout.write(
        f"The teacher has {rows[0]:,} classes, the student {rows[1]:,}: the first "
        f"{min(rows):,} are compared.\n"
    )
    return min(rows)


def make_optimizer(batches, args):
    """AdamW with a short warm-up and a cosine decay."""
    steps = max(1, batches // args.accumulate)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        steps,
        alpha=0.02,
        warmup_target=args.learning_rate,
        warmup_steps=max(1, steps // 20),
    )
    return keras.optimizers.AdamW(
        schedule,
        weight_decay=0.01,
        clipnorm=1.0,
        gradient_accumulation_steps=args.accumulate if args.accumulate > 1 else None,
    )


def answer_all(name, model, records, answers, args, progress):
    """Adds the model's answers by their ids; those of a run that resumes are kept."""

    def make():
        sys.stdout.write(f"\nAnswers of: {name}\n")
        batches = LlavaDataset(records, args.batch_size)
        return generate_answers(model, batches, max_new_tokens=args.max_response_length)

    if records:
        answers[name] = progress.row(name, make)


def usual_answers(train, test):
    """To each question the most frequent answer of the training, images unseen."""
    counts, total = collections.defaultdict(collections.Counter), collections.Counter()
    for record in train:
        counts[record.prompts[-1]][record.responses[-1]] += 1
        total[record.responses[-1]] += 1
    found = [counts.get(record.prompts[-1], total) for record in test]
    return {r.id: c.most_common(1)[0][0] for r, c in zip(test, found, strict=True)}


def is_right(record, answer):
    return answer.strip().lower() == record.responses[-1].strip().lower()


def table(test, answers):
    """How many answers of each model are the expected text."""
    lines = [f"{'':18} | expected text"]
    for name, found in answers.items():
        right = sum(is_right(record, found[record.id]) for record in test)
        share = f"{100 * right / len(test):.1f} %"
        lines.append(f"{name:18} | {share:>7} ({right}/{len(test)})")
    lines.insert(1, "-" * 19 + "|" + "-" * 19)
    return "\n".join(lines)


def question_of(record):
    return record.prompts[-1].replace(IMAGE_MARK, "").strip()


def write_answers(path, test, answers):
    lines = []
    for record in test:
        found = {name.replace(" ", "_"): a[record.id] for name, a in answers.items()}
        line = {"id": record.id, "question": question_of(record)}
        line |= {"expected": record.responses[-1], **found}
        lines.append(json.dumps(line) + "\n")
    with atomic_write(path) as draft:
        draft.write_text("".join(lines), encoding="utf-8")


def draw_answers(path, test, answers, count=3):
    """Plots test images with their questions and the answers of both models."""
    shown = sorted(test, key=lambda record: not record.images)[:count]
    figure = Figure(figsize=(3.2 * len(shown), 4), layout="constrained")
    rows = figure.subplots(2, len(shown), squeeze=False, height_ratios=(3, 2))
    for record, image, text in zip(shown, *rows, strict=True):
        if record.images:
            image.imshow(load_image(record.images[0]))
        lines = [question_of(record), f"expected: {record.responses[-1]}"]
        for name in ("teacher", "student before", "student after"):
            # An untrained student answers with bytes of no character, too.
            said = "".join(
                c if c.isprintable() else " " for c in answers[name][record.id]
            )
            lines.append(f"{name}: {said}")
        lines = [textwrap.fill(textwrap.shorten(line, 120), 36) for line in lines]
        # Dollar signs do not mark formulas.
        text.text(0, 1, "\n".join(lines), va="top", parse_math=False)
        image.set(xticks=[], yticks=[])
        text.axis("off")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
