"""The beta layers: how much the teacher counts.

Each layer gives log beta for every row of the batch and adds its own
-(d / 2) * mean(log beta) through `add_loss`; the distiller multiplies the energy by
beta. With l the energy, beta settles at d / (2 l), where beta * l = d / 2.

- `FixedBeta`: a number, for baselines and warm starts.
- `TaskBeta`: one learned number per energy.
- `InstanceBeta`: predicted for each example from features of the teacher.
- `TokenBeta`: predicted for each answer token.
- `AnalyticBeta`: no parameters, d / (2 * running mean of l).

**Scale.** log beta is float32 under every dtype policy, and bounded so that it always
has a gradient and can come back: the variable of a `TaskBeta` is put back to its bound
after a step that leaves it, and what a network predicts is bent smoothly towards it.

**Why bounds.** Where an energy can come close to 0, beta = d / (2 l) grows without end.
The student's gradient, (d / 2) * grad log l, grows as l falls, so steps overshoot, l
jumps up with a beta made for a small one, and all other terms suffer. A bound on beta
makes the term proportional to l again below l = d / (2 * max_value).

**Speed.** With Adam a variable moves about one learning rate a step; at 2e-5 a plain
log beta would need 50,000 steps to move by one. So log beta = multiplier * raw, and
the gradient of `raw` is that of log beta itself, not multiplied: `multiplier` is
exactly a learning-rate multiplier, for Adam and for SGD alike, and it does not
distort a gradient clipped by its global norm.

**Choosing d.** At the best beta the student receives (d / 2) * grad log l. So `dim` is
the relative weight of the teacher next to the cross-entropy: twice the d, twice the
teacher's gradient. It defaults to 1 for an energy that is a mean.
"""

from keras_betakd.betas.base import Beta
from keras_betakd.betas.predicted import InstanceBeta, TokenBeta
from keras_betakd.betas.scalar import AnalyticBeta, FixedBeta, TaskBeta
from keras_betakd.betas.teacher_features import TeacherOutputs
