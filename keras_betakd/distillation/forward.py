"""`ForwardPass`: runs student and teachers, and weights what they computed."""

import contextlib
import math

from keras import ops

from keras_betakd.betas.teacher_features import uncertainty_of
from keras_betakd.distillation.feature_comparison import ANSWER
from keras_betakd.distillation.nonfinite import finite_rows, zero_nonfinite_rows
from keras_betakd.distillation.outputs import (
    DistillationOutputs,
    as_rows,
    beta_inputs,
    label_weights,
    task_weights,
    tiled_uncertainty,
    without_gradient,
)
from keras_betakd.energies.masking import attached_mask
from keras_betakd.head_loss.logit_statistics import fits_one_tile
from keras_betakd.head_loss.terms import Heads, TeacherHead
from keras_betakd.models.outputs import ModelOutputs
from keras_betakd.objective import row_weights


class ForwardPass:
    """Runs the models of a distiller on a batch, and makes its terms' weights.

    A plain object, which Keras neither tracks nor saves.

    Args:
        student_view: the student's `ModelView`.
        parts: list of the `TeacherPart`s.
        betas: dict of all beta layers by the names of their terms.
        reduction: `"example"` or `"token"`.
    """

    def __init__(self, student_view, parts, betas, reduction):
        self._student_view = student_view
        self._parts = parts
        self._betas = betas
        self._reduction = reduction

    def part_of(self, name):
        """The `TeacherPart` of an energy; of the cross-entropy's beta, the first."""
        parts = [part for part in self._parts if name in part.energies]
        return (parts or self._parts)[0]

    def student_reader(self):
        """The reader of the student, of all that energies compare."""
        return self._student_view.reader(*self._wanted("student", self._parts))

    def predicted(self, inputs, training):
        """The student's logits: (B, K, V), or those of a plain model as they are.

        Args:
            inputs: the batch's `x`.
            training: as for any Keras layer.
        """
        view, positions = self._student_view, inputs.get("student_positions")
        if positions is None:
            return view.logits(inputs["student"], training=training)
        outputs = view.reader(set()).outputs(inputs["student"], positions, training)
        return view.head(outputs.head_input)

    def models(self, inputs, training, fused, around_student):
        """Runs all models.

        Args:
            inputs: the batch's `x`.
            training: as for any Keras layer.
            fused: whether the heads will run with the loss.
            around_student: a context in which the student runs.

        Returns:
            `(student, teachers)`: the student's `ModelOutputs`, and for each teacher
            its own and bool (B, K), where it is finite.
        """
        pairs = [(part, part.of_batch(inputs)) for part in self._parts]
        with contextlib.ExitStack() as once:
            for part, own in pairs:
                once.enter_context(part.tower.once(own))
            # Before the student, whose activations are kept for the gradient: those
            # of a teacher's block would be held beside all of them.
            teachers = [self._teacher_outputs(*pair, fused) for pair in pairs]
            with around_student:
                reader = self.student_reader()
                head = None if fused else self._student_view.head
                student = self._outputs(reader, head, "student", inputs, training)
        return student, teachers

    def _teacher_outputs(self, part, inputs, fused):
        inputs = part.tower.with_images(inputs)
        dense = not fused or self._makes_logits(part, inputs)
        reader = part.view.reader(*self._wanted("teacher", [part]))
        head = part.view.head if dense else None
        outputs = self._outputs(reader, head, "teacher", inputs, False)
        finite = finite_rows(outputs)
        return without_gradient(zero_nonfinite_rows(outputs, finite)), finite

    @staticmethod
    def _outputs(reader, head, role, inputs, training):
        """The `ModelOutputs` of a model: logits (B, K, V), or rows (B, K, H).

        Without a `head`, there are rows alone where there are positions.
        """
        x, positions = inputs[role], inputs.get(f"{role}_positions")
        if positions is None:
            logits, features = reader.logits(x, training=training)
            mask = attached_mask(logits) if role == "student" else None
            return ModelOutputs(logits=as_rows(logits), mask=mask, features=features)
        outputs = reader.outputs(x, positions, training)
        if head is not None:
            outputs.logits = head(outputs.head_input)
        return outputs

    @staticmethod
    def _wanted(role, parts):
        """The names of the features, and of the inner layers, to read of a model."""
        features = [part.comparison.wanted(role) for part in parts]
        layers = [part.comparison.layers(role) for part in parts]
        return set().union(*features), set().union(*layers)

    def weighted(self, inputs, student, teachers):
        """The `DistillationOutputs`: weights, features and log betas of a batch.

        Args:
            inputs: the batch's `x`.
            student, teachers: what `models` returned.
        """
        labels = label_weights(inputs, student)
        answers = row_weights(labels, self._reduction)
        found = DistillationOutputs(
            student=student.rows if student.logits is None else student.logits,
            teachers={},
            log_beta={},
            weights={"answers": answers, "task": task_weights(inputs, answers)},
            finite={},
            feature_values={},
            image_rows={},
        )
        for part, (teacher, finite) in zip(self._parts, teachers, strict=True):
            rows = labels * ops.cast(finite, labels.dtype)
            aligned = part.of_batch(inputs).get("aligned")
            rows = rows if aligned is None else rows * aligned
            rows = row_weights(rows, self._reduction)
            features = part.comparison.compare(student.features, teacher.features, rows)
            found.feature_values.update(features.values)
            found.image_rows.update(features.image_rows)
            found.weights.update(features.weights)
            self._add_betas(part, teacher, rows, found)
            theirs = teacher.head_input if teacher.logits is None else teacher.logits
            found.teachers[part.name] = theirs
            found.finite[part.name] = finite
        return found

    def _add_betas(self, part, teacher, rows, found):
        """Adds the log betas that read a teacher; they may change row weights.

        Args:
            part: the `TeacherPart`.
            teacher: its `ModelOutputs`.
            rows: (B, K), weights of the rows that are compared.
            found: the `DistillationOutputs`.
        """
        read = beta_inputs(teacher, rows, self._uncertainty(part, teacher, rows))
        for name, beta in self._betas_of(part).items():
            features = beta.features_of(read)
            at_answer = name == "task" or part.energies[name].features in ANSWER
            weights = beta.weighted_rows(found.weights[name], features, read, at_answer)
            found.weights[name] = weights
            found.log_beta[name] = beta(weights, features=features)

    def _betas_of(self, part):
        """The betas that read a teacher; of several, the first has the task's."""
        return {k: beta for k, beta in self._betas.items() if self.part_of(k) is part}

    def _makes_logits(self, part, inputs):
        """Whether a teacher's logits are made though the loss is fused.

        A beta may need all of them, or few numbers of each row: where all rows fit one
        tile, logits made once then serve beta and loss.
        """
        betas = self._betas_of(part).values()
        if any(beta.reads_logits for beta in betas):
            return True
        if not any(beta.reads_uncertainty for beta in betas):
            return False
        sizes = inputs["teacher_positions"].shape
        count = None if None in sizes else math.prod(sizes)
        return fits_one_tile(count, *self._head_shape())

    def _uncertainty(self, part, teacher, weights):
        """`uncertainty_of` a teacher's rows, (B, K, 3), where a beta needs it."""
        if not any(beta.reads_uncertainty for beta in self._betas_of(part).values()):
            return None
        if teacher.logits is not None:
            return uncertainty_of(teacher.logits)
        return tiled_uncertainty(teacher, weights, part.view.head, self._head_shape())

    def _head_shape(self):
        """(V, H) of the student's head, which fuses."""
        return self._student_view.logit_size, self._student_view.hidden_dim

    def heads(self, inputs, fused):
        """The `Heads` by which the loss makes logits of what `models` returned.

        Args:
            inputs: the batch's `x`.
            fused: as for `models`.
        """
        student = self._student_view.head
        teachers = {
            part.name: self._teacher_head(part, inputs, fused) for part in self._parts
        }
        return Heads(student.matrix() if fused else student, teachers, fused)

    def _teacher_head(self, part, inputs, fused):
        head = part.view.head
        if not fused:
            return TeacherHead(head, head, part.energies)
        head = head.matrix() or head
        # Where a beta reads the teacher's logits, `models` has made them already.
        made = self._makes_logits(part, part.of_batch(inputs))
        return TeacherHead(head, ops.stop_gradient if made else head, part.energies)
