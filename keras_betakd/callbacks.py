"""`DistillationHistory`: records losses, energies and betas, and plots them."""

import csv
import os
from typing import Any

import keras

from keras_betakd.files import atomic_write
from keras_betakd.history_plot import history_figure, write_figure


class DistillationHistory(keras.callbacks.Callback):
    """Records losses, energies and betas every few training steps.

    Keras reports means since the start of the epoch. From these the callback computes
    the mean of each window of `every` steps, so that curves show the current values.
    A metric that is no mean (`keras.metrics.Mean`), such as a perplexity, is that since
    the start of the epoch. Losses are in nats per token.

    Args:
        every: number of training steps that a row covers. Defaults to 10.
        path: CSV file that the rows are written to after each epoch. A training that
            resumes at an `initial_epoch` keeps the rows that the file has up to there;
            pass this callback before the one that saves weights. One that begins anew
            replaces them. `None` (default) writes no file.

    Attributes:
        rows: list of dicts: `"step"` (counted over all epochs, at the end of the
            window), then every metric of the distiller by name. The last row of an
            epoch has what Keras knows of the epoch alone, too: the metrics of its
            validation, with `val_` in front, and numbers of other callbacks, such as
            `answer_tokens` of `StudentAnswers`.

    Raises:
        ValueError: `every` is not a positive integer; `path` is a file that is no
            history; or `write_csv` or `plot` is called before any row is recorded.

    Example:

    ```python
    history = DistillationHistory(every=50)
    distiller.fit(dataset, callbacks=[history])
    history.write_csv("history.csv")
    history.plot("history.png")
    ```
    """

    def __init__(self, every: int = 10, path: str | os.PathLike | None = None):
        super().__init__()
        if type(every) is not int or every < 1:
            raise ValueError(
                f"`every` must be a positive integer. Received: every={every!r}"
            )
        self.every = every
        self.path = path
        self.rows: list[dict] = []
        self._step = 0
        self._terms: dict[str, tuple] = {}
        self._sums: dict[str, tuple] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._expect_own_file()
        betas: dict = getattr(self.model, "all_betas", dict)()
        self._terms = {f"{n}_beta": (b.dim, b.bounds) for n, b in betas.items()}
        self._objective = getattr(self.model, "objective", None)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._done, self._sums = 0, {}
        if epoch and not self.rows:
            # The training resumes after so many steps.
            self._step = epoch * self.params["steps"]
            self.rows = [r for r in self._kept_rows() if r["step"] <= self._step]

    def _expect_own_file(self):
        if not self.path or not os.path.exists(self.path):
            return
        with open(self.path, newline="", errors="replace") as file:
            first = file.readline()
        if first and not first.startswith("step,"):
            raise ValueError(
                f"'{self.path}' is no history of a training, and would be replaced by "
                f"one. Give another path. Received: a file that begins with {first!r}"
            )

    def _kept_rows(self):
        if not self.path or not os.path.exists(self.path):
            return []
        with open(self.path, newline="") as file:
            rows = [
                {name: float(value) for name, value in row.items() if value}
                for row in csv.DictReader(file)
            ]
        return [{**row, "step": int(row["step"])} for row in rows]

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        done = batch + 1
        self._last = (done, logs)
        if done - self._done >= self.every:
            self._close_window(done, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        whole, (done, logs) = logs, self._last
        if done > self._done:
            self._close_window(done, logs)
        row = self.rows[-1]
        row.update({n: float(v) for n, v in (whole or {}).items() if n not in row})
        if self.path:
            self.write_csv(self.path)

    def _close_window(self, done, logs):
        sums = _sums(self.model)
        means = {name: float(value) for name, value in logs.items()}
        for name, (total, count) in sums.items():
            before = self._sums.get(name, (0.0, 0.0))
            if name in means and count > before[1]:
                means[name] = (total - before[0]) / (count - before[1])
        if self._objective and "objective" in means:
            means["objective"] = float(self._objective(means, self._label_share(sums)))
        self._step += done - self._done
        self.rows.append({"step": self._step, **means})
        self._done, self._sums = done, sums

    def _label_share(self, sums):
        """The share of the answers' weight in a window that has labels."""
        counts = [
            sums[name][1] - self._sums.get(name, (0.0, 0.0))[1]
            for name in ("task_loss", "loss")
        ]
        return counts[0] / counts[1] if counts[1] else 1.0

    def write_csv(self, path: str | os.PathLike) -> None:
        """Writes the rows to a CSV file, one line a window."""
        self._expect_rows()
        names = dict.fromkeys(name for row in self.rows for name in row)
        with atomic_write(path) as draft, open(draft, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(names))
            writer.writeheader()
            writer.writerows(self.rows)

    def plot(
        self, path: str | os.PathLike | None = None, title: str | None = None
    ) -> Any:
        """Plots what the rows hold over the steps (needs matplotlib).

        The first panel shows cross-entropy and accuracy of training (solid) and
        validation (dashed), and says which number to monitor. Then come the loss and
        the objective, the energies, the betas with their bounds and with d / (2 energy)
        (dotted), where each of them tends to, the student's own answers if it gave any,
        and every other metric. A history that only read its file knows no bounds and
        no d.

        Args:
            path: image file to write, e.g. `"history.png"`; its folder is created.
                `None` (default) writes none.
            title: title of the figure.

        Returns:
            The `matplotlib.figure.Figure`, which a notebook shows.
        """
        self._expect_rows()
        figure = history_figure(self.rows, self._terms, title)
        if path is not None:
            write_figure(figure, path)
        return figure

    def _expect_rows(self):
        # A resumed training may have had no epochs left to run.
        self.rows = self.rows or self._kept_rows()
        if not self.rows:
            raise ValueError(
                "Nothing is recorded yet: pass this callback to `fit` first."
            )


def _sums(model):
    """Dict of `(total, count)` of those of a model's metrics that are means."""
    found = {}
    for metric in model.metrics:
        # Keras holds the metrics of `compile` in one that stands for all.
        for mean in getattr(metric, "metrics", None) or [metric]:
            if isinstance(mean, keras.metrics.Mean):
                pair = mean.total, mean.count
                found[mean.name] = tuple(
                    float(keras.ops.convert_to_numpy(x)) for x in pair
                )
    return found
