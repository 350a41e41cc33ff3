"""How the distiller reads its arguments: energies and betas by name, what to freeze."""

from keras_betakd.betas import Beta, TaskBeta
from keras_betakd.energies.base import Energy
from keras_betakd.preprocessing.preprocessor import DistillationPreprocessor

# What the distiller shows of its own, and the name of its first weight.
_REPORTED = ("loss", "accuracy", "task", "task_loss", "task_beta")


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
    """Two numbers of one name would be shown as one, and weighted as one."""
    names = [*_REPORTED]
    for name, energy in energies.items():
        names += [name, f"{name}_beta"]
        if energy.schedule is not None:
            names.append(f"{name}_{energy.schedule.shown_as}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"Names that are taken: {twice}. An energy is reported under its name and "
            f"its beta under that with `_beta`, beside {', '.join(_REPORTED)}. Give "
            "the energy another one, by `name=` or as the key of a dict. Received: "
            f"energies named {list(energies)}"
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

    One layer stands for as many layers of its kind as there are energies: betas are
    never shared, since each energy has its own scale.
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
    """Made of the two models' own, or `None` where one has none."""
    pair = [getattr(model, "preprocessor", None) for model in (teacher, student)]
    if None in pair:
        return None
    logits = [e for e in energies.values() if not e.features]
    cross = bool(logits) and crosses_vocabularies(energies)
    return DistillationPreprocessor(*pair, cross_tokenizer=cross)
