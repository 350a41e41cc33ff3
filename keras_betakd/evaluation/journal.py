"""The folder of a run: its settings, the answers so far, and at the end the report.

run.json        the settings; answers of other settings are not mixed with these
answers.jsonl   one answer a line, in LLaVA's format; sorted when the run is complete
report.json     the scores
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from keras_betakd.files import atomic_write, read_json, read_jsonl


class Answer(NamedTuple):
    """An answer that is on disk.

    Args:
        text: The answer.
        room: How many tokens it could have had.
    """

    text: str
    room: int


class Journal:
    """The answers of a run, written to disk as soon as they are generated.

    A `Journal` of the same folder and settings continues a run that was killed. A last
    line that was only half written is cut off.

    Args:
        folder: The folder to write to; created if it does not exist.
        settings: The settings that the answers depend on, as values of JSON.

    Attributes:
        lines: The answers so far.
        cut: Whether a half-written line was cut off.

    Raises:
        ValueError: The folder holds the answers of another run, or damaged files.
        OSError: It cannot be written.

    Example:

    ```python
    journal = Journal("output/gqa", {"model": "my_student", "benchmark": "gqa"})
    journal.append([{"question_id": "201", "text": "no"}])
    ```
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping):
        self.folder = pathlib.Path(folder)
        self.path = self.folder / "answers.jsonl"
        self._make_folder()
        self._claim(settings)
        self.cut = self.path.exists() and _cut_half_line(self.path)
        self.lines = read_jsonl(self.path) if self.path.exists() else []

    def _make_folder(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(
                "--output must be a folder, or the path of one to be made. Received: "
                f"'{self.folder}' ({error})"
            ) from error

    def _claim(self, settings):
        """Writes the settings, or compares them with those of the answers there."""
        path = self.folder / "run.json"
        if not self.path.exists() or not self.path.stat().st_size:
            return _write(path, settings)
        if not path.exists():
            raise ValueError(
                f"'{self.path}' is there, but no run.json that says whose answers it "
                "holds. Give another --output, or move it away."
            )
        known = read_json(path)
        if known != settings:
            raise ValueError(
                f"'{self.folder}' holds answers of another run: "
                f"{_differences(known, settings)}. Give another --output to keep "
                "them, or delete the folder to start anew."
            )

    def append(self, lines: Sequence[Mapping]) -> None:
        """Appends answers; returns once they are on disk and would survive a crash."""
        _write_through(self.path, "a", _jsonl(lines))
        self.lines += lines

    def sort(self, ids: Sequence[str]) -> None:
        """Sorts the answers in the order of these ids, those of the questions.

        Answers are generated in another order where a family can only decode prompts
        of one length together, or where a run was extended; but the published scorers
        of POPE and MME match answers and questions by their order.

        Args:
            ids: The ids of at least all questions that are answered.
        """
        places = {name: place for place, name in enumerate(ids)}
        lines = sorted(self.lines, key=lambda line: places[line["answer_id"]])
        if lines != self.lines:
            _replace(self.path, _jsonl(lines))
            self.lines = lines

    def write_report(self, report: Mapping) -> pathlib.Path:
        """Writes the report, and returns its path."""
        path = self.folder / "report.json"
        _write(path, report)
        return path


def _jsonl(lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


def _write(path, value):
    _replace(path, json.dumps(value, indent=1) + "\n")


def _replace(path, text):
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _write_through(path, mode, text):
    """Writes the text; returns once it is on disk and would survive a crash."""
    try:
        with open(path, mode, encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            error.errno,
            f"'{path}' cannot be written: {error}. Make room, or the folder writable; "
            "the same command goes on from there.",
        ) from error


def _cut_half_line(path):
    """Cuts off what follows the last line break; returns whether there was anything."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    os.truncate(path, end)
    return end < len(data)


def _differences(known, settings):
    if not isinstance(known, Mapping):
        return f"its run.json is {known!r}"
    names = [n for n in {**known, **settings} if known.get(n) != settings.get(n)]
    return ", ".join(
        f"{name} was {known.get(name)!r} and is now {settings.get(name)!r}"
        for name in names
    )
