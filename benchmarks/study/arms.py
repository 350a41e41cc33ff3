"""The arms: ways to train a student, by name.

A name is `ce`, or `energy / beta` with options, such as `cosine-probs / instance` or
`cosine-probs / instance, dim=4`. Options are arguments of the beta; the energy's
`temperature`; the distiller's `reduction`; `task_loss=weighted`, which gives the
cross-entropy a beta, too (`task_loss=task`: one for all examples); `clip=off`, which
leaves gradients unclipped; `on_policy`, the share of answers that the student writes
itself; or `branches`, the number of answers of which it changes one word, as a share of
the given ones, beside which they stand. `peers` are
`keras.distillation` and the weightings of the code released with the paper.
"""

ENERGIES = (
    *("cosine-probs", "forward-kl", "reverse-kl", "jensen-shannon"),
    *("total-variation", "mse-probs", "cosine-logits", "mse-logits"),
)
GRID = (0.3, 1, 3, 10, 30)
MAIN_ENERGIES = ("cosine-probs", "forward-kl")
LEARNED = ("instance", "task", "analytic")


def program_of(arm):
    """Arms with the same differ in the values of variables alone."""
    base = arm.split(", value=")[0].split(", on_policy=")[0]
    return base + ", own" * (", on_policy=" in arm)


def on_policy(arm):
    """Whether a share of the answers are the student's own, or branches of its own."""
    return own_share(arm) is not None


def own_share(arm):
    """`(kind, share)` of what the student makes itself; `None` of other arms.

    >>> own_share("reverse-kl / task, on_policy=0.5"), own_share("reverse-kl / task")
    (('on_policy', 0.5), None)
    """
    for kind in ("on_policy", "branches"):
        _, found, share = arm.partition(f", {kind}=")
        if found:
            return kind, float(share)
    return None


def _named(energies, betas):
    return [f"{energy} / {beta}" for energy in energies for beta in betas]


FIXED = [f"fixed, value={value:g}" for value in GRID]
COSINE = "cosine-probs"
# With a beta for the cross-entropy, one for all examples.
BOTH = ("instance, task_loss=task", "task, task_loss=task")
HIDDEN = "instance, features=hidden_states"
# In the order in which they run.
GROUPS = {
    "main": ["ce", *_named(MAIN_ENERGIES, [*BOTH, *LEARNED, *FIXED])],
    # What the beta of an example reads, and what keeps it from leaving hard ones out.
    "features": _named(
        [COSINE],
        [
            HIDDEN,
            f"{HIDDEN}, task_loss=task",
            *(f"{HIDDEN}, shrinkage={k}, task_loss=task" for k in (1, 4, 16)),
            f"{HIDDEN}, shrinkage=4",
            "instance, shrinkage=4, task_loss=task",
            "instance, task_loss=weighted",
        ],
    ),
    "speed": _named(
        [COSINE],
        [
            f"{kind}, speed={speed}, task_loss=task"
            for kind in ("instance", "task")
            for speed in (0.01, 0.05, 0.2)
        ],
    ),
    "dim": _named(
        [COSINE],
        [
            "task, dim=4, task_loss=task",
            "task, dim=10",
            "instance, dim=4, task_loss=task",
            "task, initial_value=10, task_loss=task",
            "analytic, task_loss=weighted",
            "task, clip=off",
            "instance, clip=off",
        ],
    ),
    "peers": [
        "keras.distillation, default",
        "keras.distillation, corrected",
        "released fkl task",
        "released fkl instance",
        "released cosine-probs task",
        "released cosine-probs instance",
    ],
    "energies": _named(
        [energy for energy in ENERGIES if energy not in MAIN_ENERGIES], BOTH
    ),
    "several": _named(
        ["cosine-probs + forward-kl", "cosine-probs + forward-kl + reverse-kl"], BOTH
    ),
}

# What reports and plots call the main ones, all with the cosine of probabilities.
COMPARED = {
    "`TaskBeta`": f"{COSINE} / task",
    "`InstanceBeta`": f"{COSINE} / instance",
    "`TaskBeta`, and a beta of the cross-entropy": f"{COSINE} / task, task_loss=task",
    "`InstanceBeta`, and a beta of the cross-entropy": (
        f"{COSINE} / instance, task_loss=task"
    ),
}
# The same on the teacher's hidden states, which answers of many tokens do not have.
ON_HIDDEN = {
    "hidden states": f"{COSINE} / {HIDDEN}",
    "hidden states, shrunk, and a beta of the cross-entropy": (
        f"{COSINE} / {HIDDEN}, shrinkage=4, task_loss=task"
    ),
}
# Run again with other seeds and in the other experiments.
CONFIRMED = [
    "ce",
    *_named([COSINE], FIXED),
    *COMPARED.values(),
    *ON_HIDDEN.values(),
]
# Of answers with many tokens, whose teacher shows its logits alone.
OF_SENTENCES = [
    "ce",
    *_named(
        [COSINE],
        [
            *FIXED,
            *("instance", "task", *BOTH),
            "token, task_loss=task",
            "token, shrinkage=4, task_loss=task",
            *(f"{kind}, reduction=token" for kind in BOTH),
        ],
    ),
    *_named(["forward-kl", "reverse-kl"], BOTH),
    "forward-kl / task, temperature=2, task_loss=task",
]


# The same, a share of the answers being the student's own.
SHARES = (0.25, 0.5, 1)
OF_OWN = _named(["reverse-kl", "forward-kl"], ["task", "instance, task_loss=task"])
OWN_ANSWERS = [
    *OF_OWN,
    *(f"{arm}, on_policy={share:g}" for arm in OF_OWN for share in SHARES),
]


# Far from the teacher, where d / (2 energy) is small: a larger d.
OF_TUNING = [
    *CONFIRMED,
    f"{COSINE} / instance, dim=4",
    *(f"{COSINE} / instance, dim={d}, task_loss=task" for d in (4, 10)),
]


def arms_of(experiment):
    """The arms that run in an experiment beside that of the study itself."""
    everything = list(dict.fromkeys([*OF_SENTENCES, *OWN_ANSWERS]))
    special = {"sentences": everything, "fine-tuning": OF_TUNING}
    return special.get(experiment, CONFIRMED)
