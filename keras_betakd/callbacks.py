"""`DistillationHistory`: records losses, energies and betas, and plots them."""

import csv
import os

import keras

from keras_betakd.files import atomic_write


class DistillationHistory(keras.callbacks.Callback):
    """Records losses, energies and betas every few training steps.

    Keras reports means since the start of the epoch. From these the callback computes
    the mean of each window of `every` steps, so that curves show the current values.
    The last batch of an epoch counts as a full one even if it is smaller. Losses are in
    nats per token.

    Args:
        every: number of training steps that a row covers. Defaults to 10.
        path: CSV file that the rows are written to after each epoch. A training that
            resumes at an `initial_epoch` keeps the rows that the file has up to there;
            pass this callback before the one that saves weights. `None` (default)
            writes no file.

    Attributes:
        rows: list of dicts: `"step"` (counted over all epochs, at the end of the
            window), then every metric of the distiller by name.

    Raises:
        ValueError: `every` is not a positive integer; or `write_csv` or `plot` is
            called before any row is recorded.

    Example:

    ```python
    history = DistillationHistory(every=50)
    distiller.fit(dataset, callbacks=[history])
    history.write_csv("history.csv")
    history.plot("history.png")
    ```
    """

    def __init__(self, every=10, path=None):
        super().__init__()
        if not isinstance(every, int) or every < 1:
            raise ValueError(
                f"`every` must be a positive integer. Received: every={every}"
            )
        self.every = every
        self.path = path
        self.rows = []
        self._step = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._done, self._sums = 0, {}
        if epoch and not self.rows:
            # The training resumes after so many steps.
            self._step = epoch * self.params["steps"]
            self.rows = [r for r in self._kept_rows() if r["step"] <= self._step]

    def _kept_rows(self):
        if not self.path or not os.path.exists(self.path):
            return []
        with open(self.path, newline="") as file:
            rows = [{k: float(v) for k, v in r.items()} for r in csv.DictReader(file)]
        return [{**row, "step": int(row["step"])} for row in rows]

    def on_train_batch_end(self, batch, logs=None):
        done = batch + 1
        self._last = (done, logs)
        if done - self._done >= self.every:
            self._close_window(done, logs)

    def on_epoch_end(self, epoch, logs=None):
        done, logs = self._last
        if done > self._done:
            self._close_window(done, logs)
        if self.path:
            self.write_csv(self.path)

    def _close_window(self, done, logs):
        steps = done - self._done
        sums = {name: float(mean) * done for name, mean in logs.items()}
        self._step += steps
        means = {n: (s - self._sums.get(n, 0.0)) / steps for n, s in sums.items()}
        self.rows.append({"step": self._step, **means})
        self._done, self._sums = done, sums

    def write_csv(self, path):
        """Writes the rows to a CSV file, one line a window."""
        self._expect_rows()
        with atomic_write(path) as draft, open(draft, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def plot(self, path, title=None):
        """Plots losses, energies and betas over the steps (needs matplotlib).

        Args:
            path: image file to write, e.g. `"history.png"`.
            title: title of the figure.
        """
        self._expect_rows()
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 3.6), layout="constrained")
        steps = [row["step"] for row in self.rows]
        betas = [name for name in self.rows[0] if name.endswith("_beta")]
        energies = [n.removesuffix("_beta") for n in betas if n != "task_beta"]
        panels = (
            ("losses (nats per token)", ["loss", "task_loss"], "linear"),
            ("energies", energies, "log"),
            ("betas", betas, "log"),
        )
        axes = figure.subplots(1, len(panels))
        for axis, (label, names, scale) in zip(axes, panels, strict=True):
            for name in names:
                axis.plot(steps, [row[name] for row in self.rows], label=name)
            axis.set(xlabel="training step", title=label, yscale=scale)
            axis.grid(alpha=0.3)
            axis.legend()
        if title:
            figure.suptitle(title)
        figure.savefig(path, dpi=120)

    def _expect_rows(self):
        # A resumed training may have had no epochs left to run.
        self.rows = self.rows or self._kept_rows()
        if not self.rows:
            raise ValueError(
                "Nothing is recorded yet: pass this callback to `fit` first."
            )
