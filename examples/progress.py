"""Saves the progress of `scienceqa.py`, so that a killed run can resume."""

import json
import os
import shutil
import time

import keras

import keras_betakd
from keras_betakd.files import atomic_write, read_json


class Progress:
    """The finished lines of the table, and a backup of each training.

    Args:
        args: the command's arguments; a run resumes only with the same ones.
    """

    def __init__(self, args):
        self.folder = os.path.join(args.output, "progress")
        self.path = os.path.join(self.folder, "progress.json")
        settings = dict(vars(args))
        del settings["output"], settings["resume"]
        self.state = {"settings": settings, "rows": {}, "seconds": {}}
        if not args.resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif os.path.exists(self.path):
            self.state = read_json(self.path)
            self._expect(settings)
        self._write()

    def _expect(self, settings):
        before = self.state["settings"]
        changed = [name for name in settings if settings[name] != before.get(name)]
        if changed:
            raise SystemExit(
                "A run goes on with the arguments that it was started with. Changed: "
                + ", ".join(f"{n} was {before.get(n)}" for n in changed)
                + ". Start anew without --resume, or with another --output."
            )

    def _write(self):
        with atomic_write(self.path) as draft:
            draft.write_text(json.dumps(self.state, indent=1))

    def row(self, name, make=None):
        """The row of this name; made and saved if it does not exist."""
        if name not in self.state["rows"] and make is not None:
            self.state["rows"][name] = make()
            self._write()
        return self.state["rows"].get(name)

    def fit(self, name, model, dataset, epochs, callbacks=(), **options):
        """Trains from the last saved epoch on; returns the seconds of all epochs."""
        backup = keras_betakd.TrainingBackup(os.path.join(self.folder, name))
        epoch = backup.restore(model)
        callbacks = [*callbacks, backup, Clock(self, name)]
        if epoch < epochs:
            options = {"epochs": epochs, "initial_epoch": epoch, **options}
            model.fit(dataset, callbacks=callbacks, **options)
        return self.state["seconds"].get(name, 0.0)

    def add_seconds(self, name, seconds):
        self.state["seconds"][name] = self.state["seconds"].get(name, 0.0) + seconds
        self._write()


class Clock(keras.callbacks.Callback):
    """Adds up the seconds of the completed epochs."""

    def __init__(self, progress, name):
        super().__init__()
        self.progress, self.name = progress, name

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.time()

    def on_epoch_end(self, epoch, logs=None):
        self.progress.add_seconds(self.name, time.time() - self.start)
