"""The folder of a run of the command: an `AnswerJournal`, and at the end the report.

answers.jsonl is in LLaVA's format; report.json holds the scores.
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from keras_betakd.journal import AnswerJournal


class Answer(NamedTuple):
    """An answer that is on disk.

    Args:
        text: The answer.
        room: How many tokens it could have had.
    """

    text: str
    room: int


class Journal(AnswerJournal):
    """The answers of the command, as of `AnswerJournal`, and its report.

    Example:

    ```python
    with Journal("output/gqa", {"model": "my_student", "benchmark": "gqa"}) as journal:
        journal.expect_maker({"model": of_model(model)})
        journal.append([{"answer_id": "201", "text": "no"}])
        journal.write_report({"scores": {}})
    ```
    """

    user = "keras_betakd.evaluate"
    argument = "--output"
    again = "the same command"

    def write_report(self, report: Mapping) -> pathlib.Path:
        """Writes the report, and returns its path."""
        return self.write("report.json", report)
