"""The losses and weightings of the code released with Beta-KD, by their names there.

For repeating published runs. Each name gives the energy of this library with the
options that reproduce the released numbers. Where that code computes something else
than the name says, the list of `released_energy` says what differs.
"""

import math

from keras_betakd import energies
from keras_betakd.betas import Beta, FixedBeta, InstanceBeta, TaskBeta
from keras_betakd.betas.base import DEFAULT_SPEED

_CROSS_ENTROPY = {"form": "cross_entropy"}
# The temperature's parameter starts at -2 there.
_CTKD_START = 1.0 + 4.0 / (1.0 + math.exp(2.0))

_ENERGIES: dict[str, tuple[type[energies.Energy], dict]] = {
    "fkl": (energies.ForwardKLEnergy, _CROSS_ENTROPY),
    "rkl": (energies.ReverseKLEnergy, {}),
    "js": (energies.JensenShannonEnergy, {"teacher_weight": 0.1}),
    "tvd": (energies.TotalVariationEnergy, {}),
    "mse": (energies.MSELogitsEnergy, {"epsilon": 1e-8}),
    "mse-probs": (
        energies.MSEProbsEnergy,
        {"mean_over_vocabulary": True, "scale_by_t2": True},
    ),
    "cosine": (energies.CosineLogitsEnergy, {"epsilon": 1e-8}),
    "cosine-probs": (energies.CosineProbsEnergy, {"scale_by_t2": True}),
    "sfkl": (energies.SkewForwardKLEnergy, {"skew": 0.1, **_CROSS_ENTROPY}),
    "srkl": (energies.SkewReverseKLEnergy, {"skew": 0.1}),
    "adaptive_kl": (energies.AdaptiveKLEnergy, {}),
    "dkd": (energies.DKDEnergy, {"alpha": 1.0, "beta": 0.5}),
    "taid": (energies.TAIDEnergy, _CROSS_ENTROPY),
    "ctkd": (
        energies.CTKDEnergy,
        {
            "initial_temperature": _CTKD_START,
            "max_temperature": 5.0,
            "power": 1.0,
            **_CROSS_ENTROPY,
        },
    ),
    "ctkd-mlp": (
        energies.CTKDMLPEnergy,
        {
            "min_temperature": 0.5,
            "max_temperature": 4.0,
            "power": 0.0,
            **_CROSS_ENTROPY,
        },
    ),
    "align-kd": (energies.ForwardKLEnergy, _CROSS_ENTROPY),
    "kl": (energies.ForwardKLEnergy, {"temperature": 2.0, "scale_by_t2": True}),
}


def released_energy(name: str, **options) -> energies.Energy:
    """The energy that a loss name of the released code stands for.

    What follows the semicolon compares the released code with this library.

    - `fkl`: cross-entropy to the teacher, not a KL divergence; the same.
    - `rkl`: reverse KL; the same.
    - `js`: Jensen-Shannon, weight 0.1 on the teacher; the same.
    - `tvd`: total variation; the same.
    - `mse`: squared distance of Z-scored logits; the same at temperature 1; at T the
      released code multiplies it by T^2, although T cancels in the Z-score.
    - `mse-probs`: squared distance of probabilities, mean over V; the same.
    - `cosine`: cosine of Z-scored logits: `mse` times V / (2 (V - 1)); the same.
    - `cosine-probs`: cosine of probabilities; the same.
    - `sfkl`: cross-entropy to the mixture 0.1 p + 0.9 q, not a divergence; the
      same.
    - `srkl`: skew reverse KL, 0.1; the same.
    - `adaptive_kl`: adaptive KL; differs: the released code computes the head mask in
      the order of sorted logits and applies it in the order of the vocabulary, its
      forward part is a cross-entropy, and its weights get a gradient that grows as the
      student approaches the teacher.
    - `dkd`: decoupled KD, alpha 1, beta 0.5; the same where labels and mask belong
      to the positions; the released code does not shift the mask with the labels.
    - `taid`: cross-entropy to the TAID target, t from 0.4; the same at equal t; in
      the released code t hardly changes, since it never receives the training step.
    - `ctkd`: T times cross-entropy at a learned T from 1.48; the same values up to
      T = 4, where the released code clamps T; here the gradient of T is reversed, as in
      the CTKD paper.
    - `ctkd-mlp`: cross-entropy at a T between 0.5 and 4 for each position, hidden
      width 64; the same values at the same weights; the released network has dropout,
      and its student also learns through T.
    - `align-kd`: cross-entropy to the teacher; differs: the released code takes all
      positions, without mask and in float16; the attention and the selected tokens of
      Align-KD are `AttentionEnergy` and `FeatureMSEEnergy(top_tokens=...)`.
    - `kl`, and any name unknown to the released code: KL at temperature 2, times 4;
      differs: the released code sums over all positions, masked or not, and divides by
      the batch size alone, which multiplies the loss by the number of positions of an
      example.

    "The same" holds where every logit is finite and some position is supervised; zeros
    returned silently, dropped terms and trimmed sequences of the released code are not
    reproduced. `fkl`, `sfkl`, `taid` and `ctkd` are cross-entropies, which caps a
    learned beta (`keras_betakd.energies.forward_divergence`).

    Args:
        name: one of the names above.
        **options: further arguments of the energy, which also override the released
            ones. `taid`, `ctkd` and `ctkd-mlp` need `total_steps`, `ctkd-mlp` also
            `classes`.

    Returns:
        An `Energy`.

    Raises:
        ValueError: for an unknown name (the released code falls back to `kl`).

    Example:

    >>> energy = released_energy("js")
    >>> energy.teacher_weight
    0.1

    Reference: Beta-KD, arXiv 2603.21426 (CVPR 2026), released code.
    """
    if name not in _ENERGIES:
        raise ValueError(
            f"`name` must be one of {sorted(_ENERGIES)}. Received: name={name!r}"
        )
    cls, released = _ENERGIES[name]
    return cls(**{**released, **options})


def released_weighting(
    name: str, speed: float = DEFAULT_SPEED
) -> dict[str, Beta | None]:
    """The weighting of losses that a name of the released code stands for.

    With L each of the cross-entropy and the energies, and s the negative logarithm of
    what the released code calls precision, that code minimises the following; what
    follows the semicolon compares it with this library.

    - `equal`: sum of L; the same.
    - `task`: sum of exp(-s) L / 2 + s / 2; d = 1, beta = exp(-s) / 2, initially 1/2:
      the same but for the constant log(2) / 2 of each term.
    - `instance`: mean over examples of the sum of exp(-s) L + s; d = 2, beta =
      exp(-s): the same, with the losses of each example, in whose place the released
      code takes the mean of the batch.

    `task` and `instance` give the cross-entropy a beta, too. beta stays within the
    released bounds of s, -5 to 5; in the released code s gets no gradient once it is
    outside them and stays there.

    Args:
        name: `"equal"`, `"task"` or `"instance"`.
        speed: see `TaskBeta`. The released code trains s with 1,000 times the
            student's learning rate: 0.02 a step at 2e-5.

    Returns:
        A dict of the arguments `beta` and `task_beta` of `BetaKDDistiller`.

    Raises:
        ValueError: for an unknown name (the released code falls back to `equal`).

    Example:

    >>> arguments = released_weighting("task")
    >>> arguments["beta"].dim, arguments["beta"].initial_value
    (1.0, 0.5)

    ```python
    distiller = BetaKDDistiller(
        teacher, student, released_energy("fkl"), **released_weighting("task")
    )
    ```
    """
    if name == "equal":
        return {"beta": FixedBeta(1.0), "task_beta": None}
    kinds = {
        "task": (TaskBeta, 1.0, 0.5, {}),
        # The released code predicts from hidden states, and does not shrink.
        "instance": (InstanceBeta, 2.0, 1.0, {"features": "hidden_states"}),
    }
    if name not in kinds:
        raise ValueError(
            f"`name` must be one of {['equal', *kinds]}. Received: name={name!r}"
        )
    cls, dim, scale, options = kinds[name]

    def make():
        return cls(
            dim=dim,
            initial_value=scale,
            min_value=scale * math.exp(-5.0),
            max_value=scale * math.exp(5.0),
            speed=speed,
            **options,
        )

    return {"beta": make(), "task_beta": make()}
