"""Plots the schedules of TAID and CTKD over a training run.

    KERAS_BACKEND=jax python examples/schedules.py

Trains two small students on easy-VQA for 200 steps, one with `TAIDEnergy`, one with
`CTKDEnergy`, and plots TAID's t, CTKD's temperature and the strength of its gradient
reversal; prints them with the energy every 50 steps. Takes about two minutes on two
cores.

Expected: t runs ahead of its line until the line catches up. The temperature moves to
where the energy is larger, and may turn back as the student follows.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import keras_hub
import small_gemma
from matplotlib.figure import Figure

import keras_betakd
from keras_betakd.data import ScienceQADataset
from keras_betakd.folders import FolderOwner

STEPS = 200
BATCH_SIZE = 32


def train(teacher, records, name, energy, steps):
    """Trains a student; returns the energy and the state after each step."""
    keras.utils.set_random_seed(0)
    student = small_gemma.make_student(teacher)
    distiller = keras_betakd.BetaKDDistiller(
        teacher,
        student,
        energies={name: energy},
        beta=keras_betakd.TaskBeta(),
        preprocessor=keras_betakd.DistillationPreprocessor(
            teacher.preprocessor, student.preprocessor, 3
        ),
    )
    distiller.compile(optimizer=keras.optimizers.Adam(3e-3))
    batches = ScienceQADataset(
        records,
        batch_size=BATCH_SIZE,
        shuffle=True,
        seed=0,
        answer_format="text",
        form=small_gemma.PROMPT_FORM,
    )
    states = []
    for step in range(steps):
        logs = distiller.train_on_batch(batches[step % len(batches)], return_dict=True)
        states.append(
            {
                "shown": float(energy.schedule.shown()),
                "energy": float(logs[name]),
                **{v.name: float(v.value) for v in energy.schedule.variables},
            }
        )
        if (step + 1) % 50 == 0:
            print(f"{name}, step {step + 1}: {states[-1]}")
    return states


def draw(path, taid, ctkd, line):
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([s["t"] for s in taid], label="t")
    left.plot(line, "--", color="grey", label="straight line")
    left.set(title="TAID: how far the target has moved", xlabel="step", ylabel="t")
    left.legend()
    right.plot([s["shown"] for s in ctkd], label="temperature")
    right.set(title="CTKD: learned against the student", xlabel="step", ylabel="T")
    other = right.twinx()
    other.plot([s["strength"] for s in ctkd], "--", color="grey", label="reversal")
    other.set(ylabel="strength of the reversal", ylim=(0, 1.05))
    lines = right.lines + other.lines
    right.legend(lines, [x.get_label() for x in lines], loc="center right")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    with FolderOwner(args.output, "examples/schedules.py"):
        run(args)


def run(args):
    teacher = keras_hub.models.CausalLM.from_preset(small_gemma.TEACHER)
    folder = os.path.join(args.output, "easy_vqa")
    records, _ = small_gemma.load_records(folder, limit=640, test_limit=1)
    steps = args.steps
    taid = keras_betakd.TAIDEnergy(total_steps=steps, rate=0.02)
    taid_states = train(teacher, records, "taid", taid, steps)
    ctkd = keras_betakd.CTKDEnergy(total_steps=steps // 2, multiplier=1.0)
    ctkd_states = train(teacher, records, "ctkd", ctkd, steps)
    line = [0.4 + 0.6 * min(k / steps, 1.0) for k in range(len(taid_states))]
    path = os.path.join(args.output, "schedules.png")
    draw(path, taid_states, ctkd_states, line)
    print(f"saved {path}")


if __name__ == "__main__":
    main()
