"""The devices over which a batch is spread, and on which variables must be."""

import keras


def batch_parts(model):
    """The number of equal parts into which a batch of this process is split.

    The current `keras.distribution` decides it, or the `tf.distribute.Strategy` under
    which the model was created.
    """
    distribution = keras.distribution.distribution()
    if distribution is not None:
        replicas = distribution.num_model_replicas
        return max(1, replicas // distribution.num_processes)
    strategy = getattr(model, "distribute_strategy", None)
    return 1 if strategy is None else strategy.num_replicas_in_sync


def parts_of_batch():
    """The number of devices over which `keras.distribution` spreads a batch's rows."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_model_replicas


def spread_by_part(x):
    """Places each part of `x`, (parts, ...), on the device of its rows of the batch."""
    distribution = keras.distribution.distribution()
    axes = [distribution.batch_dim_name] + [None] * (len(x.shape) - 1)
    layout = keras.distribution.TensorLayout(axes, distribution.device_mesh)
    return keras.distribution.distribute_tensor(x, layout)


def expect_on_devices(parts):
    """Raises unless all variables are on the devices of the current distribution.

    A variable is placed when it is made, and stays there when the distribution is set,
    changed or unset. On JAX, whose error names neither the model nor the way out, a
    failed step would also leave the models without values.

    Args:
        parts: dict of the names of parts, such as `"the teacher"`, to their variables.
    """
    distribution = keras.distribution.distribution()
    expected, where = None, "the current `keras.distribution`"
    if distribution is not None:
        expected = _names(distribution.device_mesh.backend_mesh.devices.flat)
    for part, variables in parts.items():
        for variable in variables:
            devices, ordered = _devices_of(variable)
            if not devices or (distribution is None and len(devices) == 1):
                continue  # without a distribution, those follow the others
            if expected is None:
                expected, where = devices, part
            if devices != (expected if ordered else sorted(expected)):
                raise ValueError(
                    f"The variables of {part} are not on the devices of {where}: they "
                    "are placed when they are made. Call `keras.distribution."
                    "set_distribution` first, then make (or load) teacher, student, "
                    "energies, betas and optimizer, and then the distiller, all under "
                    f"one distribution. Received: {variable.path!r} of {part} on "
                    f"{_shown(devices)}; {where} has {_shown(expected)}"
                )


def _devices_of(variable):
    """The names of a variable's devices, and whether their order is known."""
    sharding = getattr(variable.value, "sharding", None)  # arrays of JAX have one
    if sharding is None:
        return [], False
    mesh = getattr(sharding, "mesh", None)
    if mesh is None:
        return sorted(_names(sharding.device_set)), False
    return _names(mesh.devices.flat), True


def _names(devices):
    return [f"{device.platform}:{device.id}" for device in devices]


def _shown(devices):
    first = ", ".join(devices[:4])
    return first if len(devices) <= 4 else f"{first}, ... ({len(devices)} devices)"


def shape_on_device(variable):
    """The shape of the part of a variable that is on each of its devices."""
    sharding = getattr(variable.value, "sharding", None)  # arrays of JAX have one
    return variable.shape if sharding is None else sharding.shard_shape(variable.shape)
