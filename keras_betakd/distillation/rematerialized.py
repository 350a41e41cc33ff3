"""`remat_of`: the context in which a distiller's student runs in training."""

import contextlib

from keras_betakd.models.remat import BlockRemat


def remat_of(view, reader, remat):
    """A function of `training` that returns a context for the student's forward pass.

    Args:
        view: the student's `ModelView`.
        reader: function that returns its `FeatureReader`.
        remat: as for `BetaKDDistiller`.

    Raises:
        ValueError: `remat` is no bool, or changes nothing for this student.
    """
    if not isinstance(remat, bool):
        raise ValueError(f"`remat` must be `True` or `False`. Received: remat={remat}")
    if not remat:
        return lambda training: contextlib.nullcontext()
    blocks = BlockRemat(view, reader().layers)
    return lambda training: blocks.applied() if training else contextlib.nullcontext()
