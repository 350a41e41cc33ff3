"""The arms' energies and betas, built from their names (`arms.py`)."""

import math

import keras_betakd as kd
from keras_betakd.betas import Beta


class HeldBeta(Beta):
    """`FixedBeta` with its value in a variable: one program for all of a grid."""

    def __init__(self, value, **kwargs):
        super().__init__(**kwargs)
        self.value = value

    def build(self, weights_shape):
        start = lambda shape, dtype: math.log(self.value)  # noqa: E731
        self.held = self.add_weight(shape=(), initializer=start, trainable=False)

    def log_beta(self, features):
        return 1.0 * self.held

    def get_config(self):
        return {**super().get_config(), "value": self.value}


ENERGIES = {
    "cosine-probs": kd.CosineProbsEnergy,
    "forward-kl": kd.ForwardKLEnergy,
    "reverse-kl": kd.ReverseKLEnergy,
    "jensen-shannon": kd.JensenShannonEnergy,
    "total-variation": kd.TotalVariationEnergy,
    "mse-probs": kd.MSEProbsEnergy,
    "cosine-logits": kd.CosineLogitsEnergy,
    "mse-logits": kd.MSELogitsEnergy,
}
BETAS = {
    "fixed": HeldBeta,
    "task": kd.TaskBeta,
    "instance": kd.InstanceBeta,
    "token": kd.TokenBeta,
    "analytic": kd.AnalyticBeta,
}


def energies_and_beta(name):
    """The distiller's arguments that an arm's name stands for.

    >>> arm = energies_and_beta("forward-kl / fixed, value=3")
    >>> arm["beta"].value, arm["task_beta"]
    (3.0, None)
    """
    if name.startswith("released "):
        _, energy, weighting = name.split()
        energies = kd.released_energy(energy)
        return {"energies": energies, **kd.released_weighting(weighting)}
    energies, beta = name.split(" / ")
    kind, *options = beta.split(", ")
    options = dict(option.split("=") for option in options)
    options.pop("clip", None)  # the optimizer's
    for of_data in ("on_policy", "branches"):
        options.pop(of_data, None)
    of_energy = {k: float(options.pop(k)) for k in ("temperature",) if k in options}
    energies = {e: ENERGIES[e](**of_energy) for e in energies.split(" + ")}
    reduction = options.pop("reduction", "example")
    # A beta of the cross-entropy, as fast: of the same kind, or one for all.
    of_task = {"weighted": kind, "task": "task"}.get(options.pop("task_loss", None))
    values = {k: v if k == "features" else float(v) for k, v in options.items()}
    speed = {"speed": values["speed"]} if "speed" in values else {}
    return {
        "energies": energies,
        "beta": BETAS[kind](**values),
        "task_beta": BETAS[of_task](**speed) if of_task else None,
        "reduction": reduction,
    }
