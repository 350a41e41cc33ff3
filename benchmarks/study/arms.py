"""The arms: ways to train a student, by name.

A name is `ce`, or `energy / beta` with options, such as `cosine-probs / instance` or
`cosine-probs / instance, dim=4`. Options are arguments of the beta, or
`task_loss=weighted`, which gives the cross-entropy one, too (`task_loss=task`: one for
all examples), or `clip=off`, which leaves gradients unclipped. `peers` are
`keras.distillation` and the weightings of the code released with the paper.
"""

ENERGIES = (
    *("cosine-probs", "forward-kl", "reverse-kl", "jensen-shannon"),
    *("total-variation", "mse-probs", "cosine-logits", "mse-logits"),
)
GRID = (0.3, 1, 3, 10, 30)
MAIN_ENERGIES = ("cosine-probs", "forward-kl")
LEARNED = ("instance", "task", "token", "analytic")


def program_of(arm):
    """Arms with the same differ in the values of variables alone."""
    return arm.split(", value=")[0]


def _named(energies, betas):
    return [f"{energy} / {beta}" for energy in energies for beta in betas]


FIXED = [f"fixed, value={value:g}" for value in GRID]
COSINE = "cosine-probs"
# In the order in which they run.
GROUPS = {
    "main": ["ce", *_named(MAIN_ENERGIES, [LEARNED[0], *FIXED, *LEARNED[1:]])],
    # To make the instance level do better: what the issue and the theory suggest.
    "attempts": _named(
        [COSINE],
        [
            "instance, task_loss=weighted",
            "instance, dim=10",
            "instance, dim=10, initial_value=10, min_value=3, max_value=30",
            "instance, max_value=10",
            "instance, multiplier=1",
            "instance, features=uncertainty",
            "instance, task_loss=task",
            "instance, features=uncertainty, task_loss=task",
        ],
    ),
    # Is it the clipping of gradients, which large betas make large?
    "clipping": _named([COSINE], ["task, clip=off", "instance, clip=off"]),
    "task": _named(
        [COSINE],
        [
            "task, dim=10",
            "task, multiplier=10",
            "task, task_loss=weighted",
            "analytic, task_loss=weighted",
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
        [energy for energy in ENERGIES if energy not in MAIN_ENERGIES],
        ["task", "instance"],
    ),
    "several": _named(
        ["cosine-probs + forward-kl", "cosine-probs + forward-kl + reverse-kl"],
        ["task", "instance"],
    ),
    "sensitivity": _named(
        [COSINE], ["task, dim=4", "instance, dim=4", "task, initial_value=10"]
    ),
}

# What was found with the study's seeds, by the names that the plots give it.
FOUND = {
    "instance, features=uncertainty": "instance, uncertainty",
    "task, task_loss=weighted": "task, and of CE",
    "instance, features=uncertainty, task_loss=task": "uncertainty, and of CE",
}
# Run again with other seeds and on easy-VQA: that, and what it is compared with.
CONFIRMED = ["ce", *_named([COSINE], [*FIXED, "instance", "task", *FOUND])]
