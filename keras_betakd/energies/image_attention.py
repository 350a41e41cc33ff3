"""`ImageAttentionEnergy`: compares the attention among the tokens of an image."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_betakd.energies.base import Energy
from keras_betakd.energies.distances import squared_distance, unit
from keras_betakd.energies.image_energies import layer_numbers

# Floor of a squared length, under which only zeros are: the largest entry is 1.
_SMALLEST_SQUARE = 1e-12


@keras.saving.register_keras_serializable(package="keras_betakd")
class ImageAttentionEnergy(Energy):
    """Cosine distance of the attention that image tokens get from each other.

    Use it where the student must see how things in an image relate, and not only what
    they are: in its middle decoder blocks it learns which parts of an image the teacher
    connects. For an image, and G pairs of a group of the teacher's blocks and a block
    of the student's,

        l = sum_g [ 1 - <y_true_g, y_pred_g> / (|y_true_g| |y_pred_g|) ]

    with y_g the mean attention that each of N image tokens gets in pair g. It is
    between 0 and G, without unit, and does not depend on how much of its attention a
    model gives to the image. In a distiller y_g is computed in these steps:

    1. a_ij, the attention of image token i to image token j: the softmax runs over all
       that token i attends to, text included; a is its share at tokens of the same
       image, averaged over the heads, and for the teacher over the blocks of the group.
    2. Where the models have different numbers of image tokens, the teacher's (N_t, N_t)
       is resized bilinearly to the student's grid, over queries and over keys.
    3. Outliers are left out, as tokens that get attention whatever the image shows: the
       pairs i, j where a_ij of either model is above its mean plus its standard
       deviation (divisor N^2 - 1) over all N^2 pairs of this image, in this pair of
       blocks. So are those where it is 0 in either, as in models whose tokens do not
       attend to later ones; mean and deviation count these.
    4. y_j is the mean of the a_ij that are left over i, 0 without any.

    Shapes: `y_true` and `y_pred` are `(..., N)`; `call` returns `(...)`, the distance
    of one pair. In a distiller there is one value for each image, (B, P), the sum over
    pairs, and the mean runs over the images of each record, then over the records with
    an image. Attention between two images of a record is not compared. An image of
    which nothing is left in one of the pairs has no weight.

    No gradient flows through what is left out. A vector of zeros has no direction: its
    distance to any other vector is 1/2.

    Args:
        teacher_layers: for each pair the teacher's decoder blocks, a number or several
            that are averaged, counted from 0, or from -1 at the end. Groups may share
            blocks.
        student_layers: for each pair the student's decoder block.
        name, reduction, dtype: See `Energy`.

    Raises:
        ValueError: for numbers that are none, or not as many groups as blocks of the
            student, or inputs of different shape; by a distiller, for a block that is
            not there, or a family whose attention cannot be read.

    Example:

    >>> from keras import ops
    >>> energy = ImageAttentionEnergy(
    ...     teacher_layers=((9, 10), (10, 11)), student_layers=(5, 6)
    ... )
    >>> teacher, student = ops.array([[0.3, 0.4]]), ops.array([[0.4, 0.3]])
    >>> round(float(energy(teacher, student)), 4)
    0.04

    Reference: visual attention alignment of CompoDistill, Kim et al., ICLR 2026
    (arXiv:2510.12184), as its released code computes it.
    """

    features = "image_attention"

    def __init__(
        self,
        teacher_layers: Sequence[int | Sequence[int]],
        student_layers: Sequence[int],
        name: str | None = None,
        reduction: str = "mean_with_sample_weight",
        dtype: str | None = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not isinstance(teacher_layers, (list, tuple, range)):
            raise ValueError(
                "`teacher_layers` must be a list with a number or several of decoder "
                "blocks for each of `student_layers`. Received: "
                f"teacher_layers={teacher_layers!r}"
            )
        self.teacher_layers = tuple(
            layer_numbers("teacher_layers", group) for group in teacher_layers
        )
        self.student_layers = layer_numbers("student_layers", student_layers)
        if len(self.teacher_layers) != len(self.student_layers):
            raise ValueError(
                "`teacher_layers` must have a number or a group of numbers for each of "
                "`student_layers`; a group alone is written ((9, 10),). Received: "
                f"teacher_layers={teacher_layers}, student_layers={student_layers}"
            )

    def groups(self, role):
        """The decoder blocks of each pair, tuples of numbers.

        Args:
            role: `"student"` or `"teacher"`.
        """
        if role == "teacher":
            return self.teacher_layers
        return tuple((block,) for block in self.student_layers)

    def pointwise(self, teacher, student):
        teacher, student = (_direction(x) for x in (teacher, student))
        return 0.5 * squared_distance(teacher, student)

    def get_config(self):
        return {
            **super().get_config(),
            "teacher_layers": [list(group) for group in self.teacher_layers],
            "student_layers": list(self.student_layers),
        }


def _direction(x):
    """x / |x|, whose squares do not vanish where x is small; zeros for zeros."""
    largest = ops.max(ops.abs(ops.stop_gradient(x)), axis=-1, keepdims=True)
    return unit(x / ops.where(largest == 0, 1.0, largest), _SMALLEST_SQUARE)
