"""The layers within a model, down to the innermost, and the variables of each."""

import keras


def children(layer):
    """The layers that are directly within a layer of any kind."""
    # The property works for any layer, and leaves no attribute out as that of a
    # functional model does.
    return keras.Model.layers.fget(layer)


def sublayers(model):
    """All layers within a model, each once, in an order that its code determines."""
    found, waiting = {}, [model]
    while waiting:
        layer = waiting.pop()
        if layer is not model:
            found[id(layer)] = layer
        waiting += [x for x in reversed(children(layer)) if id(x) not in found]
    return list(found.values())


def own_variables(layer):
    """The variables of a layer that are in none of its sublayers: dict by name."""
    inner = {id(v) for x in children(layer) for v in x.variables}
    named = {}
    for variable in layer.variables:
        if id(variable) not in inner:
            name, count = variable.name, 0
            while name in named:
                count += 1
                name = f"{variable.name}_{count}"
            named[name] = variable
    return named
