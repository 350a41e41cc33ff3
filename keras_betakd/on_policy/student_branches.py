"""`StudentBranches`: training data in which the student changes a token of answers."""

from collections.abc import Callable
from typing import Any

from keras_betakd.on_policy.batches import column_of, grouped_records
from keras_betakd.on_policy.branch_drawer import BranchDrawer
from keras_betakd.on_policy.branches import DIRECTIONS, report_of, warning_of
from keras_betakd.on_policy.decoder import hashed_seed
from keras_betakd.on_policy.student_data import StudentData, given_weights
from keras_betakd.preprocessing.batches import per_label
from keras_betakd.preprocessing.records import PlacedRecords


class StudentBranches(StudentData):
    """Training data of whose answers the student changes one token, in a share of them.

    Use it for on-policy distillation of one step, without decoding: the transition
    probability alignment (TPA) of Align-TI. Of a given answer y_1 .. y_K, the token
    that ends it included, a place k is drawn uniformly from 1 .. K - 1, and a token z
    from the student's distribution q(. | x, y_<k) behind the given tokens before it.
    The record is then trained as y_1 .. y_{k-1} z, and its one row that counts is the
    one behind z, where teacher and student say what follows a token that the student
    would have written. With an energy l, the forward KL in the paper, its expectation
    over k and z is

        L_tpa = 1 / (K - 1) sum_k sum_z q(z | x, y_<k)
                l( p(. | x, y_<k, z), q(. | x, y_<k, z) )

    with p the teacher and no gradient through the draw. There is no label, so that the
    cross-entropy leaves the record out (its `"task_weight"` is 0), and energies alone
    are computed, with their betas. Tokens that end an answer are never drawn, since
    nothing follows them: q is that of the others.

    At the beginning of each epoch `on_policy * N` of the N records are drawn anew to
    become branches, *in the place of* their given answers; the other ones are trained
    as ever. With s = `on_policy` and the distiller's `reduction="example"`, where each
    record counts once, a branch by its one row and a given answer by the mean of its
    rows, the mean over an epoch is

        (1 - s) (L_sft + beta L_kd) + s beta L_tpa

    beside the terms of log beta, which count all records. So `on_policy=0.5` and twice
    the epochs train on L_sft + beta (L_kd + L_tpa), up to the factor 1 / 2, and on each
    given answer as often as before. With `reduction="token"` each row counts once, and
    a branch is one row: L_tpa then weighs less by the mean length of the given answers.

    Of a conversation the last answer is branched off; the others are read, and not
    trained on in that epoch. A record with sample weights of its own keeps them: a
    branch has that of y_{k+1}, in whose row it stands. Where an answer has one token,
    there is no k < K: a record that is drawn has weight 0 in that epoch, which `fit`
    warns of once.

    A training that is resumed draws the same branches: they depend on the weights, the
    seed, the number of the epoch, the order of the data and `batch_size` alone.

    Args:
        data: raw records, or a data set of batches of them, as for `StudentAnswers`.
            Every record needs its response.
        on_policy: the share of all records that is drawn to become branches, from 0 to
            1, or a function of the number of the epoch that returns it. Defaults to
            0.5.
        temperature, top_k, top_p: how z is drawn. By default from the whole
            distribution at temperature 1; `top_k=1` takes the most likely token.
        seed: int from which records, places and tokens are drawn. Defaults to 0.
        batch_size: the number of records that the student reads together to draw z; as
            many as a batch has if `None`.

    Attributes:
        last: list of the `Branch`es of the last epoch.
        unbranched: the number of records that were drawn in the last epoch and have an
            answer of one token.

    Raises:
        ValueError: an argument is not one of those above; and by `fit`, where a teacher
            is cached, tokenizers differ, an energy reads labels, a model has an encoder
            for its prompts, `steps_per_epoch` is given, or a drawn record has no
            response.

    `History` and `logs` get `branches`, the number of branches of an epoch,
    `branches_given`, the share of them in which the student drew the given token, and
    `unbranched`.

    Example:

    ```python
    branches = StudentBranches(records, on_policy=0.5)
    distiller.fit(branches, epochs=6)
    print(branches.last[0].place, branches.last[0].token)
    ```

    Reference: Chen et al., ICML 2026 (Align-TI, arXiv:2602.09483), which computes
    several tokens z at each place in one pass, under a mask; one z at one place of a
    record, as data, is our own way to the same rows.
    """

    unit = "branch"
    directions = DIRECTIONS

    def __init__(
        self,
        data: Any,
        on_policy: float | Callable[[int], float] = 0.5,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
    ):
        super().__init__(data, on_policy, temperature, top_k, top_p, seed, batch_size)
        self.unbranched = 0
        self._drawer = self._made_for = None

    def _prepare(self, distiller):
        """Makes what draws, unless the one there is has been made for the same."""
        preprocessor, view = distiller.preprocessor, distiller.student_view
        # Other variables, such as those of LoRA, are another program.
        variables = [id(variable) for variable in view.model.variables]
        made_for = preprocessor, view, variables
        if self._drawer is None or self._made_for != made_for:
            self._made_for = made_for
            classes = distiller.vocabulary_size
            self._drawer = BranchDrawer(
                preprocessor, view, classes=classes, **self.sampling
            )

    def report(self):
        return report_of(self.last, self.unbranched)

    def warning(self, epoch, count):
        return warning_of(self.last, self.unbranched, epoch)

    def _changed(self, batch, index):
        """The columns of a batch with its branches.

        Sample weights are those of rows, (B, K): a branch has one row that counts.
        """
        tokens = column_of(batch, "response_tokens")
        task = given_weights(batch, "task_weight")
        shape = len(tokens), self._drawer.preprocessor.max_response_length
        given = per_label(given_weights(batch, "sample_weight"), shape)
        weight = given.copy()
        for row in range(len(tokens)):
            if (index, row) not in self._own:
                continue
            branch, slot = self._own[index, row]
            weight[row] = 0
            if branch is not None:
                tokens[row], task[row] = branch.tokens, 0
                weight[row, branch.place] = given[row, slot]
        columns = {"response_tokens": tokens, "sample_weight": weight}
        return {**columns, "task_weight": task}

    def _make(self, drawn):
        """Draws the branches of the epoch."""
        self.unbranched = 0
        self._drawer.begin(hashed_seed(self.seed, self._epoch))
        size = self._group_size
        for keys, records in grouped_records(self._records(drawn), size):
            found = self._drawer.branches(records, size)
            for key, pair in zip(keys, found, strict=True):
                if pair is None:  # too long, and left out when it is trained
                    continue
                self._own[key] = pair
                if pair[0] is None:
                    self.unbranched += 1
                else:
                    self._add(pair[0])

    def _records(self, drawn):
        """Yields the records that were drawn, batch by batch, and their keys."""
        for index, rows in enumerate(drawn):
            if rows:
                records = self._rows_of(index, rows)
                if not isinstance(records, PlacedRecords):
                    places = self.places_of(index)
                    places = [f"number {places[row]} of the data" for row in rows]
                    records = PlacedRecords(records, places)
                yield [(index, row) for row in rows], records
