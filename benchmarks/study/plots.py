"""The plots of docs/study.md."""

import os

import numpy as np
from arms import COMPARED, FIXED, LEARNED, MAIN_ENERGIES, ON_HIDDEN
from matplotlib.figure import Figure
from settings import EXPERIMENTS, PARTS, SETTINGS, title_of

COLOURS = {"cosine-probs": "#1f77b4", "forward-kl": "#d95f02"}


def draw(results, folder):
    """Writes the plots; returns their names."""
    figures = {
        "accuracy.png": accuracies(results),
        "curves.png": curves(results),
        "beta.png": betas(results),
        "experiments.png": experiments(results),
    }
    for name, figure in figures.items():
        figure.savefig(os.path.join(folder, name), dpi=110)
    return list(figures)


def accuracies(results):
    """Test accuracy of each arm in each setting, with 95 % intervals of the means."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    names = {arm.split(" / ")[1]: name for name, arm in _named_arms().items()}
    betas = dict.fromkeys([*FIXED, *LEARNED, *names])
    betas = [b for b in betas if results.present(f"{e} / {b}" for e in MAIN_ENERGIES)]
    labels = [names.get(beta, beta.replace(", value=", " ")) for beta in betas]
    axes = figure.subplots(1, len(SETTINGS), sharey=True)
    for axis, setting in zip(axes, SETTINGS, strict=True):
        mean, deviation = results.spread("ce", setting)
        axis.axvline(mean, color="gray", linestyle="--", label="labels alone")
        for shift, energy in zip((-0.15, 0.15), MAIN_ENERGIES, strict=True):
            arms = [f"{energy} / {beta}" for beta in betas]
            places = np.flatnonzero([results.has(arm) for arm in arms]) + shift
            arms = results.present(arms)
            found = [results.interval(arm, setting) for arm in arms]
            means = [f.mean for f in found]
            ends = [[f.mean - f.low for f in found], [f.high - f.mean for f in found]]
            style = {"fmt": "o", "markersize": 5, "color": COLOURS[energy]}
            axis.errorbar(means, places, xerr=ends, label=energy, **style)
        axis.set(title=title_of(setting), xlabel="test accuracy, %")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def curves(results, energy="cosine-probs"):
    """Held-out accuracy, and agreement with the teacher, over training."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    measures = {
        "accuracy_choices": "accuracy, %",
        "agreement": "agreement with the teacher, %",
        "logit_cosine": "cosine of their logits",
    }
    axes = figure.subplots(len(measures), len(SETTINGS), sharex=True, sharey="row")
    steps = EXPERIMENTS["drawn"].steps // PARTS * np.arange(1, PARTS + 1)
    for column, setting in enumerate(SETTINGS):
        arms = {
            "labels alone": ("ce", "gray"),
            "best fixed beta": (results.best_fixed(energy, setting), "#2ca02c"),
            "task beta": (f"{energy} / task", "#9467bd"),
            "instance beta": (f"{energy} / instance", COLOURS[energy]),
            "instance beta, and of CE": (
                f"{energy} / instance, task_loss=task",
                COLOURS["forward-kl"],
            ),
        }
        for row, (measure, text) in enumerate(measures.items()):
            axis = axes[row, column]
            for label, (arm, colour) in arms.items():
                lines = [
                    [point[measure] for point in run["curve"]]
                    for run in results.runs_of(arm, setting)
                ]
                mean = np.mean(lines, axis=0)
                axis.plot(steps, mean, color=colour, label=label)
            axis.grid(alpha=0.3)
            if not column:
                axis.set_ylabel(text)
            if not row:
                axis.set_title(title_of(setting))
        axes[-1, column].set_xlabel("training step")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def betas(results):
    """Errors of the wrong teacher by tenth of beta; beta over training."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    arms = {
        "on the teacher's uncertainty": COMPARED["`InstanceBeta`"],
        "on its hidden states": ON_HIDDEN["hidden states"],
    }
    for axis, (name, arm) in zip(axes, arms.items(), strict=False):
        for run in results.runs_of(arm, "noisy-teacher"):
            shares = 100 * np.array(run["beta"]["biased_by_tenth"])
            axis.plot(
                range(1, 11), shares, "o-", alpha=0.6, color=COLOURS["cosine-probs"]
            )
        axis.set(
            title=f"instance beta, {name}",
            xlabel="tenth of the questions, lowest beta first",
            ylabel="taught wrong, %",
            ylim=(0, 100),
        )
        axis.grid(alpha=0.3)
    steps = EXPERIMENTS["drawn"].steps // PARTS * np.arange(1, PARTS + 1)
    styles = {"instance": "-", "task": "--", "analytic": ":"}
    for energy in MAIN_ENERGIES:
        for kind, style in styles.items():
            runs = results.runs_of(f"{energy} / {kind}", "full")
            if not runs:
                continue
            lines = [[p[f"{energy}_beta"] for p in run["curve"]] for run in runs]
            label = f"{energy}, {kind}"
            mean = np.mean(lines, axis=0)
            axes[2].plot(steps, mean, style, color=COLOURS[energy], label=label)
    axes[2].set(yscale="log", title="mean beta, all labels", xlabel="training step")
    axes[2].grid(alpha=0.3)
    axes[2].legend(fontsize=8)
    return figure


def experiments(results, energy="cosine-probs"):
    """The main betas above the grid's choice in each experiment, with intervals."""
    arms = _named_arms()
    names = [
        name
        for name, experiment in EXPERIMENTS.items()
        if results.has("ce", *experiment.settings)
    ]
    columns = 4
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(14, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis in grid.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(grid.flat, names, strict=False):
        settings = list(EXPERIMENTS[name].settings)
        axis.axvline(0, color="gray", linestyle="--")
        for place, arm in enumerate(arms.values()):
            if not results.has(arm, *settings):
                continue
            found = results.difference_to_best_fixed(arm, energy, settings)
            ends = [[found.mean - found.low], [found.high - found.mean]]
            style = {"fmt": "o", "color": COLOURS[energy], "markersize": 5}
            axis.errorbar([found.mean], [place], xerr=ends, **style)
        axis.set(title=name, xlabel="points above the grid's choice")
        axis.grid(alpha=0.3)
    grid[0, 0].set_yticks(range(len(arms)), list(arms))
    grid[0, 0].invert_yaxis()
    return figure


def _named_arms():
    arms = {**COMPARED, **ON_HIDDEN}
    return {name.replace("`", ""): arm for name, arm in arms.items()}
