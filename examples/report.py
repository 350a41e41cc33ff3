"""The results of `scienceqa.py`: a table, and a plot of a question with its answer."""

from matplotlib.figure import Figure

from keras_betakd.data import load_image

COLUMNS = ("model", "parameters", "accuracy", "IMG", "unparsed", "seconds")


def row(name, model, score, seconds=None):
    """One line of the table."""
    image = f"{score.image_correct}/{score.image_total}"
    percent = score.image_accuracy
    return (
        name,
        f"{model.count_params():,}",
        f"{score.accuracy:.1f} % ({score.correct}/{score.total})",
        "-" if percent is None else f"{percent:.1f} % ({image})",
        str(score.unparsed),
        "-" if seconds is None else f"{seconds:.0f}",
    )


def table(rows):
    """The rows as a text table."""
    rows = [COLUMNS, *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        " | ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True))
        for cells in rows
    ]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(lines)


def draw_answer(path, record, prompt, answer):
    """Plots an image with its question and the student's answer."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    if record.image is None:
        left.text(0.5, 0.5, "(no image)", ha="center")
    else:
        left.imshow(load_image(record.image))
    right.text(
        0,
        1,
        f"{prompt}\n\nstudent: {answer}\nright: {record.choices[record.answer]}",
        va="top",
        wrap=True,
        # Dollar signs in prompts do not mark formulas.
        parse_math=False,
    )
    for axis in (left, right):
        axis.axis("off")
    figure.savefig(path, dpi=100)
