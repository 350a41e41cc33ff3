"""Distils a vision-language model on ScienceQA with a learned beta (Beta-KD).

Paper: Beta-KD, arXiv 2603.21426 (CVPR 2026).

    KERAS_BACKEND=jax python examples/scienceqa.py

Without arguments it needs no network: it writes the easy-VQA questions in ScienceQA's
format, loads the small pretrained teacher of this folder, and trains one student on the
labels alone and one with the teacher (see `small_gemma.py` for their sizes). The models
answer with the text of a choice, not with its letter: students so small do not learn to
look up letters. Run time and results: see the README.

    python examples/scienceqa.py --data scienceqa --teacher PRESET --student PRESET

distils real models on the real data: DIR holds `problems.json`, `pid_splits.json` and
`images/`; a preset is the name of a keras-hub preset or a folder. The answers are
letters there.

Either way `--output` receives the history (as CSV and as a plot), the student as a
keras-hub preset, and a plot of a question with the student's answer. A killed run
resumes after its last complete epoch when the same command is given again with
`--resume`.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import keras_hub
import report
from progress import Progress

import keras_betakd
from keras_betakd.data import ScienceQADataset, load_scienceqa
from keras_betakd.evaluation import generate_answers, score_scienceqa
from keras_betakd.folders import FolderOwner
from keras_betakd.models import load_model, save_preset

ENERGIES = {
    "forward-kl": keras_betakd.ForwardKLEnergy,
    "reverse-kl": keras_betakd.ReverseKLEnergy,
    "jensen-shannon": keras_betakd.JensenShannonEnergy,
    "total-variation": keras_betakd.TotalVariationEnergy,
    "skew-forward-kl": keras_betakd.SkewForwardKLEnergy,
    "skew-reverse-kl": keras_betakd.SkewReverseKLEnergy,
    "cosine-probs": keras_betakd.CosineProbsEnergy,
    "cosine-logits": keras_betakd.CosineLogitsEnergy,
    "mse-probs": keras_betakd.MSEProbsEnergy,
    "mse-logits": keras_betakd.MSELogitsEnergy,
}
BETAS = {
    "fixed": keras_betakd.FixedBeta,
    "task": keras_betakd.TaskBeta,
    "instance": keras_betakd.InstanceBeta,
    "token": keras_betakd.TokenBeta,
    "analytic": keras_betakd.AnalyticBeta,
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", help="ScienceQA folder; easy-VQA if left out")
    add("--teacher", help="keras-hub preset of the teacher (with --data)")
    add("--student", help="keras-hub preset of the student (with --data)")
    add("--energy", choices=ENERGIES, default="cosine-probs")
    add("--beta", choices=BETAS, default="instance", help="kind of weight")
    add("--features", default="uncertainty", help="what a predicted beta reads")
    add("--shrinkage", type=float, default=0.0, help="of a predicted beta")
    add("--on-policy", type=float, help="share of prompts that the student answers")
    add("--dim", type=float, default=1.0, help="d, relative weight of the teacher")
    add("--task-beta", choices=("task", "none"), default="task", help="of the labels")
    add("--speed", type=float, help="steps of a learned log beta; default: 0.1")
    add("--epochs", type=int, help="default: 1 with --data")
    add("--batch-size", type=int, help="default: 8 with --data")
    add("--learning-rate", type=float, help="default: 2e-5 with --data")
    add("--max-response-length", type=int, help="answer tokens at most; default: 16")
    add("--lora-rank", type=int, help="train LoRA weights of this rank only")
    add("--dtype", help="dtype policy of both models, e.g. bfloat16")
    add("--limit", type=int, help="train on that many questions only")
    add("--eval-limit", type=int, help="test on that many questions only")
    add("--seed", type=int, default=0)
    add("--resume", action="store_true", help="go on with a run that was killed")
    add("--output", default="output/scienceqa", help="folder for what is written")
    args = parser.parse_args()
    if bool(args.data) != bool(args.teacher) or bool(args.data) != bool(args.student):
        parser.error("--data, --teacher and --student go together")
    return args


def main():
    args = parse_arguments()
    keras.utils.set_random_seed(args.seed)
    with FolderOwner(args.output, "examples/scienceqa.py"):
        if args.data:
            run_scienceqa(args)
        else:
            run_easy_vqa(args)


def run_scienceqa(args):
    """Distils a preset into another on a ScienceQA folder."""
    defaults = {"epochs": 1, "batch_size": 8, "learning_rate": 2e-5}
    set_defaults(args, **defaults, max_response_length=16)
    train = load_scienceqa(args.data, "train")[: args.limit]
    test = load_scienceqa(args.data, "test")[: args.eval_limit]
    # By the preset's name it knows the chat template of an instruction-tuned model.
    teacher = load_model(args.teacher, dtype=args.dtype)
    student = load_model(args.student, dtype=args.dtype)
    if args.lora_rank:
        student.backbone.enable_lora(args.lora_rank)
    progress = Progress(args)
    rows = [evaluate("teacher", teacher, test, args, progress)]
    rows.append(evaluate("student before", student, test, args, progress))
    # The same initial betas, whether the answers were generated now or before.
    keras.utils.set_random_seed(args.seed)
    batches = dataset(train, args, shuffle=True)
    seconds = distil(teacher, student, batches, args, progress)
    name = "student + Beta-KD"
    rows.append(evaluate(name, student, test, args, progress, seconds))
    finish(rows, student, test, args)


def run_easy_vqa(args):
    """Trains two identical students, one on labels alone, one with the teacher."""
    import small_gemma

    set_defaults(args, **small_gemma.TRAINING)
    progress = Progress(args)
    teacher = keras_hub.models.CausalLM.from_preset(small_gemma.TEACHER)
    folder = os.path.join(args.output, "easy_vqa")
    train, test = small_gemma.load_records(folder, args.limit, args.eval_limit)
    wrong = f"{100 * small_gemma.WRONG_LABELS:.0f} %"
    print(f"{len(train)} labelled questions, {wrong} of the labels wrong")
    rows = [evaluate("teacher", teacher, test, args, progress)]
    for name in ("cross-entropy", "Beta-KD"):
        # The same initial weights for both.
        keras.utils.set_random_seed(args.seed)
        student = small_gemma.make_student(teacher)
        if args.lora_rank:
            student.backbone.enable_lora(args.lora_rank)
        batches = dataset(train, args, shuffle=True)
        print(f"\nTraining a student: {name}")
        if name == "Beta-KD":
            seconds = distil(teacher, student, batches, args, progress)
        else:
            optimizer = make_optimizer(args, batches)
            seconds = small_gemma.train_on_labels(
                student, batches, args, optimizer, progress
            )
        line = f"student, {name}"
        rows.append(evaluate(line, student, test, args, progress, seconds))
    finish(rows, student, test, args)


def set_defaults(args, **defaults):
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def dataset(records, args, shuffle=False):
    return ScienceQADataset(
        records,
        batch_size=args.batch_size,
        shuffle=shuffle,
        seed=args.seed,
        answer_format="letter" if args.data else "text",
        form=None if args.data else "llava-1.0",  # as the teacher was trained
    )


def distil(teacher, student, batches, args, progress):
    """Trains the student with the teacher; returns the seconds it took."""
    beta = {"dim": args.dim}
    if args.speed and args.beta not in ("fixed", "analytic"):
        beta["speed"] = args.speed
    if args.beta in ("instance", "token"):
        beta.update(features=args.features, shrinkage=args.shrinkage)
    distiller = keras_betakd.BetaKDDistiller(
        teacher,
        student,
        energies=ENERGIES[args.energy](),
        beta=BETAS[args.beta](**beta),
        # Wrong labels keep the cross-entropy large: a weight of its own then falls.
        task_beta=True if args.task_beta == "task" else None,
        preprocessor=keras_betakd.DistillationPreprocessor(
            teacher.preprocessor, student.preprocessor, args.max_response_length
        ),
    )
    distiller.compile(optimizer=make_optimizer(args, batches))
    steps = args.epochs * len(batches)
    history = keras_betakd.DistillationHistory(
        every=max(1, steps // 100), path=os.path.join(args.output, "history.csv")
    )
    if args.on_policy:
        batches = keras_betakd.StudentAnswers(batches, args.on_policy, seed=args.seed)
    seconds = progress.fit("beta_kd", distiller, batches, args.epochs, [history])
    title = f"Beta-KD, {args.energy}, {args.beta} beta"
    history.plot(os.path.join(args.output, "history.png"), title)
    return seconds


def make_optimizer(args, batches):
    """AdamW with a short warm-up and a cosine decay."""
    steps = args.epochs * len(batches)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        steps,
        alpha=0.02,
        warmup_target=args.learning_rate,
        warmup_steps=max(1, steps // 20),
    )
    return keras.optimizers.AdamW(schedule, weight_decay=0.01, clipnorm=1.0)


def evaluate(name, model, records, args, progress, seconds=None):
    """Lets a model answer the test questions; returns its line of the table."""

    def make():
        print(f"\nAnswers of: {name}")
        answers = generate_answers(
            model, dataset(records, args), max_new_tokens=args.max_response_length
        )
        return report.row(name, model, score_scienceqa(records, answers), seconds)

    return progress.row(name, make)


def finish(rows, student, test, args):
    """Prints the table; saves the student and shows that plain keras-hub loads it."""
    print("\n" + report.table(rows) + "\n")
    preset = os.path.abspath(os.path.join(args.output, "student"))
    save_preset(student, preset)
    loaded = keras_hub.models.CausalLM.from_preset(preset)
    record = next((r for r in test if r.image is not None), test[0])
    batch = dataset([record], args)[0]
    (answer,) = generate_answers(
        loaded, batch, max_new_tokens=args.max_response_length, progress=False
    ).values()
    (prompt,) = batch["prompts"]
    print(f"{prompt}\nThe saved student answers: {answer}")
    path = os.path.join(args.output, "answer.png")
    report.draw_answer(path, record, prompt, answer)
    print(f"Written to {args.output}: history.csv, history.png, answer.png, student/")


if __name__ == "__main__":
    main()
