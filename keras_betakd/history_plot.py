"""Plots a training: whether the student learns, and what energies and betas do."""

import math

from keras_betakd.files import atomic_write

VALIDATION = "val_"
MONITORED = ("task_loss", "accuracy", "objective")
ANSWERS = ("answers", "answer_tokens", "answers_ended")
BRANCHES = ("branches", "branches_given", "unbranched")
# A beta beyond these has no bound that a reader could look for.
_BOUNDS_SHOWN = (1e-6, 1e6)
# Okabe and Ito's colours, which colour-blind readers tell apart. An energy, its beta
# and their validation have one colour in all panels.
_COLORS = {
    "task_loss": "#0072B2",
    "accuracy": "#D55E00",
    "objective": "black",
    "loss": "#A0A0A0",
    "answer_tokens": "#0072B2",
    "answers_ended": "#D55E00",
    "branches_given": "#0072B2",
}
_ENERGY_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A6761D", "#5D3A9B")


def history_figure(rows, terms, title=None):
    """A matplotlib figure of the rows of a `DistillationHistory`.

    The first panel shows whether the student learns: cross-entropy and accuracy, in
    training and validation, and which of them to monitor. The loss stands apart, since
    it falls by a learned beta too.

    Args:
        rows: list of dicts of `"step"` and the metrics, of which rows may lack some;
            those of the validation begin with `"val_"`.
        terms: dict of `(dim, bounds)` of the betas, by the names of the betas' metrics;
            without those whose lines are not to be drawn.
        title: title of the figure, or `None`.
    """
    from matplotlib.figure import Figure

    panels = _Panels(rows, terms)
    first, *others = panels.found
    # Two at least: the first panel has a sentence above it.
    columns = min(max(len(others), 2), 3)
    lines = 1 + -(-len(others) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.0 * lines), layout="constrained")
    figure.get_layout_engine().set(wspace=0.04, hspace=0.05)
    grid = figure.add_gridspec(lines, columns)
    places = [grid[0, :]]
    places += [grid[1 + i // columns, i % columns] for i in range(len(others))]
    for place, draw in zip(places, [first, *others], strict=True):
        axis = figure.add_subplot(place)
        draw(axis)
        _finish(axis, rows)
    if title:
        figure.suptitle(title, fontsize=14)
    return figure


def write_figure(figure, path):
    """Writes a figure to a file; its ending is its format, PNG if it has none."""
    ending = str(path).rpartition("/")[2].rpartition(".")
    with atomic_write(path) as draft, open(draft, "wb") as file:
        figure.savefig(file, format=ending[2] if ending[0] else "png", dpi=120)


def series_of(rows):
    """Dict of `(steps, values)` by metric, each of the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    found = {}
    for name in names:
        pairs = [(row["step"], row[name]) for row in rows if name in row]
        found[name] = tuple(zip(*pairs, strict=True))
    return found


class _Panels:
    """What is drawn of a history.

    Args:
        rows, terms: as for `history_figure`.

    Attributes:
        found: list of functions that draw a panel, given its axis, in their order.
    """

    def __init__(self, rows, terms):
        self.series = series_of(rows)
        self.terms = terms
        trained = [name for name in self.series if not name.startswith(VALIDATION)]
        self.betas = [name for name in trained if name.endswith("_beta")]
        self.energies = [_energy_of(name) for name in self.betas]
        self.energies = [n for n in self.energies if n in trained and n != "task_loss"]
        own = zip(self.energies, _ENERGY_COLORS * len(self.energies), strict=False)
        self.colors = _COLORS | dict(own)
        self.found = [self._learning]
        if "task_loss" in trained:
            self.found.append(self._loss)
        self.found += [self._energies] * bool(self.energies)
        self.found += [self._betas] * bool(self.betas)
        self.found += [self._answers] * ("answer_tokens" in trained)
        self.found += [self._branches] * ("branches_given" in trained)
        known = {"loss", *MONITORED, *ANSWERS, *BRANCHES, *self.energies, *self.betas}
        for name in trained:
            if name not in known:
                self.found.append(lambda axis, name=name: self._other(axis, name))

    def _learning(self, axis):
        loss = "task_loss" if "task_loss" in self.series else "loss"
        _head(axis, "Does the student learn?", self._advice(loss))
        self._curves(axis, [loss])
        unit = " (nats per token)" if loss == "task_loss" else ""
        _side(axis, loss + unit, self.colors[loss])
        if "accuracy" in self.series:
            right = axis.twinx()
            self._curves(right, ["accuracy"])
            _share(right, "accuracy", self.colors["accuracy"])

    def _advice(self, loss):
        """Which numbers to monitor, in words."""
        names = [n for n in (loss, *MONITORED) if VALIDATION + n in self.series]
        if not names:
            names = "val_task_loss, val_accuracy or val_objective, never val_loss"
            return f"No validation: pass validation_data to fit, and monitor {names}."
        *first, last = dict.fromkeys(VALIDATION + name for name in names)
        advice = f"Monitor {', '.join(first)} or {last}" if first else f"Monitor {last}"
        if loss == "loss":
            return f"{advice}."
        return f"{advice}; never val_loss, which falls by a learned beta alone."

    def _loss(self, axis):
        _head(axis, "Loss", "objective: the loss at the best betas")
        self._curves(axis, [n for n in ("loss", "objective") if n in self.series])

    def _energies(self, axis):
        _head(axis, "Energies", "distance from the teacher: 0 where the two agree")
        self._curves(axis, self.energies)
        if axis.get_yscale() == "linear":
            axis.axhline(0, color="gray", linewidth=0.8)

    def _betas(self, axis):
        """Each beta, where it tends to at the energy of its window, and its bounds."""
        _head(axis, "Betas", "weights: each tends to its best value, dotted")
        bounds, gray = set(), {"color": "dimgray"}
        for name in self.betas:
            color = self.colors.get(_energy_of(name), "black")
            curve = self.series[name]
            label = name.removesuffix("_beta")
            axis.plot(*curve, label=label, color=color, **_style(curve))
            if name not in self.terms:
                continue
            dim, limits = self.terms[name]
            if limits[0] < limits[1]:
                bounds |= {b for b in limits if _BOUNDS_SHOWN[0] < b < _BOUNDS_SHOWN[1]}
            best = self._best(_energy_of(name), dim, limits)
            if best:
                axis.plot(*best, ":", color=color, linewidth=2)
        for bound in bounds:
            axis.axhline(bound, linestyle="--", linewidth=1, **gray)
        if self.terms:
            axis.plot([], [], ":", label="best value, d / (2 energy)", lw=2, **gray)
        if bounds:
            axis.plot([], [], "--", label="bounds", linewidth=1, **gray)
        _log_scale(axis, [y for line in axis.get_lines() for y in line.get_ydata()], 1)

    def _best(self, energy, dim, limits):
        """`(steps, values)` of d / (2 l) between the bounds, where l is known."""
        steps, values = self.series.get(energy, ((), ()))
        # One fixed value would hide where a learned beta would be.
        low, high = limits if limits[0] < limits[1] else _BOUNDS_SHOWN
        best = [
            min(max(0.5 * dim / v, low), high) if v > 0 else high if v == 0 else v
            for v in values
        ]
        return (steps, best) if best else None

    def _answers(self, axis):
        note = f"{self._range_of('answers')} prompts an epoch"
        _head(axis, "The student's own answers", note)
        self._curves(axis, ["answer_tokens"], scaled=False)
        _side(axis, "answer_tokens (mean)", self.colors["answer_tokens"])
        axis.set_ylim(bottom=0)
        right = axis.twinx()
        self._curves(right, ["answers_ended"])
        _share(right, "answers_ended", self.colors["answers_ended"])

    def _branches(self, axis):
        number = self._range_of("branches")
        note = f"{number} an epoch, and the share whose token is the given one"
        _head(axis, "Branches of the student", note)
        self._curves(axis, ["branches_given"], scaled=False)
        _share(axis, "branches_given", self.colors["branches_given"])

    def _range_of(self, name):
        """The least and the greatest of whole numbers, in words."""
        numbers = self.series[name][1]
        least, most = int(min(numbers)), int(max(numbers))
        return f"{least}" if least == most else f"{least} to {most}"

    def _other(self, axis, name):
        _head(axis, name, "")
        self._curves(axis, [name])

    def _curves(self, axis, names, scaled=True):
        """A solid curve of each metric, and a dashed one of its validation."""
        shown = []
        for name in names:
            color = self.colors.get(name, "#0072B2")
            curve = self.series[name]
            wide = {"linewidth": 3} if name == "loss" and len(names) > 1 else {}
            axis.plot(*curve, label=name, color=color, **wide, **_style(curve))
            shown += curve[1]
            curve = self.series.get(VALIDATION + name)
            if curve:
                points = {"marker": "o", "markersize": 5, "markerfacecolor": "white"}
                label = VALIDATION + name
                axis.plot(*curve, "--", label=label, color=color, **points)
                shown += curve[1]
        if scaled and names not in (["accuracy"], ["answers_ended"]):
            _log_scale(axis, shown)


def _energy_of(beta):
    """The metric that a beta weighs."""
    name = beta.removesuffix("_beta")
    return "task_loss" if name == "task" else name


def _head(axis, title, note):
    axis.set_title(title, fontsize=12, fontweight="bold", pad=22 if note else 6)
    place = {"xy": (0.5, 1), "xycoords": "axes fraction", "textcoords": "offset points"}
    axis.annotate(
        note, xytext=(0, 6), ha="center", fontsize=9, color="#404040", **place
    )


def _side(axis, label, color):
    """Names the quantity of an axis in the colour of its curve."""
    axis.set_ylabel(label, color=color)
    axis.tick_params(axis="y", which="both", colors=color)


def _share(axis, label, color):
    from matplotlib.ticker import PercentFormatter

    _side(axis, label, color)
    axis.set_ylim(-0.02, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _style(curve):
    """Points where there are few: a line needs two."""
    return {"marker": ".", "markersize": 7} if len(curve[0]) <= 20 else {}


def _log_scale(axis, values, least_ratio=5):
    """A logarithmic scale, with plain numbers, for values of several magnitudes."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = [value for value in values if math.isfinite(value)]
    if not values or min(values) <= 0 or max(values) <= least_ratio * min(values):
        return
    axis.set_yscale("log")
    steps = (1, 2, 5) if max(values) < 50 * min(values) else (1,)
    axis.yaxis.set_major_locator(LogLocator(subs=steps))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _finish(axis, rows):
    """The steps, and one legend below the panel, where it hides no curve."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("training step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(rows) == 1:
        step = rows[0]["step"]
        axis.set_xlim(step - 1, step + 1)
    axis.grid(alpha=0.3)
    twins = axis.get_shared_x_axes().get_siblings(axis)
    handles = [line for twin in [axis, *twins] for line in _labelled(twin)]
    handles = list(dict.fromkeys(handles))
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "frameon": False}
    columns = 2 * len(axis.get_subplotspec().colspan)
    axis.legend(handles=handles, ncols=columns, fontsize=9, **place)


def _labelled(axis):
    return [line for line in axis.get_lines() if not line.get_label().startswith("_")]
