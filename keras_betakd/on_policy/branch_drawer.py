"""`BranchDrawer`: draws a place in each given answer, and the student's token there."""

import keras
import numpy as np

from keras_betakd.models.chat_generation import end_tokens
from keras_betakd.models.uncached_decoding import NextToken
from keras_betakd.on_policy.branches import Branch
from keras_betakd.on_policy.decoder import hashed_seed
from keras_betakd.preprocessing.adapters import take_records
from keras_betakd.preprocessing.checks import RecordsTooLong
from keras_betakd.preprocessing.records import record_ids


class BranchDrawer:
    """Draws one-token branches with a student, and keeps what was compiled for it.

    The student reads each record once, as it is trained, and its logits are computed at
    one place of each. A token that ends answers is never drawn: behind it there is no
    row.

    Args:
        preprocessor: the `DistillationPreprocessor`.
        view: the `CausalLMView` of the student.
        temperature, top_k, top_p, classes: as for `DrawnAnswerSampler`.
    """

    def __init__(
        self, preprocessor, view, temperature=1.0, top_k=None, top_p=None, classes=None
    ):
        from keras_betakd.on_policy.sampler import DrawnAnswerSampler

        self.preprocessor = preprocessor
        student = preprocessor.student_preprocessor
        ends = end_tokens(student, preprocessor.prompt_templates["student"])
        # Classes that pad a vocabulary are no tokens.
        size = student.tokenizer.vocabulary_size()
        classes = size if classes is None else min(classes, size)
        excluded = (*view.placeholder_ids, *ends)
        self.sampler = DrawnAnswerSampler(temperature, top_k, top_p, classes, excluded)
        self._next_token = NextToken(view, as_logits=True)
        self._generator = None

    def begin(self, seed):
        """Starts anew, as if nothing had been drawn before.

        Args:
            seed: int below 2^31, from which places and tokens are drawn.
        """
        self.sampler.begin(seed)
        self._generator = np.random.default_rng(hashed_seed(seed, "places"))

    def branches(self, records, size):
        """The branches of raw records.

        Args:
            records: dict of raw records, at most `size`.
            size: the number of records that the student reads together. Fewer are
                filled up, so that nothing is compiled again.

        Returns:
            For each record `(branch, slot)`: a `Branch` and the number of the row that
            predicts y_{k+1} among those of the whole given record. Both are `None`
            where the answer has one token. `None` in the place of the pair where a
            record is too long, and such are left out (`on_too_long="skip"`).

        Raises:
            ValueError: a record is wrong or, unless such are left out, too long. The
                message names it.
        """
        names = record_ids(records, len(records["prompts"]))
        found = [None] * len(names)
        rows, encoded = self._encoded(records, len(names))
        if not rows:
            return found
        answers = [encoded.turns(i)[-1] for i in range(len(rows))]
        places = [self._generator.integers(1, max(len(a), 2)) for a in answers]
        before = [a[k - 1] for a, k in zip(answers, places, strict=True)]
        last = encoded.positions[np.arange(len(rows)), before]
        tokens = self._tokens(encoded.inputs, last.astype("int32"), size)
        for i, (slots, place) in enumerate(zip(answers, places, strict=True)):
            found[rows[i]] = None, None
            if len(slots) > 1:
                given = tuple(encoded.labels[i, slots].tolist())
                branch = Branch(names[rows[i]], given, int(place), int(tokens[i]))
                found[rows[i]] = branch, int(slots[place])
        return found

    def _encoded(self, records, count):
        """`(rows, encoded)`: the records that fit, and the student's side of them."""
        rows = list(range(count))
        while rows:
            chosen = take_records(records, rows)
            try:
                return rows, self.preprocessor.student_side(chosen)
            except RecordsTooLong as error:
                if self.preprocessor.on_too_long == "raise":
                    raise
                rows = [row for i, row in enumerate(rows) if i not in error.reasons]
        return [], None

    def _tokens(self, inputs, last, size):
        """The student's tokens behind these positions: int (B,)."""
        rows = np.minimum(np.arange(size), len(last) - 1)
        filled = keras.tree.map_structure(lambda x: np.asarray(x)[rows], inputs)
        logits = self._next_token.predict_on_batch({"x": filled, "last": last[rows]})
        # Replicas of TensorFlow return all rows each.
        logits = np.array(logits[:size])
        # Before the softmax: beside a token that is sure the others would be 0.
        logits[:, list(self.sampler.excluded)] = -np.inf
        logits[:, self.sampler.classes :] = -np.inf
        logits = keras.ops.convert_to_tensor(logits)
        probabilities = self.sampler.compute_probabilities(logits)
        found = self.sampler.get_next_token(probabilities)
        return keras.ops.convert_to_numpy(found)[: len(last)]
