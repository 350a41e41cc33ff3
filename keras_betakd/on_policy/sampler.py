"""`DrawnAnswerSampler`: draws tokens from a student's own distribution.

Imports keras-hub, so it is imported where a student answers, not before.
"""

import keras
from keras import ops

from keras_betakd.models.sampler import AnswerSampler

_LEAST = -1e30  # a logarithm that no token is drawn at


class DrawnAnswerSampler(AnswerSampler):
    """Samples each token from the model's distribution, cut only if asked to.

    Args:
        temperature: float, by which logits are divided.
        top_k: int, the number of most likely tokens that are drawn from, and those
            that are as likely as the last of them; 1 for the first of the most likely
            ones, `None` for all.
        top_p: float, the probability that the tokens drawn from have together, the
            most likely ones first; `None` for all.
        classes: int, the number of classes, from the first, that are tokens of teacher
            and student; the others pad a vocabulary, and are never drawn. `None` for
            all.
        excluded: ids that are never drawn: those that stand for images in a prompt, and
            that a model would take for one in an answer, too.

    Raises:
        ValueError: `top_k` is more than `classes`.
    """

    def __init__(
        self, temperature=1.0, top_k=None, top_p=None, classes=None, excluded=()
    ):
        super().__init__(temperature=temperature)
        if top_k is not None and classes is not None and top_k > classes:
            raise ValueError(
                "`top_k` cannot be more than the number of tokens. Received: "
                f"top_k={top_k}, tokens: {classes}"
            )
        self.excluded = tuple(excluded)
        self.top_k = top_k
        self.top_p = top_p
        self.classes = classes
        self.seed_generator = keras.random.SeedGenerator(0)

    def begin(self, seed):
        """Starts a new stream of random numbers.

        Args:
            seed: int from 0 to 2^31 - 1. Streams of seeds that are near each other may
                overlap: on PyTorch, Keras adds up seed and number of draws.
        """
        self.seed_generator.state.assign([seed, 0])

    def get_next_token(self, probabilities):
        drawn = ops.where(self.allowed(probabilities), probabilities, 0.0)
        logarithms = ops.where(drawn > 0, ops.log(ops.maximum(drawn, 1e-37)), _LEAST)
        found = keras.random.categorical(
            logarithms, 1, dtype="int32", seed=self.seed_generator
        )
        return ops.squeeze(found, axis=-1)

    def allowed(self, probabilities):
        """The tokens that may be drawn: bool (B, V)."""
        numbers = ops.arange(ops.shape(probabilities)[-1], dtype="int32")
        allowed = numbers[None] < (self.classes or ops.shape(probabilities)[-1])
        for token in self.excluded:
            allowed = ops.logical_and(allowed, numbers[None] != token)
        kept = ops.where(allowed, probabilities, 0.0)
        if self.top_k == 1:  # one token, also where several are equally likely
            return numbers[None] == ops.argmax(kept, axis=-1)[:, None]
        if self.top_k is not None:
            least = ops.top_k(kept, self.top_k)[0][:, -1:]
            allowed = ops.logical_and(allowed, kept >= least)
            kept = ops.where(allowed, probabilities, 0.0)
        if self.top_p is not None:
            kept = kept / ops.sum(kept, axis=-1, keepdims=True)
            falling = -ops.sort(-kept, axis=-1)
            before = ops.cumsum(falling, axis=-1) - falling
            count = ops.sum(ops.cast(before < self.top_p, "int32"), axis=-1)
            least = ops.take_along_axis(falling, count[:, None] - 1, axis=-1)
            allowed = ops.logical_and(allowed, kept >= least)
        return allowed

    def get_config(self):
        return {
            **super().get_config(),
            "top_k": self.top_k,
            "top_p": self.top_p,
            "classes": self.classes,
            "excluded": self.excluded,
        }
