"""`BetaKDDistiller`: a teacher trains a student, and learns how much to be heard."""

import dataclasses

import keras
from keras import ops

from keras_betakd.betas import TaskBeta
from keras_betakd.betas.teacher_features import TeacherOutputs
from keras_betakd.distillation.arguments import (
    check_vocabularies,
    default_preprocessor,
    expect_beta,
    named_betas,
    named_energies,
)
from keras_betakd.distillation.feature_comparison import (
    FeatureAlignment,
    add_feature_terms,
)
from keras_betakd.distillation.metrics import Tracking
from keras_betakd.distillation.nonfinite import (
    Faults,
    finite_only,
    finite_rows,
    spoiled_rows,
    without_faults,
)
from keras_betakd.distillation.replica_loss import ReplicaJoining
from keras_betakd.distillation.saving import TeacherKeeping
from keras_betakd.distillation.shared_tower import PictureSharing
from keras_betakd.distillation.summary import PartSummary
from keras_betakd.distillation.trainer import Compiling, RecordFitting
from keras_betakd.energies.masking import attached_mask
from keras_betakd.head_loss.terms import dense_terms, fused_terms, image_logits_term
from keras_betakd.models.views import view_of
from keras_betakd.objective import REDUCTIONS, any_row, row_weights, weighted_mean
from keras_betakd.preprocessing.batches import by_model

ROLES = ("student", "teacher")


@keras.saving.register_keras_serializable(package="keras_betakd")
class BetaKDDistiller(
    Compiling,
    RecordFitting,
    ReplicaJoining,
    FeatureAlignment,
    PictureSharing,
    Tracking,
    PartSummary,
    TeacherKeeping,
    keras.Model,
):
    """Distils a teacher into a student with learned weights (Beta-KD).

    Minimises, over the supervised answer tokens,

        CE + sum_k [ beta_k * l_k - (d_k / 2) * log beta_k ]

    with CE the student's cross-entropy on the labels, l_k an energy between teacher
    and student (`energies`), beta_k its weight (`beta`), which is learned and settles
    at d_k / (2 l_k). Units: nats per token. The total may be negative; the energies and
    betas are reported on their own.

    The teacher is frozen, in its own copy of the caller's object: it is set to
    `trainable=False`, runs in inference mode, has no optimizer slots and is not part
    of weights files.

    Args:
        teacher: a `keras_hub.models.CausalLM` (Gemma 3, PaliGemma, any text family), or
            any `keras.Model` whose output is logits.
        student: a smaller one over the same vocabulary.
        energies: a `keras_betakd.Energy`, or a list or dict of them. Each is reported
            under its name, or its key, and its beta under that with `_beta`.
        beta: a beta layer (`TaskBeta()` if `None`); a list or dict gives each energy
            its own, a single one stands for one of its kind for each energy.
        weight_task_loss: whether CE has a beta of its own too (Kendall and Gal); `True`
            for a `TaskBeta()`, or a beta layer. Worth it where labels may be wrong,
            which keep CE large, and so its beta small (`benchmarks/STUDY.md`).
        reduction: `"example"` (default) averages over the tokens of an example, then
            over examples; `"token"` over all tokens.
        freeze: what of the student does not train: `"vision_tower"` (default; the
            projector and the language model train, as in the paper),
            `"all_but_projector"` (as when a new projector is aligned first), `None`, or
            a callable that takes a layer. Never unfreezes.
        preprocessor: a `DistillationPreprocessor` for raw records. Made of the two
            models' own preprocessors if `None`.
        fused: whether the LM heads and the losses run as one operation that never
            holds the logits of all rows (`keras_betakd.head_loss`): the same numbers
            with much less memory. `None` (default) where that is possible: the
            student's head can be seen, and task loss and weighted metrics are the
            default ones, since others need the logits. `True` raises where it is not;
            `False` never.
        vocabulary_size: how many classes, from the first, the two models have in
            common, where a vocabulary is filled up (Qwen's 151,936 against 152,064):
            logits are cut to them before anything is normalised. `None` if their
            vocabularies have one size.

    Inputs: raw records as keras-hub takes them ({"images", "prompts", "responses"}; as
    a dict of lists or arrays, `PyDataset`, `tf.data.Dataset` or torch `DataLoader`),
    or the answer-position form of `DistillationPreprocessor`, or, for plain models,
    ordinary `(x, y, sample_weight)` with x = {"student": ..., "teacher": ...} where
    the two see different inputs.

    Example:

    ```python
    distiller = BetaKDDistiller(
        teacher, student, energies=CosineProbsEnergy(), beta=InstanceBeta()
    )
    distiller.compile(optimizer=keras.optimizers.AdamW(2e-5))
    distiller.fit(dataset)
    distiller.student.save_to_preset("my_student")
    ```

    Reference: Beta-KD, arXiv 2603.21426 (CVPR 2026).
    """

    def __init__(
        self,
        teacher,
        student,
        energies,
        beta=None,
        weight_task_loss=False,
        reduction="example",
        freeze="vision_tower",
        preprocessor=None,
        fused=None,
        vocabulary_size=None,
        name=None,
        **kwargs,
    ):
        super().__init__(name=name, **{**kwargs, "dtype": "float32"})
        self.student_view = view_of(student)
        self.teacher_view = view_of(teacher)
        self.energies = named_energies(energies)
        check_vocabularies(
            self.teacher_view, self.student_view, self.energies, vocabulary_size
        )
        self.vocabulary_size = vocabulary_size
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"`reduction` must be one of {REDUCTIONS}. Received: {reduction}"
            )
        self.student = student
        self.teacher = teacher
        self.betas = named_betas(beta, list(self.energies))
        self.schedules = {
            name: energy.schedule
            for name, energy in self.energies.items()
            if energy.schedule is not None
        }
        self.task_beta = TaskBeta() if weight_task_loss is True else None
        if weight_task_loss and self.task_beta is None:
            self.task_beta = expect_beta(weight_task_loss)
        self.reduction = reduction
        self.freeze = freeze
        self.fused = fused
        self.preprocessor = preprocessor or default_preprocessor(
            teacher, student, self.energies
        )
        self._prepare_features()
        self._freeze()
        self._build_betas()
        self._make_trackers()
        self.faults = Faults()
        self._predicting = False
        self._needs_logits = False

    def _all_betas(self):
        task = {} if self.task_beta is None else {"task": self.task_beta}
        return {**task, **self.betas}

    def _build_betas(self):
        """Creates the betas' variables now, so that files can be loaded at once."""
        for beta in self._all_betas().values():
            if beta.built:
                continue
            width = beta.features_width(self.teacher_view)
            if not beta.uses_features:
                beta.build((None, None))
            elif width is not None:
                middle = (None,) if beta.per_token else ()
                beta.build((None, None), (None, *middle, width))
        children = [self.student, self.teacher, *self._all_betas().values()]
        self.built = all(layer.built for layer in children)

    # The computation

    def call(self, inputs, training=None):
        inputs = by_model(inputs)
        with self._tower_once(inputs):
            student = self._outputs(self.student_view, "student", inputs, training)
            if self._predicting:
                return student["logits"]
            inputs = self._with_pictures(inputs)
            teacher = self._outputs(self.teacher_view, "teacher", inputs, False)
        features = student.pop("features", None), _cut(teacher.pop("features", None))
        labels = _label_weights(inputs, student)
        finite = finite_rows(teacher)
        teacher = without_faults(teacher, finite)
        comparable = ops.cast(finite, labels.dtype)
        if "aligned" in inputs:
            comparable = comparable * inputs["aligned"]
        weights = row_weights(labels, self.reduction)
        compared = row_weights(labels * comparable, self.reduction)
        head_input = _head_input(teacher)
        teacher.pop("packed", None)
        teacher = TeacherOutputs(
            **{k: ops.stop_gradient(v) for k, v in teacher.items()}, weights=compared
        )
        values, rows, energy_weights = self._compare_features(*features, compared)
        log_beta = {
            name: beta(
                energy_weights.get(name, weights), features=beta.features_of(teacher)
            )
            for name, beta in self._all_betas().items()
        }
        return {
            "student": student.get("logits", student.get("rows")),
            "teacher": head_input if teacher.logits is None else teacher.logits,
            "log_beta": log_beta,
            "weights": weights,
            "finite": finite,
            "energy_weights": energy_weights,
            "feature_values": values,
            "image_rows": rows,
        }

    def _outputs(self, view, role, inputs, training):
        """What a model makes of its inputs: logits (B, K, V), or rows (B, K, H)."""
        x, positions = inputs[role], inputs.get(f"{role}_positions")
        reader = self._reader(view, role)
        if positions is None:
            reader.expect_nothing()
            logits = view.logits(x, training=training)
            outputs = {"logits": _as_rows(logits)}
            if role == "student":
                outputs["mask"] = attached_mask(logits)
            return outputs
        outputs = reader.outputs(x, positions, training)
        if self._predicting or not self._fuses(inputs) or self._beta_reads(role):
            outputs["logits"] = view.head(_head_input(outputs))
        return outputs

    def _beta_reads(self, role):
        betas = self._all_betas().values()
        return role == "teacher" and any(beta.reads_logits for beta in betas)

    def _fuses(self, inputs):
        """Whether this batch goes through the fused head."""
        if self.fused is False or self._needs_logits or self._unfusable():
            return False
        if any(inputs.get(f"{role}_positions") is None for role in ROLES):
            return False
        return self.student_view.head.has_matrix

    def _unfusable(self):
        return [name for name, energy in self.energies.items() if not energy.fuses]

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        terms = self._terms(by_model(x), y, y_pred, training)
        loss, whole = self._joined(terms.total, y_pred)
        sound = self._note_faults(whole, terms, x, y_pred)
        weights = y_pred["weights"]
        self._track(whole, terms, y_pred)
        if self._reports_accuracy:
            counted = by_model(x)["sample_weight"]
            self._track_accuracy(terms.correct, counted, weights)
        if training:
            for name, beta in self._all_betas().items():
                values = terms.energies.get(name, terms.task)
                beta.update(values, y_pred["energy_weights"].get(name, weights))
            self._advance_schedules(terms.energies, y_pred["energy_weights"])
        # Reaches every gradient, so that the optimizer leaves the step out.
        loss = loss * ops.where(sound, 1.0, float("nan"))
        return self._watched(loss) if training else loss

    def _note_faults(self, total, terms, x, y_pred):
        """Whether the batch counts. If not, no row of it has a weight any more."""
        weights = {"task": y_pred["weights"], **y_pred["energy_weights"]}
        values = {"task": terms.task, **terms.energies}
        spoiled = [spoiled_rows(value, weights[name]) for name, value in values.items()]
        lost = [any_row(ops.cast(rows, "int32")) for rows in spoiled]
        sound = ops.isfinite(total) & ~ops.any(ops.stack(lost))
        ids = by_model(x).get("ids")
        self.faults.update(y_pred["finite"], spoiled, sound, weights["task"], ids)
        # Written into `y_pred`, from which metrics and betas take what counts.
        counted = {name: ops.where(sound, w, 0.0) for name, w in weights.items()}
        y_pred["weights"] = counted.pop("task")
        y_pred["energy_weights"] = counted
        return sound

    def _advance_schedules(self, energies, energy_weights):
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        every = optimizer.gradient_accumulation_steps or 1
        for name, schedule in self.schedules.items():
            weights = energy_weights[name]
            mean = weighted_mean(energies[name], weights)
            schedule.update(mean, any_row(weights), every)

    def _terms(self, inputs, y, y_pred, training):
        weights, log_beta = y_pred["weights"], y_pred["log_beta"]
        y = ops.reshape(y, ops.shape(weights))
        heads = self.student_view.head, self.teacher_view.head
        energies = {n: e for n, e in self.energies.items() if e.features is None}
        energy_weights = y_pred["energy_weights"]
        answer = y_pred["student"], y_pred["teacher"], y, weights, log_beta
        fuses = self._fuses(inputs)
        if fuses:
            heads = heads[0].matrix(), heads[1].matrix() or heads[1]
            # Where a beta reads the teacher's logits, they were made already.
            made = self._beta_reads("teacher")
            pair = (heads[0], ops.stop_gradient) if made else heads
            terms = fused_terms(*answer, pair, energies, energy_weights, training)
        else:
            terms = dense_terms(*answer, self.task_loss, energies, energy_weights)
        values, total = dict(y_pred["feature_values"]), terms.total
        total = add_feature_terms(total, values, log_beta, energy_weights)
        for name, rows in y_pred["image_rows"].items():
            term, values[name] = image_logits_term(
                rows,
                heads,
                energy_weights[name],
                log_beta[name],
                self.energies[name],
                fuses,
                training,
            )
            total = total + term
        values = {**terms.energies, **values}
        return dataclasses.replace(terms, total=total, energies=values)

    # Training

    def zero_grad(self, set_to_none=True):
        """Clears the gradients; called by Keras' trainer on PyTorch alone.

        There Keras lists parameters by path, and a teacher and a student of one family
        have the same paths: the student's gradients would be left to pile up.
        """
        for variable in self.trainable_variables:
            variable.value.grad = None

    def generate(self, *args, **kwargs):
        """The student's answers; as `keras_hub.models.CausalLM.generate`."""
        return self.student.generate(*args, **kwargs)


def _label_weights(inputs, student):
    """The weight of each label, (B, K), times the mask that Keras attached."""
    outputs = student.get("logits", student.get("rows"))
    shape = ops.shape(outputs)[:2]
    weights = ops.ones(shape)
    for factor in (inputs.get("sample_weight"), student.get("mask")):
        if factor is not None:
            weights = weights * ops.reshape(factor, shape)
    return weights


def _cut(features):
    """The teacher's `Features`, through which nothing flows back."""
    if features is None:
        return None
    read = {k: v for k, v in vars(features).items() if v is not None}
    cut = {k: ops.stop_gradient(finite_only(v)) for k, v in read.items()}
    return dataclasses.replace(features, **cut)


def _head_input(outputs):
    """What a model's head takes: hidden states, or what a cache has instead."""
    return outputs.get("packed", outputs.get("rows"))


def _as_rows(logits):
    """Logits of any rank as (B, K, V)."""
    shape = ops.shape(logits)
    if len(shape) == 3:
        return logits
    return ops.reshape(logits, (shape[0], -1, shape[-1]))
