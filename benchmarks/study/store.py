"""A file of runs as JSON lines; a run in it is not made again."""

import json
import os


class RunStore:
    """A file of runs.

    Args:
        path: the file; it is made with the first run.
    """

    def __init__(self, path):
        self.path = path
        self.runs = read_runs(path)
        self._done = {key_of(run) for run in self.runs}

    def __contains__(self, key):
        return key in self._done

    def add(self, run):
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps(run) + "\n")
        self.runs.append(run)
        self._done.add(key_of(run))


def key_of(run):
    return run["arm"], run["setting"], run["seed"]


def read_runs(path):
    """The runs of a file; a last line that a kill left unfinished is an error."""
    if not os.path.exists(path):
        return []
    runs = []
    with open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                runs.append(json.loads(line))
            except ValueError as error:
                raise ValueError(
                    f"Line {number} of '{path}' is not a whole run ({error}). Delete "
                    "that line; its run is made again."
                ) from error
    return runs
