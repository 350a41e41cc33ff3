"""`AnswerJournal`: a folder with the answers of a run, which goes on after a kill.

run.json        what the answers depend on; answers that do not are not mixed with these
answers.jsonl   one answer a line; sorted when the run is complete
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from keras_betakd import fingerprints
from keras_betakd.files import atomic_write, read_json, read_jsonl
from keras_betakd.folders import FolderOwner, inside

# Keys of run.json, and of the metadata of a line.
_MAKER, _RUN = "made_by", "run"


class AnswerJournal:
    """The answers of a run, written to disk as soon as they are generated.

    A journal of the same folder and settings continues a run that was killed. A last
    line that was only half written is cut off. Until it is closed, no other process can
    write in the folder. A subclass says in class attributes what errors call things.

    Args:
        folder: The folder to write to; created if it does not exist.
        settings: What the answers depend on, as values of JSON.

    Attributes:
        user: What uses the folder.
        argument: What names the folder.
        again: What is to be repeated to go on.
        lines: The answers so far, as dicts with an `"answer_id"` and `"metadata"`.
        cut: Whether a half-written line was cut off.
        settings: What the answers depend on, as run.json has it.

    Raises:
        ValueError: The folder holds the answers of another run, or damaged files.
        FolderInUseError: Another process writes in the folder.
        OSError: It cannot be written.

    Example:

    ```python
    class Journal(AnswerJournal):
        user, argument, again = "my_script", "`folder`", "the same call"

    with Journal("output/gqa", {"benchmark": "gqa"}) as journal:
        journal.expect_maker({"model": of_model(model)})
        journal.append([{"answer_id": "201", "text": "no"}])
    ```
    """

    user: str
    argument: str
    again: str

    def __init__(self, folder: str | os.PathLike, settings: Mapping):
        self.folder = pathlib.Path(folder)
        self._owner = self._owned_folder()
        try:
            # Not a link to a file elsewhere, which would be written to.
            self.path = inside(self.folder, "answers.jsonl")
            self.settings = self._claim(settings)
            self.cut = self.path.exists() and _cut_half_line(self.path)
            self.lines = read_jsonl(self.path) if self.path.exists() else []
            self._expect_lines_of_run()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self) -> None:
        """Lets other processes write in the folder."""
        self._owner.release()

    def _owned_folder(self):
        try:
            return FolderOwner(self.folder, self.user)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(
                f"{self.argument} must be a folder, or the path of one to be made. "
                f"Received: '{self.folder}' ({error})"
            ) from error

    def _claim(self, settings):
        """Writes the settings, or compares them with those of the answers there."""
        path = self.folder / "run.json"
        if not self.path.exists() or not self.path.stat().st_size:
            _write(path, settings)
            return dict(settings)
        if not path.exists():
            raise ValueError(
                f"'{self.path}' is there, but no run.json that says whose answers it "
                f"holds. Give another {self.argument}, or move it away."
            )
        known = read_json(path)
        if not isinstance(known, dict):
            raise self._other_run(known, settings)
        if _without_maker(known) != settings:
            raise self._other_run(_without_maker(known), settings)
        return known

    def expect_maker(self, maker: Mapping) -> None:
        """Checks that the next answers come from where the ones on disk come from.

        It is called before the first answer is appended. Answers that are complete can
        be scored without it, by a later version for example.

        Args:
            maker: What answers: versions, and the model's digest; values of JSON.

        Raises:
            ValueError: The answers on disk have another maker.
        """
        settings = {**_without_maker(self.settings), _MAKER: dict(maker)}
        if self.lines and self.settings != settings:
            raise self._other_run(self.settings, settings)
        self.write("run.json", settings)
        self.settings = settings

    def _other_run(self, known, settings):
        return ValueError(
            f"'{self.folder}' holds answers of another run: "
            f"{_differences(known, settings)}. Give another {self.argument} to keep "
            "them, or delete the folder to start anew."
        )

    def _expect_lines_of_run(self):
        digest = fingerprints.of_value(self.settings)
        for number, line in enumerate(self.lines, 1):
            metadata = line.get("metadata")
            is_ours = isinstance(metadata, dict) and "max_new_tokens" in metadata
            if is_ours and metadata.get(_RUN) != digest:
                raise ValueError(
                    f"Line {number} of '{self.path}' was not answered under the "
                    "settings in run.json: one of the two files was changed, or comes "
                    f"from another run. Give another {self.argument} to ask anew."
                )

    def append(self, lines: Sequence[Mapping]) -> None:
        """Appends answers; returns once they are on disk and would survive a crash.

        Each gets the digest of the run's settings into its `metadata`.
        """
        self._owner.expect()
        run = {_RUN: fingerprints.of_value(self.settings)}
        ours = [
            {**line, "metadata": {**line.get("metadata", {}), **run}} for line in lines
        ]
        _append(self.path, _jsonl(ours), self.again)
        self.lines += ours

    def sort(self, ids: Sequence[str]) -> None:
        """Sorts the answers in the order of these ids.

        Answers are generated in another order where a family can only decode prompts
        of one length together, or where a run was extended; but the published scorers
        of POPE and MME match answers and questions by their order.

        Args:
            ids: The ids of at least all that is answered, each once.
        """
        places = {name: place for place, name in enumerate(ids)}
        lines = sorted(self.lines, key=lambda line: places[line["answer_id"]])
        if lines != self.lines:
            self._owner.expect()
            _replace(self.path, _jsonl(lines))
            self.lines = lines

    def write(self, name: str, value) -> pathlib.Path:
        """Writes a value of JSON to a file of the folder, and returns its path."""
        self._owner.expect()
        path = self.folder / name
        _write(path, value)
        return path


def _jsonl(lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


def _write(path, value):
    _replace(path, json.dumps(value, indent=1) + "\n")


def _replace(path, text):
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _append(path, text, again):
    """Appends the text; returns once it is on disk and would survive a crash."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            error.errno,
            f"'{path}' cannot be written: {error}. Make room, or the folder writable; "
            f"{again} goes on from there.",
        ) from error


def _cut_half_line(path):
    """Cuts off what follows the last line break; returns whether there was anything."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    os.truncate(path, end)
    return end < len(data)


def _without_maker(settings):
    return {name: value for name, value in settings.items() if name != _MAKER}


def _differences(known, settings):
    """What differs, as text; of dicts, the entries that do."""
    if not isinstance(known, Mapping):
        return f"its run.json is {known!r}"
    found = []
    for name in {**known, **settings}:
        before, now = known.get(name), settings.get(name)
        if before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            entries = [k for k in {**before, **now} if before.get(k) != now.get(k)]
            found += [
                f"{name}: {k} was {before.get(k)!r} and is now {now.get(k)!r}"
                for k in entries
            ]
        else:
            found.append(f"{name} was {before!r} and is now {now!r}")
    return ", ".join(found)
