"""`step_memory`: what a training step takes beside what is held between steps."""

import dataclasses
import warnings

import keras

from keras_betakd.backends import runs_on_processor
from keras_betakd.distribution.devices import batch_parts
from keras_betakd.distribution.replicas import process_position

_MORE = {
    "jax": "On a CPU, XLA hands some operations to a library (YNNPACK) whose memory it "
    "does not know of, so a step may take more there than this plan says.",
    "tensorflow": "On TensorFlow a step takes more than the arrays of its graph, which "
    "this plan has: the smaller the step, the larger the share (docs/speed.md).",
}


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes on each device, beside variables and batch.

    Attributes:
        peak: what a step takes at its fullest moment, gradients included.
        activations: what the forward pass keeps for the gradient.
    """

    peak: int
    activations: int


def step_memory(distiller, batch, trained=None):
    """The `StepMemory` of a step, of which no operation runs.

    Args:
        distiller: a compiled, built `BetaKDDistiller`.
        batch: `(x, y, sample_weight)`, nests of `keras.KerasTensor`s of known shapes.
        trained: the variables whose gradients are computed, without the optimizer's
            step; all that train, with this step, if `None`.
    """
    return _BACKENDS[keras.backend.backend()](distiller, batch, trained)


def _jax(distiller, batch, trained):
    from keras_betakd.memory.jax_step import compiled_step

    return StepMemory(*compiled_step(distiller, batch, trained))


def _torch(distiller, batch, trained):
    from keras_betakd.memory.torch_step import counted_step

    return StepMemory(*counted_step(distiller, batch, trained))


def _tensorflow(distiller, batch, trained):
    from keras_betakd.memory.tensorflow_step import traced_step

    return StepMemory(*traced_step(distiller, batch, trained))


def expect_countable(distiller):
    """Raises where the memory of a step cannot be told from shapes.

    Warns where a step may take more than can be told.

    Raises:
        ValueError: models are not built, the step is divided over replicas, or
            TensorFlow decides on the memory as it runs.
    """
    if not distiller.built or not distiller.optimizer.built:
        raise ValueError(
            "The memory plan needs all variables: teacher, student and betas are built "
            "by their first batch otherwise. Call `distiller.evaluate` on a small one, "
            "then `compile` again. Received: models that are not built"
        )
    backend = keras.backend.backend()
    replicas = batch_parts(distiller) if backend == "tensorflow" else 1
    replicas = process_position()[1] if backend == "torch" else replicas
    if replicas > 1:
        raise ValueError(
            "The memory plan of replicas (a `tf.distribute` strategy, processes of "
            "`torchrun`) is that of one of them: make it in a process without the "
            "others, of the records that one replica gets. Received: "
            f"{replicas} replicas"
        )
    if backend == "tensorflow" and (distiller.jit_compile or distiller.remat):
        raise ValueError(
            "The memory of a step on TensorFlow is not known before it runs with "
            "`jit_compile=True` (the default on a GPU), where XLA decides on it, and "
            "with `remat=True`, where it depends on the order in which the runtime "
            "starts operations. Make the plan with `KERAS_BACKEND=jax`, where XLA is "
            f"asked, or with PyTorch. Received: jit_compile={distiller.jit_compile}, "
            f"remat={distiller.remat}"
        )
    if backend == "tensorflow" or (backend == "jax" and runs_on_processor()):
        warnings.warn(_MORE[backend], stacklevel=4)


_BACKENDS = {"jax": _jax, "torch": _torch, "tensorflow": _tensorflow}
