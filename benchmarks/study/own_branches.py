"""Given descriptions of which students change one word, as `StudentBranches` does it.

A place k is drawn uniformly from 1 .. K - 1 of the K words of a description, and a word
from the student's own distribution behind the k - 1 words before it. Teacher and
student are compared at the one row behind that word. The end of a description is never
drawn: nothing follows it. As many branches beside the given rows of a batch are what
`StudentBranches(on_policy=0.5)` makes of batches of twice the size.
"""

import functools

import keras
import numpy as np
from scenes import END, WORDS


class Brancher:
    """Makes the rows of branches, with the student's own words in them.

    Args:
        student: the student's model, whose weights are given with each call.
    """

    def __init__(self, student):
        self._drawn = word_drawer(student)

    def rows(self, split, scenes, weights, seed):
        """`(before, labels, weight)` of branches, (N, K) each.

        Args:
            split: the `sentences.Sentences` that is trained on.
            scenes: the numbers of N of its rows.
            weights: the student's.
            seed: int.

        Returns:
            The words before each word, the given labels, and weights that are 1 where
            the student's word stands before, and 0 elsewhere.
        """
        labels = split.labels[scenes]
        lengths = (labels > 0).sum(axis=1)
        shares = np.random.default_rng((seed, 13)).random(len(scenes))
        places = 1 + (shares * (lengths - 1)).astype(int)
        before, numbers = split.student["tokens"][scenes], np.arange(len(scenes))
        x = {"tokens": before, "images": split.student["images"][scenes]}
        before = before.copy()
        before[numbers, places] = self._drawn(weights, x, places - 1, seed)
        weight = np.zeros(labels.shape, "float32")
        weight[numbers, places] = 1
        return before, labels, weight


def word_drawer(student):
    """A function of weights, inputs, places and a seed: the words drawn there, (N,)."""
    import jax
    from jax import numpy as jnp

    never = np.array([WORDS.index("<pad>"), WORDS.index(END)])

    @functools.partial(jax.jit)
    def drawn(weights, x, places, seed):
        logits = student.stateless_call(weights, [], x)[0]
        logits = jnp.take_along_axis(logits, places[:, None, None], axis=1)[:, 0]
        logits = logits.at[:, never].set(-jnp.inf)
        return jax.random.categorical(jax.random.key(seed), logits)

    return lambda *inputs: keras.ops.convert_to_numpy(drawn(*inputs))
