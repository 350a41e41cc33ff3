"""Beta layers: the weights of the energies, fixed, learned or predicted.

Beta-KD reads the teacher as a Gibbs prior over the student's outputs,
p(student | teacher, beta) = exp(-beta l) / Z(beta), with l an energy
(`keras_betakd.energies`). The weight beta is the precision of that prior: the larger it
is, the more the student is held to its teacher. With a Laplace approximation of log Z,
each energy adds to the loss (`keras_betakd.objective`)

    beta * l - (d / 2) * log beta

averaged over the supervised rows of the batch, with d the argument `dim`. The first
part lowers beta where the student is far from its teacher, the second raises it. A beta
that all rows share converges to

    beta* = d / (2 E[l]),   where beta* E[l] = d / 2.

Its unit is that of 1 / l: tokens per nat for a divergence in nats per token.

Each layer returns log beta for the rows of a batch and adds its own
-(d / 2) * mean(log beta) through `add_loss`; the distiller multiplies the energy by
beta.

- `FixedBeta`: a constant, for baselines and warm starts.
- `TaskBeta`: one learned number per energy, d / (2 E[l]) at its optimum.
- `InstanceBeta`: predicted for each example from features x of the teacher,
  d / (2 E[l | x]) at its optimum, or between that and d / (2 E[l]) (`shrinkage`).
- `TokenBeta`: predicted in the same way for each answer token.
- `AnalyticBeta`: d / (2 * running mean of l), without parameters.

**Scale.** The layers compute log beta, in float32 under every dtype policy, so beta is
positive and changes by factors. Both bounds (`min_value`, `max_value`) leave log beta a
gradient, so that it can leave a bound again: the variable of a `TaskBeta` is clipped to
the bounds after each step, and the output of a network approaches them smoothly.

**Bounds.** Where an energy can come close to 0, beta* = d / (2 l) grows without limit.
The student's gradient at beta*, (d / 2) * grad log l, grows as l falls, so that steps
overshoot: l rises suddenly while beta is still that of a small l, and the term
outweighs all others. Where `max_value` holds beta, for l < d / (2 * max_value), the
term is proportional to l again.

**Speed.** log beta moves at a speed of its own, whatever the student's optimizer,
learning rate, schedule and clipping: a distiller gives the variables of its betas to an
Adam of their own, whose step is the layer's `speed`, 0.1 by default. While the batches
agree, log beta changes by that much a step, by a factor e in ten; near its best
value, where their gradients differ in sign, it comes to rest. So a `TaskBeta` takes
about |log(beta* / initial_value)| / speed steps. The network of an `InstanceBeta` has a
rate at which log beta of a typical example begins about as fast; it then learns what
distinguishes examples. The student's learning rate may be 2e-5 or 1e-2: choose `speed`
by the number of steps alone, larger for a training of less than a few hundred. Too
small a speed leaves beta short of its best value for much of the training; too large a
one carries it beyond that value at first.
With gradient accumulation, a step is one of the optimizer.

**Choosing d.** At beta* the student receives (d / 2) * grad log l of an energy, so
`dim` is the weight of the teacher relative to the cross-entropy: twice the d, twice the
teacher's gradient. The default is 1, for an energy that is a mean.

Example:

>>> from keras import ops
>>> from keras_betakd import TaskBeta
>>> from keras_betakd.objective import optimal_beta, row_weights
>>> weights = row_weights(ops.array([[1.0, 1.0], [1.0, 0.0]]))  # two examples
>>> beta = TaskBeta(dim=1.0, initial_value=2.0)
>>> log_beta = beta(weights)
>>> round(float(ops.exp(log_beta)), 4)
2.0
>>> round(float(beta.losses[0]), 4)  # -(d / 2) * log beta
-0.3466
>>> optimal_beta(0.1, dim=1.0)  # where it converges to if the energy stays at 0.1
5.0

Reference: Beta-KD, arXiv 2603.21426 (CVPR 2026).
"""

from keras_betakd.betas.base import Beta
from keras_betakd.betas.predicted import InstanceBeta, TokenBeta
from keras_betakd.betas.scalar import AnalyticBeta, FixedBeta, TaskBeta
from keras_betakd.betas.teacher_features import TeacherOutputs

__all__ = [
    "AnalyticBeta",
    "Beta",
    "FixedBeta",
    "InstanceBeta",
    "TaskBeta",
    "TeacherOutputs",
    "TokenBeta",
]
