"""Trains a small language model on its own answers, which a larger one corrects.

    KERAS_BACKEND=jax python examples/on_policy.py

The task is drawn: prompts of letters, such as "q c x a f =", and the letters in order,
"a c f q x". A teacher learns it from many records. A student of an eighth of its size
learns from few of them: first from given answers, then, from the same weights, in three
ways, of which `StudentAnswers` makes the share that the student answers itself. A
student that has written a wrong letter has to go on from there, which no given answer
shows.

`--output` receives `on_policy.png`: accuracy on new prompts, the number of tokens that
the student answers with, and the share of answers that it ends. Nothing is downloaded.
With seed 0 on JAX, from 51.4 % after the warm start, given answers came to 77.6 %, half
and half to 88.8 %, and own answers alone to 83.6 % of 500 prompts; the curves cross on
the way, and other seeds were not run. It took 3:04 on a core of a busy machine. See
`docs/on_policy.md` for when it helps, and what to watch.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import keras_hub
import numpy as np
from matplotlib.figure import Figure

import keras_betakd
from keras_betakd.evaluation import generate_answers
from keras_betakd.preprocessing import format_of, model_inputs

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTHS = range(5, 10)  # letters of a prompt
RIGHT = np.mean(LENGTHS) + 1  # tokens of a right answer, its end included
TOKENS = 14  # the most tokens of an answer
SHARES = {"given answers": 0.0, "half of them its own": 0.5, "all its own": 1.0}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", default="output/on_policy")
    add("--records", type=int, default=1000, help="that the student has")
    add("--teacher-records", type=int, default=16000)
    add("--test-records", type=int, default=500)
    add("--warm-start", type=int, default=8, help="epochs on given answers")
    add("--epochs", type=int, default=8, help="of each way, behind the warm start")
    add("--learning-rate", type=float, default=3e-3)
    add("--seed", type=int, default=0)
    return parser.parse_args()


def main():
    args = parse_arguments()
    os.makedirs(args.output, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    teacher = make_model(width=64, layers=2)
    train_teacher(teacher, draw_records(rng, args.teacher_records))
    train, test = (draw_records(rng, n) for n in (args.records, args.test_records))
    print(f"teacher: {accuracy(teacher, test):.1f} % of {args.test_records} prompts")
    student = make_model(width=32, layers=1)
    distiller = make_distiller(teacher, student, args)
    distiller.fit(train, batch_size=16, epochs=args.warm_start, verbose=2)
    start = student.get_weights()
    print(f"student, warm start: {accuracy(student, test):.1f} %")
    curves = {}
    for name, share in SHARES.items():
        keras.utils.set_random_seed(args.seed)
        student.set_weights(start)
        distiller = make_distiller(teacher, student, args)
        data = keras_betakd.StudentAnswers(train, share, seed=args.seed)
        measured = Accuracy(test)
        print(f"\n{name}")
        history = distiller.fit(
            data, batch_size=16, epochs=args.epochs, callbacks=[measured], verbose=2
        ).history
        curves[name] = {**history, "accuracy": measured.values}
        print(f"student, {name}: {measured.values[-1]:.1f} %")
    draw(os.path.join(args.output, "on_policy.png"), curves)


def draw_records(rng, count):
    """Prompts of distinct letters in any order, and the letters in order."""
    sizes = rng.choice(LENGTHS, count)
    rows = [rng.choice(list(LETTERS), size, replace=False) for size in sizes]
    return {
        "prompts": [f"{' '.join(row)} =" for row in rows],
        "responses": [f" {' '.join(sorted(row))}" for row in rows],
    }


def make_model(width, layers):
    """A GPT-2 whose tokens are letters with the space before them."""
    pieces = ["<|pad|>", "<|endoftext|>", "Ġ", "=", "Ġ=", *LETTERS]
    pieces += [f"Ġ{letter}" for letter in LETTERS]
    tokenizer = keras_hub.models.GPT2Tokenizer(
        vocabulary={piece: i for i, piece in enumerate(pieces)},
        merges=["Ġ =", *(f"Ġ {letter}" for letter in LETTERS)],
    )
    length = max(LENGTHS) + 3 + TOKENS
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=len(pieces),
        num_layers=layers,
        num_heads=4,
        hidden_dim=width,
        intermediate_dim=4 * width,
        max_sequence_length=length,
        dropout=0.0,
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
        tokenizer, sequence_length=length
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor)
    model.compile(sampler="greedy")  # what `accuracy` compiles is then kept
    return model


def train_teacher(teacher, records):
    """Plain Keras training on the labels."""
    preprocessor = teacher.preprocessor
    inputs = model_inputs(preprocessor, records)
    x, y, weight = format_of(preprocessor).training(inputs)
    model = keras.Model(teacher.input, teacher.output)
    epochs = 6
    steps = epochs * -(-len(y) // 64)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, alpha=0.02, warmup_target=3e-3, warmup_steps=steps // 20
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    )
    model.fit(x, y, 64, epochs, sample_weight=weight.astype("float32"), verbose=2)


def make_distiller(teacher, student, args):
    distiller = keras_betakd.BetaKDDistiller(
        teacher,
        student,
        energies=keras_betakd.JensenShannonEnergy(),
        beta=keras_betakd.TaskBeta(),
        max_response_length=TOKENS,
    )
    distiller.compile(optimizer=keras.optimizers.AdamW(args.learning_rate))
    return distiller


def accuracy(model, records):
    """Per cent of the prompts that a model answers rightly, greedily."""
    prompts = {"prompts": records["prompts"]}
    answers = generate_answers(
        model, prompts, batch_size=100, max_new_tokens=TOKENS, progress=False
    )
    pairs = zip(answers.values(), records["responses"], strict=True)
    return 100 * np.mean([answer.strip() == right.strip() for answer, right in pairs])


class Accuracy(keras.callbacks.Callback):
    """Measures the student before the training and after each epoch."""

    def __init__(self, records):
        super().__init__()
        self.records = records
        self.values = []

    def on_train_begin(self, logs=None):
        self.values.append(accuracy(self.model.student, self.records))

    def on_epoch_end(self, epoch, logs=None):
        self.values.append(accuracy(self.model.student, self.records))


def draw(path, curves):
    """Draws what each way's epochs were like."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    accuracy_axis, length, ended = figure.subplots(1, 3)
    for name, curve in curves.items():
        accuracy_axis.plot(curve["accuracy"], label=name)
        if any(curve["answers"]):
            epochs = range(1, len(curve["answer_tokens"]) + 1)
            length.plot(epochs, curve["answer_tokens"], label=name, marker="o")
            shares = [100 * share for share in curve["answers_ended"]]
            ended.plot(epochs, shares, label=name, marker="o")
        else:  # the colours of the other ways are those of the first panel
            length.plot([], [])
            ended.plot([], [])
    accuracy_axis.set(title="right answers to new prompts, %", xlabel="epoch")
    length.set(title="tokens of an own answer, mean", xlabel="epoch")
    length.axhline(RIGHT, color="gray", linestyle=":", label="right answers")
    length.set_ylim(0, TOKENS)
    ended.set(title="own answers that were ended, %", xlabel="epoch")
    ended.set_ylim(0, 105)
    for axis in (accuracy_axis, length):
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
