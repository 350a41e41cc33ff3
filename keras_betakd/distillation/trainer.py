"""`DistillationTrainer`: compile, fit, evaluate, predict and the *_on_batch methods."""

import contextlib

import keras

from keras_betakd.backends import keep_compiled_programs
from keras_betakd.distillation.arguments import (
    exclude_from_weight_decay,
    expect_no_compiler,
    expect_optimizer_of,
    resolved_optimizer,
    resolved_task_loss,
    warn_of_unequal_parts,
)
from keras_betakd.distillation.bounds_report import BoundsReport
from keras_betakd.distillation.energy_gradient import warn_of_no_gradient
from keras_betakd.distillation.freezing import expect_trainable, warn_of_quantized
from keras_betakd.distillation.interrupted_step import unwrapped_errors, values_kept
from keras_betakd.distillation.memory_plan import plan_of
from keras_betakd.distillation.metric_arguments import (
    expect_no_loss_weights,
    resolved_metrics,
)
from keras_betakd.distillation.monitoring import announce_compiling, direct_monitors
from keras_betakd.distillation.nonfinite_report import (
    EVALUATED_BATCH,
    STEP,
    NonFiniteReport,
    NonFiniteWatch,
    check_policy,
    with_callbacks,
)
from keras_betakd.distillation.skipped_report import SkippedReport, report_skipped
from keras_betakd.distillation.training_data import (
    as_batch,
    as_training_data,
    expect_compiled,
    expect_no_class_weight,
    expect_whole_executions,
    formatter_of,
)
from keras_betakd.distribution.devices import expect_on_devices
from keras_betakd.distribution.replicas import expect_process_group, reduced_gradients
from keras_betakd.memory.out_of_memory import memory_errors_explained
from keras_betakd.on_policy.refusals import expect_other_validation
from keras_betakd.on_policy.report import StudentReport
from keras_betakd.on_policy.student_data import StudentData, released
from keras_betakd.preprocessing.adapters import (
    raw_records,
    split_records,
    weighted_records,
)
from keras_betakd.preprocessing.data_check import check_records
from keras_betakd.preprocessing.epoch_order import EpochOrder, closed


class DistillationTrainer:
    """Mixin that overrides Keras' trainer: arguments, data, steps and reports.

    Every kind of data is brought into the distiller's form (see
    `keras_betakd.preprocessing.batches`) and handed on to `keras.Model`. Mixed into
    `BetaKDDistiller`, in front of `keras.Model`; it reads `preprocessor`, `student`,
    `student_view`, `energies` and `fused`, and calls `freeze_parts()`, `all_betas()`,
    `_parts_on_devices()` and `teacher_parts`.
    """

    on_nonfinite = "skip"
    task_loss = None
    _needs_logits = False
    _reports_accuracy = False
    _predicting = False
    _watched = staticmethod(lambda loss: loss)
    _compile_arguments = None

    def compile(
        self,
        optimizer="auto",
        loss="auto",
        *,
        metrics=None,
        weighted_metrics="auto",
        loss_weights=None,
        auto_scale_loss=True,
        on_nonfinite="skip",
        **kwargs,
    ):
        """Configures the distiller for training.

        On JAX, what is compiled is kept in `~/.cache/keras_betakd/jax` for the next
        process, unless JAX has been given a folder of its own
        (`JAX_COMPILATION_CACHE_DIR`), or none (`JAX_ENABLE_COMPILATION_CACHE=false`).

        Args:
            optimizer: optimizer or its name; `"auto"` for `Adam(2e-5)`. The betas are
                excluded from its weight decay, which would pull them towards their
                start.
            loss: the task loss; `"auto"` for the sparse cross-entropy from logits.
                Another must be a `keras.losses.Loss` or a function that takes labels
                (B, K) and logits (B, K, V) and returns one value for each label.
            metrics: metrics of the student at the supervised rows, in the forms that
                Keras takes. They are weighted with the weights of the labels: at slots
                without an answer token a metric means nothing. `"accuracy"` is the
                distiller's own. Others are given labels (B, K) and logits (B, K, V),
                which rules out the fused head.
            weighted_metrics: more of them, which are treated alike; `"auto"` (default)
                for the distiller's own accuracy.
            loss_weights: not supported; the betas weight the terms.
            auto_scale_loss: whether to scale the loss when the student computes in
                float16.
            on_nonfinite: what to do about NaN and infinity. Rows where the teacher's
                output is not finite never enter an energy or a mean, and a step whose
                loss or gradient is not finite never changes student, betas, optimizer
                or metrics. `"skip"` (default) goes on, and names the samples in a
                warning at the end of the epoch. `"raise"` ends the run with a
                `NonFiniteError` that names them; it waits for each step's result.
            **kwargs: as for `keras.Model.compile`. On PyTorch, `jit_compile` must be
                `"auto"` (operation by operation there) or `False`: `torch.compile`
                takes minutes for this step, and compiles it anew again and again.

        Raises:
            ValueError: a loss that is no function of labels and logits; a metric that
                expects probabilities, or with the name of one of the distiller's own;
                `loss_weights`; an unknown `on_nonfinite`; `fused=True` where the logits
                are needed; an optimizer with weight decay that is built already; or
                `jit_compile=True` on PyTorch.
        """
        expect_no_compiler(kwargs.get("jit_compile"))
        keep_compiled_programs()
        self.freeze_parts()
        self.on_nonfinite = check_policy(on_nonfinite)
        expect_no_loss_weights(loss_weights)
        optimizer = resolved_optimizer(
            optimizer, self.student, auto_scale_loss, self.all_betas().values()
        )
        warn_of_unequal_parts(self.reduction, optimizer)
        others, self._reports_accuracy = resolved_metrics(
            metrics, weighted_metrics, self._trackers.directions()
        )
        self._needs_logits = loss != "auto" or bool(others)
        self._check_fused()
        warn_of_no_gradient(self.energies, self.student_view)
        learned = [v for b in self.all_betas().values() for v in b.variables]
        learned += [e.parameter for e in self.energies.values()]
        exclude_from_weight_decay(optimizer, [v for v in learned if v is not None])
        super().compile(
            optimizer=optimizer,
            weighted_metrics=others or None,
            auto_scale_loss=False,
            **kwargs,
        )
        self.task_loss = resolved_task_loss(loss)
        self._compile_arguments = keras.saving.serialize_keras_object(
            {
                "optimizer": optimizer,
                "loss": loss,
                "metrics": metrics,
                "weighted_metrics": weighted_metrics,
                "auto_scale_loss": auto_scale_loss,
                "on_nonfinite": on_nonfinite,
                **kwargs,
            }
        )
        self.expect_on_devices()
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def get_compile_config(self):
        return self._compile_arguments if self.compiled else {}

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        validation_freq=1,
    ):
        """Trains the student and the betas, as `keras.Model.fit` trains a model.

        The order of data sets and records depends on the
        seed and the epoch's number alone, so a training that is resumed at
        `initial_epoch` (see `TrainingBackup`) sees the same batches as one that was
        never interrupted. For raw records that seed is drawn from NumPy's global
        generator when `fit` begins: call `keras.utils.set_random_seed` right before.
        Data that shuffles itself (a `DataLoader` with `shuffle=True`, a `tf.data`
        shuffle) has the order of its own generator, which no epoch's number sets.

        `steps_per_epoch` divides a pass over data that comes in batches, as in Keras:
        the next epoch goes on where the last one ended, and the last one of a pass is
        shorter if need be. Data of unknown size is read as it comes; data that never
        ends needs `steps_per_epoch`.

        Where a step is compiled for each size of a batch (JAX, and TensorFlow with
        XLA), the last batch of raw records is filled up to the size of the others, with
        copies of weight 0. They count in no loss of the distiller and in no metric; a
        student's own loss over all positions, such as the balance of a mixture of
        experts, sees them. Batches of your own keep their sizes.

        Args:
            x: raw records, batches of them, or what Keras takes, see the class.
            y: labels, where `x` is arrays.
            batch_size: records in a batch of records or arrays, 32 if `None`.
            epochs: the number of the last epoch.
            validation_split: the share of records or arrays, the last ones, that is
                left out of training to validate on.
            validation_data: what the student is validated on after an epoch, in any
                form that `x` has, or a tuple `(x, y, sample_weight)`.
            class_weight: not supported; put it into `sample_weight`.
            sample_weight: a weight of each record, or of each of its labels. Of raw
                records it may be the key `"sample_weight"`, too.
            initial_epoch: the number of epochs that are done, of a training that is
                resumed.
            steps_per_epoch: the batches of an epoch, see above.
            verbose, callbacks, shuffle: as for `keras.Model.fit`.
            validation_steps, validation_batch_size: as for `keras.Model.fit`.
            validation_freq: as for `keras.Model.fit`.

        Returns:
            A `keras.callbacks.History`, whose `history` is a dict of lists with one
            number for each epoch: the metrics that the class lists, and those of the
            validation under `val_` and their names.

        Raises:
            ValueError: the distiller is not compiled, nothing of the student trains, or
                a record cannot be used; the message names it.
            NonFiniteError: see `on_nonfinite` of `compile`.

        Example:

        ```python
        distiller.fit(records, batch_size=8, epochs=3, validation_data=held_out)
        ```
        """
        expect_no_class_weight(class_weight)
        expect_compiled(self, "fit")
        self.freeze_parts()
        expect_trainable(self.student, self.freeze)
        warn_of_quantized(self.student)
        self._check_tower()
        ours = [
            NonFiniteReport(self.on_nonfinite, at_epochs=True),
            SkippedReport(self.preprocessor, at_epochs=True),
            BoundsReport(self.all_betas()),
        ]
        own = x if isinstance(x, StudentData) else None
        if own is not None:
            expect_other_validation(validation_data)
            own.bind(self, batch_size, shuffle, steps_per_epoch, verbose)
            ours.append(StudentReport(own))
        x, sample_weight = weighted_records(x, sample_weight)
        records = raw_records(x) if validation_split else None
        if records is not None:
            x, validation_data = split_records(records, validation_split)
            validation_split = 0.0
        x, y, sample_weight = as_training_data(
            *(self, x, y, sample_weight),
            batch_size=batch_size,
            shuffle=shuffle,
            steps=steps_per_epoch,
        )
        if validation_data is not None:
            if not isinstance(validation_data, tuple):
                validation_data = (validation_data,)
            validation_data = as_training_data(
                *(self, *validation_data, None, None)[:4],
                batch_size=validation_batch_size or batch_size,
                steps=validation_steps,
            )
        batched = isinstance(x, keras.utils.PyDataset)
        if batched:
            expect_whole_executions(self, x)
            # Keras would shuffle by a state that a resumed training does not have.
            shuffle, steps_per_epoch = False, None
        validates = validation_data is not None and isinstance(
            validation_data[0], keras.utils.PyDataset
        )
        if validates:
            validation_steps = None
        validation = validation_data[0] if validates else None
        ours.append(EpochOrder(x if batched else None, validation))
        callbacks = with_callbacks(callbacks, *ours)
        betas = self.all_betas().values()
        directions = self._trackers.directions()
        directions |= {} if own is None else own.directions
        direct_monitors(callbacks, directions, betas)
        announce_compiling(self, verbose, self.train_function)
        with (
            released(own),
            closed(x, validation),
            unwrapped_errors(x, validation),
            values_kept(self),
            memory_errors_explained(),
        ):
            return super().fit(
                x,
                y,
                batch_size=None if batched else batch_size,
                epochs=epochs,
                verbose=verbose,
                callbacks=callbacks,
                validation_split=validation_split,
                validation_data=validation_data,
                shuffle=shuffle,
                sample_weight=sample_weight,
                initial_epoch=initial_epoch,
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                validation_batch_size=None if batched else validation_batch_size,
                validation_freq=validation_freq,
            )

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Computes losses, energies and betas on other data, without training.

        Args:
            x, y, sample_weight: the data, as for `fit`.
            batch_size: records in a batch of records or arrays, 32 if `None`.
            steps: the batches that are read; all if `None`.
            return_dict: whether to return a dict of the metrics by name.
            verbose, callbacks: as for `keras.Model.evaluate`.
            **kwargs: as for `keras.Model.evaluate`.

        Returns:
            The metrics, losses in nats per token: a dict with `return_dict=True`, else
            a list in the order of `metrics_names`.

        Raises:
            ValueError: the distiller is not compiled, or a record cannot be used.

        Example:

        ```python
        distiller.evaluate(held_out, return_dict=True)["task_loss"]
        ```
        """
        expect_compiled(self, "evaluate")
        self._check_tower()
        x, y, sample_weight = as_training_data(
            self, x, y, sample_weight, batch_size=batch_size, steps=steps
        )
        batched = isinstance(x, keras.utils.PyDataset)
        # Within `fit` Keras passes a list of its own, in which the report is.
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            report = NonFiniteReport(self.on_nonfinite, at_epochs=False)
            skipped = SkippedReport(self.preprocessor, at_epochs=False)
            order = EpochOrder(validation=x if batched else None)
            callbacks = with_callbacks(callbacks, report, skipped, order)
            announce_compiling(self, verbose, self.test_function)
        with closed(x), unwrapped_errors(x), values_kept(self):
            return super().evaluate(
                x,
                y,
                batch_size=None if batched else batch_size,
                verbose=verbose,
                sample_weight=sample_weight,
                steps=None if batched else steps,
                callbacks=callbacks,
                return_dict=return_dict,
                **kwargs,
            )

    def check_records(self, x, batch_size=None):
        """Checks all records before training, without running a model.

        Each is read and encoded as `fit` does it: texts, images, lengths, labels. This
        takes as long as it does in one epoch of `fit`; memory for one batch.

        Args:
            x: raw records, or batches as for `fit`, which can be read again.
            batch_size: records per batch of raw records; 32 by default.

        Returns:
            The number of records.

        Raises:
            ValueError: records that cannot be used. The message lists them, with ids,
                places in the data and the lengths that they need.

        A warning names records with words in their answers that the student's tokenizer
        does not know, which would be trained as its unknown token.

        Example:

        ```python
        distiller.check_records(records)
        distiller.fit(records, epochs=3)
        ```
        """
        return check_records(x, formatter_of(self), batch_size)

    def memory_plan(self, batch, savings=True):
        """What memory a training step on a batch takes, without running it.

        Weights, gradients and the optimizers' slots are counted from the shapes of the
        variables and their layout. What a step needs beside them comes from the shapes
        of the batch, in each backend's own way: PyTorch runs the step on tensors
        without data, JAX compiles it and asks XLA, TensorFlow traces it and goes
        through the graph. Values, states and metrics stay as they are.

        The numbers are those of a step in which every answer is supervised, on each
        device. A warning says so where a step may take more than its arrays: on
        TensorFlow, and with JAX on a CPU ("What a step will take" in docs/speed.md).
        What the process takes besides (libraries, programs, memory that is free but not
        given back) is not in them.

        Args:
            batch: raw records of one batch, or a tuple `(x, y, sample_weight)` of
                arrays as `train_on_batch` takes it. With `keras.KerasTensor`s in place
                of the arrays of `distiller.preprocessor(records)`, not even the batch
                needs to exist.
            savings: whether to plan other steps, too, and to name the three changes
                that would save most of the peak: `remat=True`, half the batch with
                gradient accumulation, half the `sequence_length`, a cached teacher, the
                fused head, LoRA, a teacher of lower precision; of these, what applies
                and is not on already. Each is planned like the step itself, which takes
                the same time: on JAX that of compiling it.

        Returns:
            A `MemoryPlan`; print it for a table.

        Raises:
            ValueError: the distiller is not compiled, or models are not built; or the
                memory is not known before the step runs: replicas of `tf.distribute`
                and of `torchrun`, and TensorFlow with `jit_compile=True` or
                `remat=True`.

        Example:

        ```python
        plan = distiller.memory_plan(records[:8])
        print(plan)
        plan.peak  # bytes on each device
        ```
        """
        self._check_tower()
        return plan_of(self, batch, savings)

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """The student's logits at the answer rows: (N, K, V).

        Those of a plain model have the shape that its own `predict` gives them. For
        texts, use `generate`.

        Args:
            x: the data, as for `fit`; records need their responses, whose positions
                are predicted.
            batch_size: records in a batch of records or arrays, 32 if `None`.
            steps: the batches that are read; all if `None`.
            verbose, callbacks: as for `keras.Model.predict`.

        Returns:
            A NumPy array: the logits of N records, at up to K answer tokens of each,
            for V classes.
        """
        x, _, _ = as_training_data(
            *(self, x, None, None),
            labelled=False,
            batch_size=batch_size,
            steps=steps,
        )
        if isinstance(x, keras.utils.PyDataset):
            batch_size = steps = None
            skipped = SkippedReport(self.preprocessor, at_epochs=False)
            callbacks = with_callbacks(callbacks, skipped, EpochOrder(validation=x))
        announce_compiling(self, verbose, self.predict_function)
        with closed(x), self._student_alone(), unwrapped_errors(x), values_kept(self):
            return super().predict(x, batch_size, verbose, steps, callbacks)

    @contextlib.contextmanager
    def _student_alone(self):
        """A context in which `call` returns the student's logits."""
        self._predicting = True
        try:
            yield
        finally:
            self._predicting = False

    def train_on_batch(
        self, x, y=None, sample_weight=None, class_weight=None, return_dict=False
    ):
        """One training step on a batch.

        Args:
            x, y, sample_weight: a batch, in any form that `fit` takes.
            class_weight: not supported; put it into `sample_weight`.
            return_dict: whether to return a dict of the metrics by name.

        Returns:
            The metrics of all steps since `reset_metrics`, as a list or a dict.
        """
        expect_no_class_weight(class_weight)
        expect_compiled(self, "train_on_batch")
        self._check_tower()
        x, y, sample_weight = as_batch(self, x, y, sample_weight)
        with self._reporting(STEP), memory_errors_explained():
            return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """The losses of a batch, without training.

        Args:
            x, y, sample_weight: a batch, in any form that `fit` takes.
            return_dict: whether to return a dict of the metrics by name.

        Returns:
            The metrics of all batches since `reset_metrics`, as a list or a dict.
        """
        expect_compiled(self, "test_on_batch")
        self._check_tower()
        x, y, sample_weight = as_batch(self, x, y, sample_weight)
        with self._reporting(EVALUATED_BATCH):
            return super().test_on_batch(x, y, sample_weight, return_dict)

    def predict_on_batch(self, x):
        """The student's logits at the answer rows of a batch: (B, K, V).

        Args:
            x: a batch, in any form that `predict` takes.

        Returns:
            A NumPy array, as `predict` returns it.
        """
        with self._student_alone():
            x, _, _ = as_batch(self, x, labelled=False)
            report_skipped(self.preprocessor, "this batch; their rows say nothing")
            return super().predict_on_batch(x)

    def make_train_function(self, force=False):
        # Each `fit` and `train_on_batch` calls this, once all variables exist. Weights
        # may have been loaded since the last one, and another distiller of the same
        # models may have frozen others.
        expect_process_group()
        self.freeze_parts()
        expect_trainable(self.student, self.freeze)
        variables = self.variables + self.optimizer.variables
        expect_optimizer_of(self.optimizer, self.trainable_variables)
        self._watched = reduced_gradients(self.trainable_variables, variables)
        return super().make_train_function(force)

    def zero_grad(self, set_to_none=True):
        """Clears the gradients; called by Keras' trainer on PyTorch alone.

        There Keras lists parameters by path, and a teacher and a student of one family
        have the same paths: the student's gradients would accumulate.
        """
        for variable in self.trainable_variables:
            variable.value.grad = None

    def expect_on_devices(self):
        """Raises where its parts are on devices that do not go together."""
        parts = self._parts_on_devices()
        if self.compiled:
            parts["the optimizer"] = self.optimizer.variables
        parts["the distiller"] = self.variables + self.metrics_variables
        expect_on_devices(parts)

    def _check_tower(self):
        if any([part.tower.check() for part in self.teacher_parts]):
            # Compiled for the other case.
            self.train_function = self.test_function = None

    def _check_fused(self):
        head = self.student_view.head
        has_matrix = head is not None and head.has_matrix
        unfusable = self._unfusable()
        if self.fused is True and (self._needs_logits or unfusable or not has_matrix):
            raise ValueError(
                "`fused=True` needs a student whose LM head can be seen (a keras-hub "
                "CausalLM that is not quantised), the default `loss`, and no `metrics` "
                "or `weighted_metrics` but its accuracy: others are given the logits, "
                "which the fused head never makes, as do some energies. Use "
                '`fused="auto"`. Received: '
                f"student={type(self.student).__name__}, head={head}, energies that "
                f"need logits: {unfusable}"
            )

    @contextlib.contextmanager
    def _reporting(self, part):
        watch = NonFiniteWatch(self)
        yield
        if self.on_nonfinite == "raise":
            watch.expect_none(self, part)
        watch.report(self, part, batches=0)
        report_skipped(self.preprocessor, part.name)
