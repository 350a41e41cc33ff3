"""Plots a training: whether the student learns, and what energies and betas do."""

import math

from keras_betakd.files import atomic_write

VALIDATION = "val_"
# A beta beyond these has no bound that a reader could look for.
_BOUNDS_SHOWN = (1e-6, 1e6)
_TOTAL = {"loss": "total", "objective": "at the best betas"}


def plot_history(path, rows, terms, title=None):
    """Writes a figure of the rows of a `DistillationHistory`.

    The first panels, cross-entropy and accuracy, show whether the student learns. The
    total stands apart, since it falls with the betas too.

    Args:
        path: image file to write; its ending is its format, PNG if it has none.
        rows: list of dicts of `"step"` and the metrics, of which rows may lack some;
            those of the validation begin with `"val_"`.
        terms: dict of `(dim, bounds)` of the betas, by the names of the betas' metrics;
            without those whose lines are not to be drawn.
        title: title of the figure, or `None`.
    """
    from matplotlib.figure import Figure

    series = series_of(rows)
    panels = _panels(series, terms)
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.4 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, (label, draw) in zip(grid, panels, strict=False):
        draw(axis)
        _finish(axis, label, rows)
    for axis in grid[len(panels) :]:
        axis.axis("off")
    if title:
        figure.suptitle(title)
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


def _panels(series, terms):
    """`(label, draw)` of each panel; `draw` takes the axis."""
    trained = [name for name in series if not name.startswith(VALIDATION)]
    betas = [name for name in trained if name.endswith("_beta")]
    energies = [name.removesuffix("_beta") for name in betas]
    energies = [name for name in energies if name in trained]
    panels = [
        ("cross-entropy (nats per token)", ["task_loss"], _curves),
        ("accuracy", ["accuracy"], _curves),
        ("total (falls with beta)", list(_TOTAL), _curves),
        ("energies", energies, _curves),
    ]
    found = []
    for label, names, draw in panels:
        names = [name for name in names if name in trained]
        if names:
            found.append((label, lambda axis, n=names, d=draw: d(axis, n, series)))
    if betas:
        found.append(("betas", lambda axis: _betas(axis, betas, series, terms)))
    known = {"task_loss", "accuracy", *_TOTAL, *energies, *betas}
    others = [name for name in trained if name not in known]
    if others:
        found.append(("others", lambda axis: _curves(axis, others, series)))
    return found


def _curves(axis, names, series):
    """A curve of each metric, and one with points of its validation."""
    shown = []
    for i, name in enumerate(names):
        label = _TOTAL.get(name, name) if len(names) > 1 else "training"
        axis.plot(*series[name], label=label, color=f"C{i}", **_style(series[name]))
        shown += series[name][1]
        validation = series.get(VALIDATION + name)
        if validation:
            label = f"{label}, validation" if len(names) > 1 else "validation"
            color = f"C{i}" if len(names) > 1 else "C1"
            axis.plot(*validation, "--o", label=label, color=color, markersize=4)
            shown += validation[1]
    if names != ["accuracy"]:
        _log_scale(axis, shown)
    if len(names) > 1 or VALIDATION + names[0] in series:
        axis.legend(fontsize=8)


def _betas(axis, names, series, terms):
    """Each beta, where it tends to at the energy of its window, and its bounds."""
    shown, bounds = [], set()
    for i, name in enumerate(names):
        steps, values = series[name]
        shown += values
        axis.plot(
            steps,
            values,
            label=name.removesuffix("_beta"),
            color=f"C{i}",
            **_style(series[name]),
        )
        if name not in terms:
            continue
        dim, limits = terms[name]
        bounds |= {b for b in limits if _BOUNDS_SHOWN[0] < b < _BOUNDS_SHOWN[1]}
        optimum = _optimum(series, name, dim)
        if optimum:
            shown += optimum[1]
            label = "d / (2 energy)" if name == names[-1] else None
            axis.plot(*optimum, ":", label=label, color=f"C{i}", linewidth=1.2)
    for number, bound in enumerate(sorted(bounds)):
        label = "bounds" if number == 0 else None
        axis.axhline(bound, color="gray", linestyle="--", linewidth=0.8, label=label)
    _log_scale(axis, [*shown, *bounds])
    axis.legend(fontsize=8)


def _optimum(series, beta, dim):
    """`(steps, values)` of d / (2 l), where l is known and positive; or `None`."""
    energy = beta.removesuffix("_beta")
    steps, values = series.get("task_loss" if energy == "task" else energy, ((), ()))
    pairs = [(s, 0.5 * dim / v) for s, v in zip(steps, values, strict=True) if v > 0]
    return tuple(zip(*pairs, strict=True)) or None


def _style(curve):
    """Points where there are few: a line needs two."""
    return {"marker": ".", "markersize": 6} if len(curve[0]) <= 20 else {}


def _log_scale(axis, values):
    values = [value for value in values if math.isfinite(value)]
    if values and min(values) > 0 and max(values) > 5 * min(values):
        axis.set_yscale("log")


def _finish(axis, label, rows):
    from matplotlib.ticker import MaxNLocator

    axis.set(xlabel="training step", title=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(rows) == 1:
        step = rows[0]["step"]
        axis.set_xlim(step - 1, step + 1)
    axis.grid(alpha=0.3)
