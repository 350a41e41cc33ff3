"""`BetaOptimizer`: moves the betas at their own speed, whatever moves the student."""

import keras


class BetaOptimizer(keras.optimizers.Adam):
    """Adam with a learning rate for each beta layer.

    A step of Adam has the size of the learning rate while the gradients agree, however
    large they are, and shrinks as they come to differ in sign. So log beta moves at its
    layer's `speed` towards its best value and settles there.

    The running size of the gradient has a memory of a hundred steps (`beta_2=0.99`) and
    not of a thousand: with a student's first energies, which are far above the later
    ones, in the mean, log beta would hardly rise for thousands of steps.

    Args:
        betas: iterable of `keras_betakd.betas.Beta` layers.
        gradient_accumulation_steps: that of the student's optimizer.
        name: name of the optimizer.
    """

    def __init__(self, betas, gradient_accumulation_steps=None, name=None):
        super().__init__(
            learning_rate=1.0,
            beta_2=0.99,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )
        betas = list(betas)
        # Behind a function: Keras would save layers that it finds in an attribute.
        self._learning_rates = lambda: {
            id(variable): beta.learning_rate
            for beta in betas
            for variable in beta.trainable_variables
        }

    def build(self, var_list):
        if self.built:
            return
        known = self._learning_rates()
        self._rates = [known[id(variable)] for variable in var_list]
        super().build(var_list)

    def learns(self, variable):
        """Whether a variable is one of the betas'."""
        return id(variable) in self._learning_rates()

    def update_step(self, gradient, variable, learning_rate):
        rate = self._rates[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * rate)

    def load_own_variables(self, store):
        if store:  # files of version 0.1.0 have no such optimizer: it starts anew
            super().load_own_variables(store)
