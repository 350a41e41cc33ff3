"""Distils MobileVLM V2 7B into 1.7B in the two stages of MobileVLM, as the paper does.

    python examples/mobilevlm.py small      # all of it in miniature, on generated data

    python examples/mobilevlm.py pretrain --teacher MobileVLM_V2-7B \
        --student MobileLLaMA-1.4B-Chat --vision-tower clip-vit-large-patch14-336 \
        --data captions.json --images pretrain_data
    python examples/mobilevlm.py finetune --teacher MobileVLM_V2-7B \
        --student output/mobilevlm/pretrain/student \
        --data mix.json --images finetune_data

`pretrain` (alignment) trains a new projector on captions, everything else frozen;
`finetune` (multi-task) the projector and the language model on conversations. Models
are folders with public checkpoints, or presets; data is in LLaVA's format. Defaults are
the released hyper-parameters: one epoch in steps of 128 records, AdamW without weight
decay, 3 % warm-up and a cosine decay; a learning rate of 1e-3 on cropped images for the
projector, and of 4e-5 on padded images for both. Records that are too long are left
out, and counted.

The student learns from labels, from the teacher's answers (`--energy`) and from the
teacher's image tokens (`--image-energy`), each with a learned weight (`--beta`).

What a full run needs, computed from the parameters of the two models (7.06 and 1.67
billion, of which 1.37 train when fine-tuning, 6.3 million when pre-training):

- memory: the teacher in bfloat16, 2 bytes a parameter, 14.1 GB; the student in float32,
  4 bytes, 6.7 GB; gradient and two moments of AdamW, 12 bytes, 16.4 GB (0.1 GB when
  pre-training); and for each record of `--batch-size` about 34 L H + 5 A L^2 bytes a
  layer (Korthikanti et al. 2022, section 4), with L tokens, H = 2048, A = 16 and 24
  layers: 1.9 GB at L = 655 (pretrain), 12.9 GB at L = 2191 (finetune). 52 GB for
  `pretrain --batch-size 16`, 63 GB for `finetune --batch-size 2`.
- time: a record costs 2 x 6.74e9 L operations in the teacher, 6 x 1.36e9 L in the
  student (4 x 1.36e9 L when pre-training, whose frozen weights need no gradient), and
  2 x 0.30e9 x 577 in the tower, which runs once for both. With the paper's 1.25 million
  captions and 2.43 million conversations, padded to L: 1.6e19 and 1.2e20. On one H100
  that reaches 40 % of its 990e12 a second, 11 hours and 81 hours; a shorter
  `--sequence-length` shortens both by as much.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from scienceqa import BETAS, ENERGIES

import keras_betakd
from keras_betakd.data import LlavaDataset, load_llava
from keras_betakd.evaluation import generate_answers
from keras_betakd.folders import FolderOwner
from keras_betakd.mobilevlm import load_mobilevlm
from keras_betakd.models import load_model, save_preset

IMAGE_ENERGIES = {
    "mse": keras_betakd.FeatureMSEEnergy,
    "cosine": keras_betakd.FeatureCosineEnergy,
}
STEP = 128  # records of an optimizer step
# The values of the released scripts; their lengths count an image as one token.
STAGES = {
    "pretrain": {
        "learning_rate": 1e-3,
        "sequence_length": 512 + 143,
        "max_response_length": 510,
        "batch_size": 16,
        "template": "plain",
        "aspect_ratio": "crop",
        "freeze": "all_but_projector",
    },
    "finetune": {
        "learning_rate": 4e-5,
        "sequence_length": 2048 + 143,
        "max_response_length": 2000,
        "batch_size": 2,
        "template": "v1",
        "aspect_ratio": "pad",
        "freeze": "vision_tower",
    },
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("stage", choices=(*STAGES, "small"))
    add("--teacher", help="folder of the large model")
    add("--student", help="folder of the small model, or of a language model")
    add("--vision-tower", help="folder of CLIP, for checkpoints without it")
    add("--data", help="json or jsonl in LLaVA's format")
    add("--images", help="folder that the paths of its images start from")
    add("--energy", choices=ENERGIES, default="cosine-probs", help="of the answers")
    add("--image-energy", choices=(*IMAGE_ENERGIES, "none"), default="mse")
    add("--beta", choices=BETAS, default="instance", help="kind of weight")
    add("--epochs", type=int, default=1)
    add("--batch-size", type=int, help=f"a divisor of {STEP}; default: 16 or 2")
    add("--learning-rate", type=float, help="default: 1e-3 or 4e-5")
    add("--sequence-length", type=int, help="default: 655 or 2191")
    add("--max-response-length", type=int, help="default: 510 or 2000")
    add("--teacher-dtype", default="bfloat16", help="default: %(default)s")
    add("--student-dtype", default="mixed_bfloat16", help="default: %(default)s")
    add("--limit", type=int, help="train on that many records only")
    add("--seed", type=int, default=0)
    add("--output", type=pathlib.Path, default=pathlib.Path("output/mobilevlm"))
    args = parser.parse_args()
    needed = ("teacher", "student", "data")
    if args.stage != "small" and not all(getattr(args, name) for name in needed):
        parser.error("--teacher, --student and --data are needed")
    return args


def main():
    args = parse_arguments()
    with FolderOwner(args.output, "examples/mobilevlm.py"):
        if args.stage == "small":
            run_small(args)
        else:
            run(args.stage, args)


def run(stage, args, step=STEP):
    """One stage; returns the student."""
    settings = STAGES[stage] | {k: v for k, v in vars(args).items() if v is not None}
    keras.utils.set_random_seed(args.seed)
    output = args.output / stage
    output.mkdir(parents=True, exist_ok=True)
    teacher = load(args.teacher, args, args.teacher_dtype)
    student = load(args.student, args, args.student_dtype)
    for model in (teacher, student):
        model.preprocessor.template = settings["template"]
        model.preprocessor.sequence_length = settings["sequence_length"]
        model.preprocessor.image_converter.aspect_ratio = settings["aspect_ratio"]
    records = load_llava(args.data, args.images)[: args.limit]
    records = fitting(records, student.preprocessor, settings)
    batches = LlavaDataset(
        records,
        settings["batch_size"],
        shuffle=True,
        seed=args.seed,
        group_by_modality=True,
        workers=4,
    )
    distiller = make_distiller(teacher, student, args, settings)
    distiller.summary()
    optimizer = make_optimizer(settings, len(batches) * args.epochs, step)
    distiller.compile(optimizer=optimizer)
    history = keras_betakd.DistillationHistory()
    distiller.fit(batches, epochs=args.epochs, callbacks=[history])
    history.write_csv(output / "history.csv")
    history.plot(output / "history.png", f"{stage}: {args.energy}, {args.beta} beta")
    save_preset(student, output / "student")
    return student


def load(folder, args, dtype):
    """A preset, a public checkpoint, or a language model with a new projector."""
    folder = pathlib.Path(folder)
    if (folder / "task.json").exists():
        return load_model(folder, dtype=dtype)
    config = (folder / "config.json").read_text(encoding="utf-8")
    has_vision = "projector" in config
    return load_mobilevlm(
        folder,
        vision_tower=args.vision_tower,
        new_projector=None if has_vision else "ldpnetv2",
        dtype=dtype,
    )


def fitting(records, preprocessor, settings):
    """The records that fit into the sequence without truncation."""
    limits = settings["sequence_length"], settings["max_response_length"]
    kept = []
    for record in records:
        row = {"prompts": [record.prompts], "responses": [record.responses]}
        ((length, trained),) = preprocessor.token_counts(row)
        if length <= limits[0] and trained <= limits[1]:
            kept.append(record)
    left_out = len(records) - len(kept)
    sys.stdout.write(f"{len(kept)} records; {left_out} too long, left out\n")
    return kept


def make_distiller(teacher, student, args, settings):
    energies = {"answer": ENERGIES[args.energy]()}
    if args.image_energy != "none":
        energies["image"] = IMAGE_ENERGIES[args.image_energy]("image_features")
    return keras_betakd.BetaKDDistiller(
        teacher,
        student,
        energies=energies,
        beta=BETAS[args.beta](),
        freeze=settings["freeze"],
        preprocessor=keras_betakd.DistillationPreprocessor(
            teacher.preprocessor,
            student.preprocessor,
            settings["max_response_length"],
        ),
    )


def make_optimizer(settings, batches, step):
    """AdamW in steps of `step` records, with 3 % warm-up and a cosine decay."""
    accumulated = max(1, step // settings["batch_size"])
    steps = max(1, batches // accumulated)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        steps,
        warmup_target=settings["learning_rate"],
        warmup_steps=max(1, round(0.03 * steps)),
    )
    return keras.optimizers.AdamW(
        schedule,
        weight_decay=0.0,
        gradient_accumulation_steps=accumulated if accumulated > 1 else None,
    )


def run_small(args):
    """Both stages on random checkpoints and generated images, and a few answers."""
    import mobilevlm_data

    folder = args.output.absolute() / "small"
    mobilevlm_data.write_checkpoints(folder)
    mobilevlm_data.write_data(folder, count=64)
    args.output = folder
    args.teacher, args.student = folder / "teacher", folder / "language_model"
    args.vision_tower, args.images = folder / "clip", folder / "images"
    args.teacher_dtype = args.student_dtype = "float32"
    args.batch_size = args.batch_size or 8
    args.sequence_length = args.sequence_length or 208
    args.max_response_length = args.max_response_length or 8
    args.learning_rate = args.learning_rate or 3e-3
    args.data, args.epochs = folder / "captions.json", 2
    run("pretrain", args, step=16)
    args.data, args.epochs = folder / "conversations.json", 6
    args.student = folder / "pretrain" / "student"
    student = run("finetune", args, step=8)
    batch = LlavaDataset(load_llava(args.data, args.images)[:4], 4)[0]
    batch["prompts"] = [turns[0] for turns in batch["prompts"]]
    answers = generate_answers(student, batch, max_new_tokens=8)
    for prompt, answer in zip(batch["prompts"], answers.values(), strict=True):
        sys.stdout.write(f"{prompt!r}: {answer!r}\n")
    sys.stdout.write(f"Written to {folder}: pretrain/ and finetune/, each with ")
    sys.stdout.write("history.csv, history.png and student/\n")


if __name__ == "__main__":
    main()
