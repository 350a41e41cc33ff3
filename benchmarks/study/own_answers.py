"""Answers that students write themselves, and the teacher's logits at their words.

An arm with `on_policy=0.5` trains on the student's own descriptions for half of the
rows, drawn anew and written anew in each part of the training (80 steps), as
`keras_betakd.StudentAnswers` does it in each epoch: one word after another from the
student's own distribution, without cross-entropy. An arm with `branches=0.5` has half
as many one-token branches (`own_branches.py`) beside the given rows, in batches that
are larger by them. The first parts are on given answers.
"""

import functools

import keras
import numpy as np
from arms import own_share
from own_branches import Brancher
from scenes import END, LONGEST, WORDS

WARM_START = 2  # parts on given answers


class OwnAnswers:
    """Puts the own answers of all runs behind the given rows of their data.

    The number of rows is the same in all parts, so that nothing is compiled again.

    Args:
        jobs: list of (arm, setting, seed).
        tasks: the `tasks.Task` of each.
        firsts: the number of each task's first row in the data.
        data: `(x, y, sample_weight)`, the given rows.
        rows: the number of rows that a run draws in a part.
        student: the student's model, whose weights are given with each call.
    """

    def __init__(self, jobs, tasks, firsts, data, rows, student):
        self.kinds, self.shares = zip(*(own_share(job[0]) for job in jobs), strict=True)
        self.seeds = [seed for _, _, seed in jobs]
        self.tasks, self.firsts = tasks, firsts
        counts = [round(share * rows) for share in self.shares]
        self._starts = len(data[1]) + np.cumsum([0, *counts])
        x, labels, weight = data
        ones = np.ones((len(labels), 1), "float32")
        given = {**x, "task_weight": ones}, labels, weight
        self.data = keras.tree.map_structure(
            lambda rows: _with_room(rows, sum(counts)), given
        )
        self._write, self._brancher = writer(student), Brancher(student)

    def with_own(self, number, part, weights_of):
        """The rows of a part, (jobs, steps, batch), with those that students make.

        Own answers stand in the place of given ones, branches beside them in larger
        batches.

        Args:
            number: the number of the part; writes the answers into `data`.
            part: the rows that are drawn.
            weights_of: function of the number of a job to its student's weights.
        """
        if number < WARM_START:
            return part
        found, beside = part.copy(), []
        for i, share in enumerate(self.shares):
            rows = found[i].reshape(-1)
            rng = np.random.default_rng((self.seeds[i], number, 11))
            places = rng.permutation(len(rows))[: round(share * len(rows))]
            ours = slice(self._starts[i], self._starts[i + 1])
            self._answer(i, ours, rows[places] - self.firsts[i], weights_of(i), number)
            made = np.arange(ours.start, ours.stop)
            if self.kinds[i] == "branches":
                beside.append(made.reshape(part.shape[1], -1))
            else:
                rows[places] = made
        return np.concatenate([found, beside], axis=2) if beside else found

    def _answer(self, i, ours, scenes, weights, number):
        split, seed = self.tasks[i].train, self.seeds[i] * 100 + number
        images = split.student["images"][scenes]
        if self.kinds[i] == "branches":
            found = self._brancher.rows(split, scenes, weights, seed)
        else:
            found = self._written(images, weights, seed)
        before, words, weight_of = found
        x, labels, weight = self.data
        x["student"]["images"][ours] = images
        x["student"]["tokens"][ours] = before
        x["teacher"]["teacher_logits"][ours] = split.teacher_at(before, images)
        labels[ours] = words
        weight[ours] = x["sample_weight"][ours] = weight_of
        x["task_weight"][ours] = 0

    def _written(self, images, weights, seed):
        """`(before, words, weight)` of whole answers, (N, K) each."""
        words = np.asarray(self._write(weights, images, seed))
        before = np.concatenate([np.full((len(words), 1), START), words[:, :-1]], 1)
        return before, words, words > 0


def _with_room(rows, count):
    """An array with `count` rows of zeros behind its own."""
    return np.concatenate([rows, np.zeros((count, *rows.shape[1:]), rows.dtype)])


START = WORDS.index("<start>")


def writer(student):
    """A function of weights, images and a seed: the words that a student draws, (N, K).

    Args:
        student: the student's model.
    """
    import jax
    from jax import numpy as jnp

    end = WORDS.index(END)

    @functools.partial(jax.jit)
    def written(weights, images, seed):
        start = jnp.zeros((len(images), LONGEST + 1), "int32").at[:, 0].set(START)

        def add_word(place, state):
            tokens, key = state
            key, now = jax.random.split(key)
            x = {"tokens": tokens[:, :-1], "images": images}
            logits = student.stateless_call(weights, [], x)[0][:, place]
            logits = logits.at[:, 0].set(-jnp.inf)  # padding is no word
            word = jax.random.categorical(now, logits).astype("int32")
            before = tokens[:, place]
            ended = (before == end) | (before == 0)
            return tokens.at[:, place + 1].set(jnp.where(ended, 0, word)), key

        key = jax.random.key(seed)
        return jax.lax.fori_loop(0, LONGEST, add_word, (start, key))[0][:, 1:]

    return written
