"""The layers within a model, down to the innermost, and the variables of each."""

import keras


def sublayers(model):
    """All layers within a model, each once, in an order that its code determines."""
    found, waiting = {}, [model]
    while waiting:
        layer = waiting.pop()
        if layer is not model:
            found[id(layer)] = layer
        # The property works for any layer, and leaves no attribute out as that of a
        # functional model does.
        inner = keras.Model.layers.fget(layer)
        waiting += [x for x in reversed(inner) if id(x) not in found]
    return list(found.values())


def own_variables(layer):
    """The variables of a layer that are in none of its sublayers: dict by name."""
    inner = {id(v) for x in keras.Model.layers.fget(layer) for v in x.variables}
    named = {}
    for variable in layer.variables:
        if id(variable) not in inner:
            name, count = variable.name, 0
            while name in named:
                count += 1
                name = f"{variable.name}_{count}"
            named[name] = variable
    return named
