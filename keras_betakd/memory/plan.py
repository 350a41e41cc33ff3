"""`MemoryPlan`: the bytes that a training step takes, part by part."""

import dataclasses

_LINE = "{:<44} {:>12}"


@dataclasses.dataclass(frozen=True)
class MemorySaving:
    """Something that would make a training step take less memory.

    Attributes:
        option: what to do, in the words of this library's arguments.
        bytes: by how much it lowers the peak on each device, in bytes. Where the option
            brings other weights (LoRA's factors, a cache's outputs), without these.
    """

    option: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """The memory of a training step on each device, in bytes; `str` gives a table.

    `BetaKDDistiller.memory_plan` makes it. What is held between steps adds up to
    `held`. Gradients, activations and tiles are not all there at the same time, so that
    `peak` is less than the sum of all parts, or more, by what operations need while
    they run.

    Attributes:
        weights: dict by part (student, teachers, betas, ...), of what each takes. The
            parts are those of `BetaKDDistiller.summary`, and the metrics.
        optimizer: the slots of the optimizer (moments, accumulated gradients), and of
            a loss scale.
        beta_optimizer: those of the optimizer of the betas.
        batch: the inputs, labels and weights of the batch.
        gradients: one of each weight that trains.
        activations: what the forward pass of the student keeps for the gradient. On
            TensorFlow that of the loss, too; on JAX before XLA leaves out what it can
            compute again, so that it may exceed the peak.
        head: the logits, and arrays of their size, of the rows that the heads work on
            at a time: of a tile where the head is fused, else of all answers.
        peak: all that is held at the fullest moment of a step.
        devices: how many devices share the step. All take the same.
        savings: up to three `MemorySaving`s, the largest first.
    """

    weights: dict[str, int]
    optimizer: int
    beta_optimizer: int
    batch: int
    gradients: int
    activations: int
    head: int
    peak: int
    devices: int = 1
    savings: tuple[MemorySaving, ...] = ()

    @property
    def held(self) -> int:
        """What is held between steps: weights, optimizers and a batch."""
        weights = sum(self.weights.values())
        return weights + self.optimizer + self.beta_optimizer + self.batch

    def __str__(self):
        where = "" if self.devices == 1 else f" on each of {self.devices} devices"
        held = {
            **self.weights,
            "optimizer": self.optimizer,
            "optimizer of the betas": self.beta_optimizer,
            "batch": self.batch,
        }
        within = {
            "gradients": self.gradients,
            "activations": self.activations,
            "logits of the heads": self.head,
        }
        rule = "=" * len(_LINE.format("", ""))
        lines = [
            _LINE.format(f"A training step{where}", "MB"),
            rule,
            *_lines(held),
            _LINE.format("held between steps", _megabytes(self.held)),
            rule,
            *_lines(within),
            _LINE.format("peak, all in all", _megabytes(self.peak)),
        ]
        if self.savings:
            lines += [rule, _LINE.format("The peak is lower with", "by MB")]
            lines += _lines({saving.option: saving.bytes for saving in self.savings})
        return "\n".join(lines)


def _lines(sizes):
    return [_LINE.format(name, _megabytes(size)) for name, size in sizes.items()]


def _megabytes(size):
    return f"{size / 1e6:,.1f}"
