"""How the distiller is configured for training: optimizer, task loss, metrics."""

import contextlib

import keras

from keras_betakd.distillation.finite_steps_optimizer import FiniteStepsOptimizer
from keras_betakd.distillation.freezing import computes_in_float16
from keras_betakd.distillation.nonfinite_report import (
    FaultReport,
    FaultWatch,
    check_policy,
    with_callbacks,
)
from keras_betakd.distribution.devices import batch_parts
from keras_betakd.preprocessing.adapters import is_raw_records, split_records
from keras_betakd.preprocessing.batches import BatchFormatter, EpochOrder, formatted

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


class RecordFitting:
    """The part of the distiller that takes whatever data its user has.

    Mixed into `BetaKDDistiller`, in front of `keras.Model`. Everything is brought
    into the distiller's form (see `keras_betakd.preprocessing.batches`) and handed on.
    """

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        *,
        sample_weight=None,
        shuffle=True,
        validation_data=None,
        validation_split=0.0,
        validation_batch_size=None,
        initial_epoch=0,
        **kwargs,
    ):
        """Trains the student and the betas; as `keras.Model.fit`.

        `x` may be raw records too (see the class). `class_weight` is not supported:
        put it into `sample_weight`. The order of data sets and records rests on the
        seed and the epoch's number, so a training that goes on at `initial_epoch` (see
        `TrainingBackup`) sees what it would have seen.
        """
        if kwargs.get("class_weight") is not None:
            raise ValueError(
                "`class_weight` is not supported; give each label its weight in "
                f"`sample_weight`. Received: {kwargs['class_weight']}"
            )
        self._freeze()
        self._look_for_shared_tower()
        ours = [FaultReport(self.on_nonfinite, at_epochs=True)]
        if validation_split and is_raw_records(x):
            x, validation_data = split_records(x, validation_split)
            validation_split = 0.0
        x, y, sample_weight = self._format(x, y, sample_weight, batch_size, shuffle)
        if validation_data is not None:
            if isinstance(validation_data, tuple):
                validation_data = (*validation_data, None, None)[:3]
            else:
                validation_data = (validation_data, None, None)
            validation_data = self._format(
                *validation_data, validation_batch_size or batch_size
            )
        batched = isinstance(x, keras.utils.PyDataset)
        if batched:
            # Keras would shuffle by a state that a resumed training does not have.
            shuffle = False
            ours.append(EpochOrder(x, initial_epoch))
        return super().fit(
            x,
            y,
            batch_size=None if batched else batch_size,
            epochs=epochs,
            initial_epoch=initial_epoch,
            sample_weight=sample_weight,
            shuffle=shuffle,
            validation_data=validation_data,
            validation_split=validation_split,
            validation_batch_size=None if batched else validation_batch_size,
            callbacks=with_callbacks(kwargs.pop("callbacks", None), *ours),
            **kwargs,
        )

    def evaluate(
        self, x=None, y=None, batch_size=None, *, sample_weight=None, **kwargs
    ):
        """The losses, energies and betas on other data; as `keras.Model.evaluate`."""
        self._look_for_shared_tower()
        x, y, sample_weight = self._format(x, y, sample_weight, batch_size)
        if isinstance(x, keras.utils.PyDataset):
            batch_size = None
        # Within `fit` Keras hands on a list of its own, in which the report is.
        callbacks = kwargs.pop("callbacks", None)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            report = FaultReport(self.on_nonfinite, at_epochs=False)
            callbacks = with_callbacks(callbacks, report)
        return super().evaluate(
            x,
            y,
            batch_size=batch_size,
            sample_weight=sample_weight,
            callbacks=callbacks,
            **kwargs,
        )

    def predict(self, x, batch_size=None, **kwargs):
        """The student's logits at the answer rows: (N, K, V)."""
        x, _, _ = self._format(x, None, None, batch_size)
        if isinstance(x, keras.utils.PyDataset):
            batch_size = None
        self._predicting = True
        try:
            return super().predict(x, batch_size=batch_size, **kwargs)
        finally:
            self._predicting = False

    def train_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        self._look_for_shared_tower()
        x, y, sample_weight = self._format_batch(x, y, sample_weight)
        with self._reporting("this step"):
            return super().train_on_batch(x, y, sample_weight=sample_weight, **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        self._look_for_shared_tower()
        x, y, sample_weight = self._format_batch(x, y, sample_weight)
        with self._reporting("this batch"):
            return super().test_on_batch(x, y, sample_weight=sample_weight, **kwargs)

    @contextlib.contextmanager
    def _reporting(self, when):
        watch = FaultWatch(self)
        yield
        if self.on_nonfinite == "raise":
            watch.expect_none(self)
        watch.report(self, when, batches=0)

    def _format(self, x, y, sample_weight, batch_size, shuffle=False):
        pair, parts = self.preprocessor, batch_parts(self)
        return formatted(x, y, sample_weight, batch_size, shuffle, pair, parts)

    def _format_batch(self, x, y, sample_weight):
        formatter = BatchFormatter(self.preprocessor, parts=batch_parts(self))
        return (*formatter((x, y, sample_weight)), None, None)[:3]
