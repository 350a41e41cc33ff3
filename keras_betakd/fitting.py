"""`fit`, `evaluate` and `predict` on raw records as well as on batches of tensors."""

import contextlib

import keras

from keras_betakd.distribution.devices import batch_parts
from keras_betakd.fault_report import FaultReport, FaultWatch, with_callbacks
from keras_betakd.preprocessing.adapters import is_raw_records, split_records
from keras_betakd.preprocessing.batches import BatchFormatter, EpochOrder, formatted


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
