"""`AnswerFunction`: a keras-hub model's decoding by a sampler of this library."""

import contextlib
import weakref

from keras_betakd.backends import runs_eagerly
from keras_betakd.models.hooks import replaced
from keras_betakd.models.views import view_of
from keras_betakd.preprocessing.prompts import rounded_length

_GREEDY = "_keras_betakd_greedy"  # attribute of a model


class AnswerFunction:
    """A model's `generate_step` with another sampler, compiled once for all calls.

    Args:
        view: the `CausalLMView` of the model, which has a preprocessor.
        sampler: a `keras_betakd.models.sampler.AnswerSampler`.
    """

    def __init__(self, view, sampler):
        self.view = view
        self.sampler = sampler
        self._function = self._made_for = None

    @contextlib.contextmanager
    def in_place(self, max_new_tokens=None):
        """Within, the model decodes by the function that is yielded.

        Its own sampler and compiled function are given back, whatever happens.

        Args:
            max_new_tokens: the most tokens of an answer.
        """
        model = self.view.model
        theirs = model.sampler, model.generate_function
        self.sampler.set_limit(max_new_tokens)
        numbers = runs_eagerly() and self.view.decodes_at_numbers
        self.sampler.counts_in_numbers = numbers
        try:
            if self._made_for is None or not self._made_for.is_still(model):
                self._function, self._made_for = None, _MadeFor(model)
            model.sampler, model.generate_function = self.sampler, self._function
            with self.view.patched(), _last_logits_alone(self.view):
                self._function = model.make_generate_function()
                yield self._function
        finally:
            model.sampler, model.generate_function = theirs


def decoded_length(needed, limit):
    """A length to decode in, rounded up where a shape has to be compiled.

    Args:
        needed: the tokens of prompt and answer together.
        limit: the most.
    """
    return min(needed, limit) if runs_eagerly() else rounded_length(needed, limit)


def compiles_shapes():
    """Whether each shape is compiled for, and batches had better be of one size."""
    return not runs_eagerly()


def greedy_function(model):
    """The greedy `AnswerFunction` of a model, which is kept with it."""
    from keras_betakd.models.sampler import GreedyAnswerSampler

    found = vars(model).get(_GREEDY)
    if found is None:
        found = AnswerFunction(view_of(model), GreedyAnswerSampler())
        setattr(model, _GREEDY, found)
    return found


def _settings(model):
    """What a compiled function is made for, its variables but for their values.

    `compile` gives a model another sampler, and keras-hub then compiles anew, too. The
    number of trainable variables, and the order, count: on JAX, a function is given the
    values of these and of the others, one after another.
    """
    names = "sampler", "generate_step", "run_eagerly", "jit_compile"
    found = [getattr(model, name, None) for name in names]
    return [*found, len(model.trainable_variables)]


def _variables(model):
    return [*model.trainable_variables, *model.non_trainable_variables]


class _MadeFor:
    """What a function was compiled for; old variables are not kept in memory."""

    def __init__(self, model):
        self.settings = _settings(model)
        self.variables = list(map(weakref.ref, _variables(model)))

    def is_still(self, model):
        variables = _variables(model)
        if _settings(model) != self.settings or len(variables) != len(self.variables):
            return False
        pairs = zip(variables, self.variables, strict=True)
        return all(variable is known() for variable, known in pairs)


def _last_logits_alone(view):
    """A context in which the LM head runs on the last position of a prompt alone.

    While they fill their cache, the families of keras-hub and of this library compute
    logits of the whole prompt, which no one reads. XLA leaves them out.
    """
    module = getattr(view.model.generate_step, "__module__", "")
    known = module.partition(".")[0] in ("keras_hub", "keras_betakd")
    if not runs_eagerly() or not known or not hasattr(view, "embedding"):
        return contextlib.nullcontext()
    return replaced(view.embedding, _last_alone)


def _last_alone(compute, inputs, *args, reverse=False, **kwargs):
    if not reverse:
        return compute(inputs, *args, **kwargs)
    return compute(inputs[:, -1:], *args, reverse=reverse, **kwargs)
