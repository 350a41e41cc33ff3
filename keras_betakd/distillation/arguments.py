"""Reads the arguments of the distiller and of its `compile`.

Energies and betas by name, vocabularies, the default preprocessor; optimizer and task
loss.
"""

import warnings

import keras

from keras_betakd.backends import runs_eagerly
from keras_betakd.betas import Beta, TaskBeta
from keras_betakd.distillation.finite_steps_optimizer import (
    FiniteStepsOptimizer,
    innermost,
)
from keras_betakd.distillation.freezing import computes_in_float16
from keras_betakd.energies.base import Energy
from keras_betakd.on_policy import answers, branches
from keras_betakd.preprocessing.preprocessor import DistillationPreprocessor
from keras_betakd.preprocessing.teacher_sides import ONE_TEACHER, by_teacher

# Names of what the distiller itself reports, and of its weights of rows.
_REPORTED = (
    *("loss", "objective", "accuracy", "task", "task_loss", "task_beta"),
    *(*answers.DIRECTIONS, *branches.DIRECTIONS),
)


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
    for name in energies:
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(
                "The keys of `energies` name metrics and weights: they must be strings "
                f"with at least one character and no '/'. Received: {list(energies)}"
            )
    expect_names_apart(energies.items())
    return dict(energies)


def expect_names_apart(energies):
    """Raises where two metrics would have one name, and two weights one entry.

    Args:
        energies: pairs of a name and an energy.
    """
    names, given = [*_REPORTED], [name for name, _ in energies]
    for name, energy in energies:
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
            f"{given}"
        )


def _unique_names(energies):
    """Names of a list of energies: numbered where two have that of their class."""
    names = []
    for energy in energies:
        name = getattr(energy, "name", "energy")
        automatic = name == getattr(energy, "default_name", name)
        seen = sum(other == name or other.startswith(f"{name}_") for other in names)
        names.append(f"{name}_{seen}" if name in names and automatic else name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"Two energies are named {twice[0]!r}. Give each a name of its own, by "
            f"`name=` or as the keys of a dict. Received: energies named {names}"
        )
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
    """The arguments of another beta like this one."""
    config = beta.get_config()
    del config["name"]
    given = {name: getattr(beta, name, None) for name in ("features", "row_weights")}
    # As they are: the configuration of a lambda makes no function again.
    return config | {name: value for name, value in given.items() if callable(value)}


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
    if isinstance(task_beta, (bool, str)) and task_beta is not True:
        raise ValueError(
            "`task_beta` must be `None` (no beta), `True` (a `TaskBeta()`) or a beta "
            f"layer. Received: task_beta={task_beta!r}"
        )
    if task_beta is True:
        return TaskBeta()
    if expect_beta(task_beta).row_weights is not None:
        raise ValueError(
            "A `task_beta` takes no `row_weights`: how much the labels of a record "
            'count is said by its "task_weight". Received: row_weights='
            f"{task_beta.row_weights}"
        )
    return task_beta


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
    # 1 equals `True`, but is not asked for by `is True`.
    if not isinstance(fused, (str, bool)) or fused not in ("auto", True, False):
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
    sizes = [_class_count(view) for view in (teacher, student)]
    known = [size for size in sizes if size is not None]
    # Of a plain model beside a CausalLM a batch of records is refused first.
    alike = teacher.sees_hidden_states == student.sees_hidden_states
    if vocabulary_size is not None:
        if isinstance(vocabulary_size, bool) or not isinstance(vocabulary_size, int):
            raise ValueError(
                "`vocabulary_size` must be a positive integer or `None`. Received: "
                f"vocabulary_size={vocabulary_size!r}"
            )
        if not 1 <= vocabulary_size <= min(known, default=vocabulary_size):
            raise ValueError(
                "`vocabulary_size` must be positive and no more than the models have. "
                f"Received: vocabulary_size={vocabulary_size}, models with {known}"
            )
        for view in (teacher, student):
            view.crop(vocabulary_size)
    elif alike and len(set(known)) > 1 and not crosses_vocabularies(energies):
        raise ValueError(
            "Teacher and student must have the same vocabulary: an energy compares "
            "them class by class. Received: a teacher with vocabulary_size="
            f"{sizes[0]} and a student with vocabulary_size={sizes[1]}. Where one of "
            "them is the other's with unused classes behind (padding), pass "
            "`vocabulary_size`, the number of classes of their tokenizer. For "
            "different tokenizers there is `ULDEnergy`."
        )


def _class_count(view):
    """The number of classes of a model's logits; `None` where only a batch tells it."""
    if view.sees_hidden_states:
        return view.vocabulary_size
    shape = getattr(view.model, "output_shape", None)
    return shape[-1] if isinstance(shape, tuple) and shape else None


def expect_rows_for_tokens(preprocessor, teachers, student):
    """Raises where raw records would not be what a model can be trained on.

    That is a tokenizer with ids that the embedding has no rows for, or a model of which
    no more than logits are known.

    Args:
        preprocessor: a `DistillationPreprocessor`, or `None`.
        teachers: dict of the teachers' `ModelView`s by their names.
        student: the student's.
    """
    given = by_teacher(getattr(preprocessor, "teacher_preprocessor", None))
    given = {**given, "student": getattr(preprocessor, "student_preprocessor", None)}
    for role, view in {**teachers, "student": student}.items():
        found = given.get(role)
        if found is not None and not view.sees_hidden_states:
            raise ValueError(
                "A `DistillationPreprocessor` says at which tokens the models are "
                f"compared, but nothing is known of this {role} but its logits. Give "
                "batches of arrays without a `preprocessor`, a model of keras-hub, or "
                "a view of yours (`keras_betakd.models.register_view`). Received: a "
                f"{role} of type {type(view.model).__name__}"
            )
        tokenizer = getattr(found, "tokenizer", None)
        if tokenizer is None:
            continue
        try:
            tokens = tokenizer.vocabulary_size()
        except (AttributeError, ValueError):  # of a model that is being loaded
            continue
        if tokens > view.vocabulary_size:
            raise ValueError(
                f"The {role}'s tokenizer has {tokens} tokens, but its embedding has "
                f"{view.vocabulary_size} rows: the last tokens would be read from rows "
                "that do not exist. Give the model the tokenizer it was made for. "
                f"Received: {type(tokenizer).__name__}, {type(view.model).__name__}"
            )


def crosses_vocabularies(energies):
    """Whether no energy compares logits class by class."""
    return all(e.crosses_vocabularies or e.features for e in energies.values())


def resolved_preprocessor(
    preprocessor,
    teacher,
    student,
    energies,
    max_response_length,
    on_too_long,
    prompt_template="auto",
):
    """The preprocessor for raw records; `None` where a model has none of its own.

    Args:
        preprocessor: a `DistillationPreprocessor`, or `None` to make one.
        teacher, student: the two models.
        energies: dict of the dicts of energies by the teachers' names.
        max_response_length, on_too_long: those of the one that is made; `None` for its
            own defaults.
        prompt_template: that of the one that is made; `"auto"` is its default.
    """
    options = {"max_response_length": max_response_length, "on_too_long": on_too_long}
    options = {name: value for name, value in options.items() if value is not None}
    if not isinstance(prompt_template, str) or prompt_template != "auto":
        options["prompt_template"] = prompt_template
    pair = [getattr(model, "preprocessor", None) for model in (teacher, student)]
    if options and (preprocessor is not None or None in pair):
        raise ValueError(
            f"{sorted(options)} are for the preprocessor that is made of the two "
            "models' own. Pass them to your `DistillationPreprocessor`. Received: "
            f"preprocessor={preprocessor}, teacher.preprocessor={pair[0]}, "
            f"student.preprocessor={pair[1]}"
        )
    if preprocessor is not None:
        _expect_teachers_of(preprocessor, energies)
        return preprocessor
    if None in pair:
        return None
    cross = {name: _compares_texts(own) for name, own in energies.items()}
    if not isinstance(pair[0], dict):
        cross = cross[ONE_TEACHER]
    return DistillationPreprocessor(*pair, cross_tokenizer=cross, **options)


def _compares_texts(energies):
    """Whether energies compare logits, and none of them class by class."""
    logits = [energy for energy in energies.values() if not energy.features]
    return bool(logits) and crosses_vocabularies(energies)


def _expect_teachers_of(preprocessor, teachers):
    """Raises unless a user's preprocessor is for the teachers of these names."""
    given = by_teacher(getattr(preprocessor, "teacher_preprocessor", None))
    if set(given) != set(teachers):
        raise ValueError(
            "`preprocessor` must be for the teachers of the distiller: of several, "
            "give `DistillationPreprocessor` a dict of their preprocessors by their "
            f"names. Received: a preprocessor for {list(given)}, teachers named "
            f"{list(teachers)}"
        )


def resolved_optimizer(optimizer, student, auto_scale_loss, betas):
    """The optimizer that trains: non-finite steps change nothing, betas have their own.

    Args:
        optimizer: optimizer, its name, or `"auto"` for `Adam(2e-5)`.
        student: the student.
        auto_scale_loss: whether to scale the loss of a student in float16.
        betas: the beta layers.
    """
    if optimizer == "auto":
        optimizer = keras.optimizers.Adam(2e-5)
    optimizer = keras.optimizers.get(optimizer)
    if optimizer is None:
        raise ValueError(
            '`optimizer` must be an optimizer, its name or "auto". Received: None'
        )
    if isinstance(optimizer, FiniteStepsOptimizer):  # of an archive, without its betas
        optimizer = optimizer.inner_optimizer
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if auto_scale_loss and not scaled and computes_in_float16(student):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return FiniteStepsOptimizer(optimizer, betas)


def expect_optimizer_of(optimizer, variables):
    """Raises where an optimizer was built on other variables than train now."""
    if optimizer.built and not optimizer.trains(variables):
        raise ValueError(
            "What trains has changed since the optimizer was built, by `enable_lora`, "
            "`quantize` or `trainable`. Call `compile` again, with a new optimizer."
        )


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
    inner = innermost(optimizer)
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
    inner = innermost(optimizer)
    if not inner.weight_decay or not variables:
        return
    if inner.built:
        raise ValueError(
            "The optimizer is built already, on other variables than those that "
            "are trained here, and what betas and energies learn can no longer be "
            "excluded from its weight decay. Pass a new optimizer to `compile`. "
            "Received: "
            f"optimizer={inner.name}, weight_decay={inner.weight_decay}"
        )
    inner.exclude_from_weight_decay(var_list=variables)
