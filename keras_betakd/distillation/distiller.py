"""`BetaKDDistiller`: trains a student on its labels and on a teacher."""

import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence

import keras
from keras import ops

from keras_betakd.betas import Beta
from keras_betakd.distillation.arguments import (
    check_vocabularies,
    expect_fused,
    expect_parts_apart,
    expect_rows_for_tokens,
    resolved_preprocessor,
    resolved_task_beta,
)
from keras_betakd.distillation.feature_comparison import ROLES
from keras_betakd.distillation.finite_steps_optimizer import innermost
from keras_betakd.distillation.forward import ForwardPass
from keras_betakd.distillation.freezing import (
    apply_freeze,
    expect_apart,
    freeze_teacher,
)
from keras_betakd.distillation.metrics import Trackers, given_weights
from keras_betakd.distillation.nonfinite import (
    NonFiniteCounts,
    nonfinite_rows,
    unweighted_nonfinite,
)
from keras_betakd.distillation.outputs import (
    mean_weights,
)
from keras_betakd.distillation.rematerialized import remat_of
from keras_betakd.distillation.replica_loss import batch_loss
from keras_betakd.distillation.saving import DistillerSaving, Untracked
from keras_betakd.distillation.student_methods import StudentMethods
from keras_betakd.distillation.summary import LINE_LENGTH, parameter_table, parts_of
from keras_betakd.distillation.teacher_group import members_of, resolved_teacher
from keras_betakd.distillation.teacher_parts import (
    betas_by_energy,
    energies_by_teacher,
    teacher_part,
)
from keras_betakd.distillation.trainer import DistillationTrainer
from keras_betakd.distillation.training_data import as_batch
from keras_betakd.distribution.devices import expect_on_devices
from keras_betakd.energies import Energy
from keras_betakd.head_loss.terms import (
    AnswerRows,
    Weighting,
    batch_terms,
)
from keras_betakd.models.views import view_of
from keras_betakd.objective import REDUCTIONS, any_row, weighted_mean
from keras_betakd.preprocessing.adapters import is_raw_records
from keras_betakd.preprocessing.batches import by_model
from keras_betakd.preprocessing.preprocessor import DistillationPreprocessor
from keras_betakd.preprocessing.prompt_templates import PromptTemplate
from keras_betakd.preprocessing.teacher_sides import of_teacher


@keras.saving.register_keras_serializable(package="keras_betakd")
class BetaKDDistiller(
    DistillationTrainer, DistillerSaving, StudentMethods, keras.Model
):
    """Distils a teacher into a student with learned weights (Beta-KD).

    Minimises, over the supervised answer tokens,

        CE + sum_k [ beta_k * l_k - (d_k / 2) * log beta_k ]

    with CE the student's cross-entropy on the labels, l_k an energy between teacher
    and student (`energies`), beta_k its weight (`beta`), which is learned and settles
    at d_k / (2 l_k), and d_k the `dim` of the beta. Units: nats per token. The total
    may be negative; the energies and betas are reported on their own.

    The teacher is frozen: the caller's object, no copy of it, is set to
    `trainable=False`, runs in inference mode, has no optimizer slots and is not part of
    weights files. A distiller that takes it as its student lets it train again.
    Teacher and student must share no weights, but for a vision tower that is frozen in
    both.

    Args:
        teacher: a `keras_hub.models.CausalLM` (Gemma 3, PaliGemma, any text family), or
            any `keras.Model` whose output is logits. Or several: a dict by names of
            your choice, or a list (then `"teacher_1"` and so on). They are members of
            `distiller.teacher.members`.
        student: a smaller one over the same vocabulary.
        energies: a `keras_betakd.Energy`, or a list or dict of them. Each is reported
            under its name, or its key, and its beta under that with `_beta`. Of several
            teachers, one energy for all, or a dict by their names (of a list of them, a
            list) with any of these; reported under `teacher_energy`.
        beta: a beta layer (`TaskBeta()` if `None`); a list or dict gives each energy
            its own, and a single layer is copied for each energy. Of several teachers,
            the same, or a dict by their names with any of these.
        task_beta: the beta of CE, if it has one of its own too (Kendall and Gal 2018):
            a beta layer, or `True` for a `TaskBeta()`. `None` (default) leaves CE as it
            is, as in the paper. A beta helps where labels may be wrong: they keep CE
            large, and so its beta small (`docs/study.md`). A predicted one reads the
            first of several teachers.
        reduction: `"example"` (default) averages over the tokens of an example, then
            over examples; `"token"` over all tokens. With gradient accumulation these
            are the means of each batch, which are then averaged with equal weight:
            that is the mean of the large batch for `"example"` if all parts of it have
            as many examples with a supervised token, and for `"token"` only if they
            have as many tokens (`compile` warns).
        freeze: what of the student does not train: `"vision_tower"` (default; the
            projector and the language model train, as in the paper),
            `"all_but_projector"` (as when a new projector is aligned first), `None`, or
            a callable that takes a layer. What you froze yourself, before or between
            distillers, stays frozen. What another distiller froze of the student is
            given back first: in stages, each trains what its own `freeze` leaves.
        preprocessor: a `DistillationPreprocessor` for raw records. `None` (default)
            makes it of the two models' own preprocessors.
        fused: whether the LM heads and the losses run as one operation that never
            holds the logits of all rows (`keras_betakd.head_loss`): the same numbers
            with much less memory. `"auto"` (default) does so where it is possible: the
            student's head can be read as a matrix, every energy can be fused, and task
            loss and weighted metrics are the default ones, since others need the
            logits. `True` raises an error where it is not possible; `False` always
            computes full logits.
        vocabulary_size: how many classes, from the first, the two models have in
            common, where a vocabulary is padded (Qwen's 151,936 against 152,064):
            logits are cut to them before anything is normalised. `None` if the
            vocabularies have the same size.
        max_response_length: the maximum number of answer tokens of a record, its end
            mark included (64 if `None`), for the preprocessor that is made of the
            models' own: its rows of logits are what the loss costs.
        on_too_long: `"raise"` (as `None`) or `"skip"`, for the same preprocessor: what
            to do about records that do not fit (see `DistillationPreprocessor`).
            `check_records` finds all of them before training.
        prompt_template: for the same preprocessor: the template that the prompts of
            instruction-tuned models are written in. `"auto"` (default) is the model's
            own where it is known; see `DistillationPreprocessor`.
        remat: whether the student's blocks are computed a second time for their
            gradient instead of keeping their activations (gradient checkpointing, by
            `keras.remat`): the same numbers, with less memory for long sequences and
            one more forward pass of the student. Blocks within which an energy reads
            attention or an inner layer keep them, as does Gemma 3n's vision tower.

    Raises:
        ValueError: an argument is not one of those above, the vocabularies differ,
            teacher and student share weights, or an energy compares features that a
            model does not have.

    Inputs: raw records as keras-hub takes them ({"images", "prompts", "responses"}; as
    a dict of lists or arrays, a list of dicts, a Hugging Face table, or batches of
    them: `PyDataset`, `tf.data.Dataset`, torch `DataLoader`, generator), or the
    answer-position form of `DistillationPreprocessor`, or, for plain models, ordinary
    `(x, y, sample_weight)` with x = {"student": ..., "teacher": ...} where the two see
    different inputs.

    Example:

    ```python
    distiller = BetaKDDistiller(
        teacher, student, energies=CosineProbsEnergy(), beta=InstanceBeta()
    )
    distiller.compile(optimizer=keras.optimizers.AdamW(2e-5))
    distiller.fit(dataset, callbacks=[keras.callbacks.EarlyStopping("val_objective")])
    distiller.student.save_to_preset("my_student")
    ```

    Reported are `loss` (the total), `task_loss` (CE), `accuracy`, every energy and
    beta, and `objective`: the total with each beta at its best value, a function of CE
    and energies alone,

        objective = CE + sum_k min over beta of [ beta * l_k - (d_k / 2) * log beta ]

    where beta is between its bounds (a `FixedBeta` has one value). Monitor
    `val_objective`, `val_task_loss` or `val_accuracy` in callbacks: `val_loss` moves
    with the betas even where the student stands still.

    Reference: Beta-KD, arXiv 2603.21426 (CVPR 2026).
    """

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        energies: Energy | Sequence[Energy] | Mapping[str, Energy],
        beta: Beta | Sequence[Beta] | Mapping[str, Beta] | None = None,
        task_beta: Beta | bool | None = None,
        reduction: str = "example",
        freeze: str | Callable[[keras.layers.Layer], bool] | None = "vision_tower",
        preprocessor: DistillationPreprocessor | None = None,
        fused: bool | str = "auto",
        vocabulary_size: int | None = None,
        max_response_length: int | None = None,
        on_too_long: str | None = None,
        prompt_template: PromptTemplate | dict[str, PromptTemplate] = "auto",
        remat: bool = False,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **{**kwargs, "dtype": "float32"})
        teacher = resolved_teacher(teacher)
        self.student_view = view_of(student)
        views = {name: view_of(model) for name, model in members_of(teacher).items()}
        for view in views.values():
            expect_apart(self.student_view, view, freeze)
        by_teacher = energies_by_teacher(energies, list(views))
        for name, own in by_teacher.items():
            with of_teacher(name):
                check_vocabularies(views[name], self.student_view, own, vocabulary_size)
        self.energies = {k: e for own in by_teacher.values() for k, e in own.items()}
        self.vocabulary_size = vocabulary_size
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"`reduction` must be one of {REDUCTIONS}. Received: {reduction}"
            )
        self.student = student
        self._teacher_holder = Untracked(teacher)
        self.teacher = teacher
        self.betas = betas_by_energy(beta, by_teacher)
        self.schedules = {
            name: energy.schedule
            for name, energy in self.energies.items()
            if energy.schedule is not None
        }
        self.task_beta = resolved_task_beta(task_beta)
        models = {"student": student, "teacher": teacher}
        expect_on_devices(self._parts_on_devices())
        expect_parts_apart(models, self.all_betas(), self.energies)
        self.reduction = reduction
        self.freeze = freeze
        self.fused = expect_fused(fused)
        self.preprocessor = resolved_preprocessor(
            *(preprocessor, teacher, student, by_teacher),
            *(max_response_length, on_too_long, prompt_template),
        )
        expect_rows_for_tokens(self.preprocessor, views, self.student_view)
        # Plain objects, which Keras neither tracks nor saves: what they hold of layers
        # and metrics is an attribute of the distiller too.
        self.teacher_parts = [
            teacher_part(
                *(name, view, self.student_view),
                *(by_teacher[name], self.betas, list(views)),
            )
            for name, view in views.items()
        ]
        self._forward = ForwardPass(
            self.student_view, self.teacher_parts, self.all_betas(), reduction
        )
        self.projections = {
            name: layer
            for part in self.teacher_parts
            for name, layer in part.comparison.projections.items()
        }
        self.remat = remat
        self.student_reader = self._forward.student_reader
        self._student_remat = remat_of(self.student_view, self.student_reader, remat)
        self.freeze_parts()
        self._build_betas()
        self._make_trackers()
        self.faults = NonFiniteCounts(["task", *self.energies])

    def all_betas(self):
        """Dict of the beta layers by the names of their terms, `"task"` first."""
        task = {} if self.task_beta is None else {"task": self.task_beta}
        return {**task, **self.betas}

    def _parts_on_devices(self):
        """Dict of variables by the names of who made them."""
        states = [e.schedule.variables for e in self.energies.values() if e.schedule]
        return {
            "the teacher": self.teacher.variables,
            "the student": self.student.variables,
            "the betas": [v for b in self.all_betas().values() for v in b.variables],
            "the energies": [v for state in states for v in state],
        }

    def freeze_parts(self):
        """Freezes the teacher, and of the student what `freeze` says.

        What other distillers froze of the student is given back first.
        """
        for part in self.teacher_parts:
            expect_apart(self.student_view, part.view, self.freeze)
        apply_freeze(self.student_view, self.freeze)
        freeze_teacher(self.teacher)
        models = [self.student, *(part.view.model for part in self.teacher_parts)]
        self._is_frozen = all(model.built for model in models)

    def _build_betas(self):
        """Creates the betas' variables now, so that files can be loaded at once."""
        for name, beta in self.all_betas().items():
            if beta.built:
                continue
            width = beta.features_width(self._forward.part_of(name).view)
            if not beta.uses_features:
                beta.build((None, None))
            elif width is not None:
                middle = (None,) if beta.per_token else ()
                beta.build((None, None), (None, *middle, width))
        betas = self.all_betas().values()
        self.built = self._is_frozen and all(beta.built for beta in betas)

    def _make_trackers(self):
        trackers = Trackers(
            self.energies, self.all_betas(), self.schedules, self.reduction
        )
        self._trackers = trackers
        self.loss_tracker = trackers.loss
        self.task_loss_tracker = trackers.task_loss
        self.accuracy_tracker = trackers.accuracy
        self.objective_tracker = trackers.objective
        self.energy_trackers = trackers.energies
        self.beta_trackers = trackers.betas
        self.schedule_trackers = trackers.schedules

    # The forward pass

    def __call__(self, *args, **kwargs):
        # Keras would convert the texts of raw records to tensors first.
        if args and is_raw_records(args[0]):
            args = (as_batch(self, args[0], labelled=False)[0], *args[1:])
        return super().__call__(*args, **kwargs)

    def call(self, inputs, training=None):
        inputs = by_model(inputs)
        if self._predicting:
            return self._forward.predicted(inputs, training)
        found = self._forward.models(
            inputs, training, self.fuses(inputs), self._student_remat(training)
        )
        if not self._is_frozen:  # models that this batch has built
            self.freeze_parts()
        return self._forward.weighted(inputs, *found)

    def fuses(self, inputs):
        """Whether this batch goes through the fused head."""
        if self.fused is False or self._needs_logits or self._unfusable():
            return False
        if any(inputs.get(f"{role}_positions") is None for role in ROLES):
            return False
        return self.student_view.head.has_matrix

    def _unfusable(self):
        return [name for name, energy in self.energies.items() if not energy.fuses]

    # The loss

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        x, betas = by_model(x), self.all_betas()
        terms = self._terms(x, y, y_pred, training)
        loss, whole = batch_loss(terms.total, y_pred, betas, lambda: self.losses)
        finite = self._note_nonfinite(whole, terms, x, y_pred)
        weights = mean_weights(y_pred)
        accuracy = self._reports_accuracy
        self._trackers.update(whole, terms, y_pred, weights, x, accuracy)
        if training:
            for name, beta in betas.items():
                beta.update(terms.energies.get(name, terms.task), weights[name])
            self._advance_schedules(terms.energies, y_pred.weights)
        # Reaches every gradient, so that the optimizer skips the step.
        loss = loss * ops.where(finite, 1.0, float("nan"))
        return self._watched(loss) if training else loss

    def _terms(self, x, y, y_pred, training):
        labels = ops.reshape(y, ops.shape(y_pred.weights["answers"]))
        return batch_terms(
            AnswerRows(y_pred.student, y_pred.teachers, labels),
            y_pred.feature_values,
            y_pred.image_rows,
            Weighting(y_pred.weights, y_pred.log_beta),
            self._forward.heads(x, self.fuses(x)),
            self.task_loss,
            training,
        )

    def _note_nonfinite(self, total, terms, x, y_pred):
        """Whether the batch is finite. If not, no row of it has a weight any more.

        The one place that changes `y_pred`: metrics and betas read its weights.
        """
        values, weights = {"task": terms.task, **terms.energies}, y_pred.weights
        rows = [nonfinite_rows(value, weights[name]) for name, value in values.items()]
        answers, ids = weights["answers"], x.get("ids")
        self.faults.update_weighting(weights, y_pred.log_beta)
        lost = unweighted_nonfinite(y_pred.student, answers)
        known = functools.reduce(ops.logical_and, y_pred.finite.values())
        finite = self.faults.update(total, known, rows, lost, answers, ids)
        for name, weight in weights.items():
            weights[name] = ops.where(finite, weight, 0.0)
        return finite

    def _advance_schedules(self, energies, weights):
        every = innermost(self.optimizer).gradient_accumulation_steps or 1
        for name, schedule in self.schedules.items():
            mean = weighted_mean(energies[name], weights[name])
            schedule.update(mean, any_row(weights[name]), every)

    # Reports

    @property
    def metrics(self):
        hidden = None if self._reports_accuracy else self.accuracy_tracker
        # Keras' own mean of the loss would also count rows without weight, and batches
        # that are not finite.
        others = [m for m in super().metrics if m.name != "loss" and m is not hidden]
        return [self.loss_tracker, *others]

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if not self._needs_logits:  # no metric of the user's is to be updated
            return self.get_metrics_result()
        weights = y_pred.weights["task"]
        y = ops.where(weights != 0, ops.reshape(y, ops.shape(weights)), 0)
        counted = given_weights(x, weights)["task"]
        return super().compute_metrics(x, y, y_pred.student, counted)

    def objective(self, values, label_share=1.0):
        """The loss at the best betas, from means by the names of their metrics.

        Args:
            values: dict of `"task_loss"` and the energies, in nats per token or in the
                unit of the energy.
            label_share: the share of the answers' weight that has labels, less than 1
                where records have a `"task_weight"` or the student answers itself.

        Returns:
            A scalar: label_share * CE + sum_k min over beta of
            [ beta * l_k - (d_k / 2) * log beta ].
        """
        return self._trackers.objective_of(values, label_share)

    def count_params(self):
        """The number of parameters of teacher, student, betas and energies."""
        return sum(math.prod(v.shape) for part in parts_of(self).values() for v in part)

    def summary(
        self,
        line_length=None,
        positions=None,
        print_fn=None,
        expand_nested=False,
        show_trainable=False,
        layer_range=None,
    ):
        """Shows parameters, how many of them train, and memory, part by part.

        Args:
            line_length: characters of a line; 77 if `None`.
            print_fn: function that takes each line; `None` writes to standard output.
            expand_nested: whether the layers of student and teacher follow, as
                `keras.Model.summary` shows them.
            positions, show_trainable, layer_range: as for `keras.Model.summary`, for
                the layers of student and teacher.
        """
        write = print_fn or (lambda line: sys.stdout.write(line + "\n"))
        for line in parameter_table(parts_of(self), line_length or LINE_LENGTH):
            write(line)
        if expand_nested:
            for model in (self.student, *members_of(self.teacher).values()):
                # By name: keras-hub's tasks take some of them by name alone.
                model.summary(
                    line_length=line_length,
                    positions=positions,
                    print_fn=print_fn,
                    expand_nested=True,
                    show_trainable=show_trainable,
                    layer_range=layer_range,
                )
