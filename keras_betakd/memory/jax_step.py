"""The memory of a step on JAX: compiled for shapes alone, and XLA is asked for it."""

import jax
import keras
from jax.extend.core import Literal

from keras_betakd.distribution.devices import parts_of_batch


def compiled_step(distiller, batch, trained=None):
    """`(peak, activations)`, see `StepMemory`.

    Args:
        distiller, batch, trained: as for `step_memory`.
    """
    state = [
        [_shape_of(v.value) for v in variables]
        for variables in (
            distiller.trainable_variables,
            distiller.non_trainable_variables,
            distiller.optimizer.variables,
            distiller.metrics_variables,
        )
    ]
    batch = keras.tree.map_structure(_input_shape, batch)
    if trained is None:
        step = jax.jit(distiller.train_step, donate_argnums=0).lower(state, batch)
    else:
        step = _gradients(distiller, trained, state, batch)
    found = step.compile().memory_analysis()
    # The state's new values take the memory of the old ones.
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.temp_size_in_bytes + new, _kept(distiller, state, batch[0])


def _gradients(distiller, trained, state, batch):
    """The lowered gradients of some variables."""
    ids = {id(v) for v in trained}
    learns = [id(v) in ids for v in distiller.trainable_variables]

    def merged(learned, others):
        learned, others = iter(learned), iter(others)
        return [next(learned if chosen else others) for chosen in learns]

    def step(learned, others, state, batch):
        fixed, optimizer, metrics = state

        def loss_of(learned):
            return distiller.compute_loss_and_updates(
                merged(learned, others),
                *(fixed, metrics, *batch),
                training=True,
                optimizer_variables=optimizer,
            )

        (_, (_, _, *changed)), found = jax.value_and_grad(loss_of, has_aux=True)(
            learned
        )
        return found, changed

    pairs = list(zip(state[0], learns, strict=True))
    learned = [x for x, chosen in pairs if chosen]
    others = [x for x, chosen in pairs if not chosen]
    return jax.jit(step, donate_argnums=2).lower(learned, others, state[1:], batch)


def _kept(distiller, state, x):
    """Bytes that the forward pass hands to the gradient, beside its arguments."""

    def pull_back(trained, others, x):
        def rows(trained):
            found, _ = distiller.stateless_call(trained, others, x, training=True)
            return found.student

        return jax.tree.leaves(jax.vjp(rows, trained)[1])

    program = jax.make_jaxpr(pull_back)(*state[:2], x).jaxpr
    given = {id(x) for x in program.invars}
    found = [x for x in program.outvars if not isinstance(x, Literal)]
    kept = {id(x): x.aval for x in found}
    sizes = [x.size * x.dtype.itemsize for k, x in kept.items() if k not in given]
    return sum(sizes) // parts_of_batch()


def _shape_of(array):
    if keras.distribution.distribution() is None:
        return jax.ShapeDtypeStruct(array.shape, array.dtype)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _input_shape(spec):
    if spec is None:
        return None
    dtype = jax.dtypes.canonicalize_dtype(spec.dtype)
    distribution = keras.distribution.distribution()
    if distribution is None:
        return jax.ShapeDtypeStruct(spec.shape, dtype)
    layout = distribution.get_data_layout(spec.shape).backend_layout
    return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=layout)
