"""Brings the data that a distiller is given into its form, or says what is wrong."""

from keras_betakd.distillation.arguments import expect_rows_for_tokens
from keras_betakd.distribution.devices import batch_parts
from keras_betakd.preprocessing.batches import BatchFormatter, formatted


def formatter_of(distiller, labelled=True):
    """The `BatchFormatter` of a distiller.

    Args:
        distiller: the distiller.
        labelled: whether a batch without labels is an error.
    """
    # Again: a model that was loaded has got its tokens after it was made.
    teachers = {part.name: part.view for part in distiller.teacher_parts}
    expect_rows_for_tokens(distiller.preprocessor, teachers, distiller.student_view)

    def logits_shape(x):
        positions = x.get("student_positions")
        if positions is not None:
            return (*positions.shape, distiller.student_view.logit_size)
        return distiller.student_view.logits_shape(x["student"])

    return BatchFormatter(
        distiller.preprocessor,
        parts=batch_parts(distiller),
        logits_shape=logits_shape,
        labelled=labelled,
        reads_labels=any(e.needs_labels for e in distiller.energies.values()),
        fills=labelled and _compiles_by_size(distiller),
    )


def _compiles_by_size(distiller):
    """Whether each size of a batch is compiled anew, and may be filled up to another.

    XLA compiles for one size. Batch normalization would count what a batch is filled
    with.
    """
    compiles = distiller.jit_compile and not distiller.run_eagerly
    return compiles and not any(
        variable.name == "moving_mean" for variable in distiller.student.variables
    )


def as_training_data(distiller, x, y, sample_weight, labelled=True, **options):
    """The arguments of Keras' `fit`, `evaluate` or `predict`, in the distiller's form.

    Args:
        distiller: the distiller.
        x, y, sample_weight: as for `fit`.
        labelled: whether data without labels is an error.
        **options: `batch_size`, `shuffle` and `steps` of `formatted`.
    """
    distiller.expect_on_devices()
    formatter = formatter_of(distiller, labelled)
    return formatted(x, y, sample_weight, formatter=formatter, **options)


def as_batch(distiller, x, y=None, sample_weight=None, labelled=True):
    """One batch `(x, y, sample_weight)` in the distiller's form."""
    distiller.expect_on_devices()
    found = formatter_of(distiller, labelled)((x, y, sample_weight))
    return (*found, None, None)[:3]


def expect_compiled(distiller, method):
    if not distiller.compiled:
        raise ValueError(
            f"Call `compile` before `{method}`: the distiller has no optimizer yet."
        )


def expect_whole_executions(distiller, dataset):
    """Raises where Keras cannot divide a data set into its executions."""
    if distiller.steps_per_execution > 1 and dataset.shown_steps is None:
        raise ValueError(
            "Data of unknown size cannot be divided into executions of several steps: "
            "pass `steps_per_epoch`. Received: "
            f"steps_per_execution={distiller.steps_per_execution}"
        )


def expect_no_class_weight(class_weight):
    if class_weight is not None:
        raise ValueError(
            "`class_weight` is not supported. Weigh the labels yourself: batches "
            "`(x, y, sample_weight)` take a weight for each label (B, K), raw records "
            'one for each record, under the key "sample_weight". Received: '
            f"class_weight={class_weight}"
        )
