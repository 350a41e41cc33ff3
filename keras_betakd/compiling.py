"""How the distiller is configured for training: optimizer, task loss, metrics."""

import keras

from keras_betakd.components import computes_in_float16
from keras_betakd.fault_report import check_policy
from keras_betakd.optimizers import FiniteStepsOptimizer

_SKIPPING = (keras.optimizers.LossScaleOptimizer, FiniteStepsOptimizer)


class Compiling:
    """The part of the distiller that reads what `compile` is given.

    Mixed into `BetaKDDistiller`, in front of `keras.Model`.
    """

    def compile(
        self,
        optimizer="auto",
        loss="auto",
        *,
        weighted_metrics="auto",
        auto_scale_loss=True,
        on_nonfinite="skip",
        **kwargs,
    ):
        """Configures the distiller for training.

        Args:
            optimizer: optimizer or its name; `"auto"` for `Adam(2e-5)`. The betas are
                excluded from its weight decay, which would pull them towards their
                start.
            loss: the task loss; `"auto"` for the sparse cross-entropy from logits.
                Another must be a `keras.losses.Loss` or a function that takes labels
                (B, K) and logits (B, K, V) and returns one value for each label.
            weighted_metrics: metrics of the student at the supervised rows; `"auto"`
                for its accuracy. Others are given its logits, which rules out the
                fused head.
            auto_scale_loss: whether to scale the loss when the student computes in
                float16.
            on_nonfinite: what to do about NaN and infinity. Rows where the teacher
                gives them never enter an energy or a mean, and a step with a loss or a
                gradient that is not finite never changes student, betas, optimizer or
                metrics. `"skip"` (default) goes on, and names the samples in a warning
                at the end of the epoch. `"raise"` ends the run with a
                `NonFiniteError` that names them; it waits for each step's result.
            **kwargs: as for `keras.Model.compile`.
        """
        self._freeze()
        self.on_nonfinite = check_policy(on_nonfinite)
        if optimizer == "auto":
            optimizer = keras.optimizers.Adam(2e-5)
        optimizer = keras.optimizers.get(optimizer)
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if auto_scale_loss and not scaled and computes_in_float16(self.student):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        if not isinstance(optimizer, _SKIPPING):
            optimizer = FiniteStepsOptimizer(optimizer)
        self._needs_logits = loss != "auto" or weighted_metrics not in (
            "auto",
            None,
            [],
        )
        self._check_fused()
        self._reports_accuracy = weighted_metrics == "auto"
        self._exclude_betas_from_weight_decay(optimizer)
        super().compile(
            optimizer=optimizer,
            weighted_metrics=None if weighted_metrics == "auto" else weighted_metrics,
            auto_scale_loss=False,
            **kwargs,
        )
        self.task_loss = _task_loss(loss)
        self._compile_arguments = keras.saving.serialize_keras_object(
            {
                "optimizer": optimizer,
                "loss": loss,
                "weighted_metrics": weighted_metrics,
                "auto_scale_loss": auto_scale_loss,
                "on_nonfinite": on_nonfinite,
                **kwargs,
            }
        )
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def _check_fused(self):
        head = self.student_view.head
        sees = head is not None and head.has_matrix
        if self.fused and (self._needs_logits or self._unfusable() or not sees):
            raise ValueError(
                "`fused=True` needs a student whose LM head can be seen (a keras-hub "
                "CausalLM that is not quantised) and the default `loss` and "
                "`weighted_metrics`: others are given the logits, which the fused head "
                "never makes, as do some energies. Use `fused=None`. Received: student="
                f"{type(self.student).__name__}, head={head}, energies that need "
                f"logits: {self._unfusable()}"
            )

    def _exclude_betas_from_weight_decay(self, optimizer):
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        variables = [v for b in self._all_betas().values() for v in b.variables]
        learned = [energy.parameter for energy in self.energies.values()]
        variables += [v for v in learned if v is not None]
        if not inner.weight_decay or not variables:
            return
        if inner.built:
            raise ValueError(
                "The optimizer is built already, so the betas can no longer be "
                "excluded from its weight decay, which would pull them towards "
                "their start. Pass a new optimizer to `compile`. Received: "
                f"optimizer={inner.name}, weight_decay={inner.weight_decay}"
            )
        inner.exclude_from_weight_decay(var_list=variables)


def _task_loss(loss):
    if loss == "auto":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if isinstance(loss, str) or not callable(loss):
        raise ValueError(
            '`loss` must be "auto", a `keras.losses.Loss` for logits, or a function '
            "that returns one value for each label. A name stands for a loss that "
            f"expects probabilities. Received: loss={loss!r}"
        )
    return loss
