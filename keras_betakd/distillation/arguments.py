"""Reads the arguments of the distiller and of its `compile`.

Energies and betas by name, vocabularies, the default preprocessor; optimizer and task
loss.
"""

import warnings

import keras

from keras_betakd.backends import runs_eagerly
from keras_betakd.betas import Beta, TaskBeta
from keras_betakd.distillation.finite_steps_optimizer import FiniteStepsOptimizer
from keras_betakd.distillation.freezing import computes_in_float16
from keras_betakd.energies.base import Energy
from keras_betakd.preprocessing.preprocessor import DistillationPreprocessor

_SKIPPING = (keras.optimizers.LossScaleOptimizer, FiniteStepsOptimizer)

# Names of the distiller's own metrics, and of its weights of the cross-entropy.
_REPORTED = ("loss", "objective", "accuracy", "task", "task_loss", "task_beta")


def named_energies(energies):
    """A dict of name to energy, from one energy, a list or a dict of them."""
    if isinstance(energies, Energy):
        energies = [energies]
    if isinstance(energies, (list, tuple)):
        energies = dict(zip(_unique_names(energies), energies, strict=True))
    valid = isinstance(energies, dict) and energies
    if not valid or not all(isinstance(e, Energy) for e in energies.values()):
        raise ValueError(
            "`energies` must be a `keras_betakd.Energy` (for example "
            "`CosineProbsEnergy()`), or a list or dict of them. Received: "
            f"energies={energies}"
        )
    _expect_names_apart(energies)
    return dict(energies)


def _expect_names_apart(energies):
    """Raises where two metrics would have one name, and two weights one entry."""
    names = [*_REPORTED]
    for name, energy in energies.items():
        names += [name, f"{name}_beta"]
        if energy.schedule is not None:
            names.append(f"{name}_{energy.schedule.shown_as}")
    twice = sorted({n for n in names if names.count(n) > 1 or n.startswith("val_")})
    if twice:
        raise ValueError(
            f"Names that are taken: {twice}. An energy is reported under its name and "
            f"its beta under that with `_beta`, beside {', '.join(_REPORTED)}; names "
            "with val_ in front are those of the validation. Give the energy another "
            "one, by `name=` or as the key of a dict. Received: energies named "
            f"{list(energies)}"
        )


def _unique_names(energies):
    names = []
    for energy in energies:
        name = getattr(energy, "name", "energy")
        seen = sum(other == name or other.startswith(f"{name}_") for other in names)
        names.append(f"{name}_{seen}" if name in names else name)
    return names


def named_betas(beta, names):
    """A dict of name to beta layer, one for each energy.

    A single layer is copied for each further energy: betas are never shared, since each
    energy has its own scale.
    """
    if beta is None:
        beta = TaskBeta()
    if isinstance(beta, Beta):
        beta = [beta] + [type(beta).from_config(_unnamed(beta)) for _ in names[1:]]
    if isinstance(beta, (list, tuple)):
        if len(beta) != len(names):
            raise ValueError(
                f"`beta` must have one layer for each of the {len(names)} energies "
                f"{names}. Received: {len(beta)} layers"
            )
        beta = dict(zip(names, beta, strict=True))
    if not isinstance(beta, dict) or set(beta) != set(names):
        raise ValueError(
            "`beta` must be a beta layer (for example `TaskBeta()`), a list, or a "
            f"dict with the energies' names {names}. Received: beta={beta}"
        )
    layers = [expect_beta(beta[name]) for name in names]
    if len({id(layer) for layer in layers}) < len(layers):
        raise ValueError(
            "Each energy needs a beta layer of its own; the same layer was passed "
            f"for more than one. Received: beta={beta}"
        )
    return dict(zip(names, layers, strict=True))


def _unnamed(beta):
    config = beta.get_config()
    del config["name"]
    return config


def expect_beta(beta):
    if not isinstance(beta, Beta):
        raise ValueError(
            "A beta must be a `keras_betakd.Beta` layer, for example `TaskBeta()` or "
            f"`FixedBeta(1.0)`. Received: {beta} of type {type(beta)}"
        )
    return beta


def resolved_task_beta(task_beta):
    """The beta layer of the cross-entropy; `TaskBeta()` for `True`, or `None`."""
    if task_beta is None:
        return None
    return TaskBeta() if task_beta is True else expect_beta(task_beta)


def expect_parts_apart(models, betas, energies):
    """Raises where a step would change one part through two owners.

    Args:
        models: dict of student and teacher, whose layers `expect_apart` compares.
        betas: dict of beta layers by the names of their terms.
        energies: dict of energies.
    """
    parts = [(f"the {role}", model) for role, model in models.items()]
    parts += [(f"the beta of {name}", beta) for name, beta in betas.items()]
    for name, energy in energies.items():
        learns = energy if energy.projects else None
        state = learns, energy.schedule, getattr(energy, "projection", None)
        parts += [(f"the energy {name}", part) for part in state if part is not None]
    owners = {}
    for owner, part in parts:
        for x in (part, *getattr(part, "weights", ())):
            other = owners.setdefault(id(x), owner)
            if other != owner and {owner, other} != {"the student", "the teacher"}:
                raise ValueError(
                    "Student, teacher, each beta, and each energy that learns or has "
                    f"a schedule need layers of their own. Received: {owner} shares "
                    f"{getattr(x, 'path', None) or x.name!r} with {other}"
                )


def expect_fused(fused):
    """`fused`, if it is one of its values."""
    if fused not in ("auto", True, False):
        raise ValueError(
            f'`fused` must be "auto", `True` or `False`. Received: fused={fused!r}'
        )
    return fused


def check_vocabularies(teacher, student, energies, vocabulary_size):
    """Raises unless the energies can compare the two; cuts both to `vocabulary_size`.

    Args:
        teacher, student: the two `ModelView`s.
        energies: dict of energies.
        vocabulary_size: how many classes both have in common, or `None`.
    """
    views = [view for view in (teacher, student) if view.sees_hidden_states]
    sizes = [view.vocabulary_size for view in views]
    if vocabulary_size is not None:
        if not 1 <= vocabulary_size <= min(sizes, default=vocabulary_size):
            raise ValueError(
                "`vocabulary_size` must be positive and no more than the models have. "
                f"Received: vocabulary_size={vocabulary_size}, models with {sizes}"
            )
        for view in (teacher, student):
            view.crop(vocabulary_size)
    elif len(set(sizes)) > 1 and not crosses_vocabularies(energies):
        raise ValueError(
            "Teacher and student must have the same vocabulary: an energy compares "
            "them class by class. Received: a teacher with vocabulary_size="
            f"{sizes[0]} and a student with vocabulary_size={sizes[1]}. Where one of "
            "them is the other's with unused classes behind (padding), pass "
            "`vocabulary_size`, the number of classes of their tokenizer. For "
            "different tokenizers there is `ULDEnergy`."
        )


def crosses_vocabularies(energies):
    """Whether no energy compares logits class by class."""
    return all(e.crosses_vocabularies or e.features for e in energies.values())


def default_preprocessor(teacher, student, energies):
    """The preprocessor made of the two models' own; `None` where a model has none."""
    pair = [getattr(model, "preprocessor", None) for model in (teacher, student)]
    if None in pair:
        return None
    logits = [e for e in energies.values() if not e.features]
    cross = bool(logits) and crosses_vocabularies(energies)
    return DistillationPreprocessor(*pair, cross_tokenizer=cross)


def resolved_optimizer(optimizer, student, auto_scale_loss):
    """The optimizer that trains: one whose non-finite steps change nothing.

    Args:
        optimizer: optimizer, its name, or `"auto"` for `Adam(2e-5)`.
        student: the student.
        auto_scale_loss: whether to scale the loss of a student in float16.
    """
    if optimizer == "auto":
        optimizer = keras.optimizers.Adam(2e-5)
    optimizer = keras.optimizers.get(optimizer)
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if auto_scale_loss and not scaled and computes_in_float16(student):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    if not isinstance(optimizer, _SKIPPING):
        optimizer = FiniteStepsOptimizer(optimizer)
    return optimizer


def expect_no_compiler(jit_compile):
    """Raises where `jit_compile` asks for `torch.compile`."""
    if runs_eagerly() and jit_compile not in (None, False, "auto"):
        raise ValueError(
            "A distiller's step cannot run under `torch.compile`, which `jit_compile` "
            "stands for on PyTorch: it splits and guards the step at so many places "
            "that compiling takes minutes for the smallest models, and is done again "
            'in later steps. Use `jit_compile="auto"` or `False`, or JAX, which '
            "compiles the step as a whole (an archive saved there: load it with "
            f"`compile=False`). Received: jit_compile={jit_compile!r}"
        )


def warn_of_unequal_parts(reduction, optimizer):
    """Warns where gradient accumulation and a mean over tokens do not go together."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    steps = inner.gradient_accumulation_steps or 1
    if reduction == "token" and steps > 1:
        warnings.warn(
            f"With `gradient_accumulation_steps={steps}` each of {steps} batches is "
            'averaged over its own tokens (`reduction="token"`), and the batches are '
            "averaged with equal weight: tokens of a batch with few of them count "
            "more than in one large batch, and the gradient is not that of the large "
            'batch. `reduction="example"` gives the same gradient for any division, '
            "if all batches have as many examples with a supervised token",
            stacklevel=3,
        )


def resolved_task_loss(loss):
    """The task loss as a function of labels (B, K) and logits (B, K, V)."""
    if loss == "auto":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if isinstance(loss, str) or not callable(loss):
        raise ValueError(
            '`loss` must be "auto", a `keras.losses.Loss` for logits, or a function '
            "that returns one value for each label. A name stands for a loss that "
            f"expects probabilities. Received: loss={loss!r}"
        )
    return loss


def exclude_from_weight_decay(optimizer, variables):
    """Excludes what betas and energies learn from the optimizer's weight decay."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
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
