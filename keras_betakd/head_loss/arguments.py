"""Reads and checks the arguments of the fused head."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_betakd.energies.base import Energy, shapes_agree
from keras_betakd.models.heads import HeadMatrix


def is_class(labels, classes):
    """Where labels are whole numbers from 0 to `classes` - 1: bool (N,)."""
    found = ops.logical_and(labels >= 0, labels < classes)
    if "float" in keras.backend.standardize_dtype(labels.dtype):
        found = ops.logical_and(found, labels == ops.floor(labels))
    return found


def unknown_terms(energies, unlabelled):
    """The terms that read labels, at the rows whose label is no class: (1 + E, N).

    Args:
        energies: dict of E energies.
        unlabelled: bool (N,), supervised rows whose label is no class.
    """
    reads = [True, *(energy.needs_labels for energy in energies.values())]
    return ops.logical_and(ops.array(reads)[:, None], unlabelled[None])


def as_matrix(head):
    """The `HeadMatrix` of a kernel; that of one with NumPy arrays has tensors."""
    if isinstance(head, HeadMatrix):
        tensors = {
            name: ops.convert_to_tensor(getattr(head, name))
            for name in ("kernel", "bias")
            if isinstance(getattr(head, name), np.ndarray)
        }
        return dataclasses.replace(head, **tensors) if tensors else head
    kernel = ops.convert_to_tensor(head)
    return HeadMatrix(kernel, dtype=keras.backend.standardize_dtype(kernel.dtype))


def expect_energies(energies):
    """Raises unless `energies` is a dict of energies that the fused head computes."""
    if not isinstance(energies, dict) or not all(
        isinstance(e, Energy) and e.features in (None, "image_logits")
        for e in energies.values()
    ):
        raise ValueError(
            "`energies` must be a dict of energies between logits, for example "
            f'{{"kl": ForwardKLEnergy()}}. Received: energies={energies}'
        )
    others = [name for name, energy in energies.items() if not energy.fuses]
    if others:
        raise ValueError(
            f"These energies need the full logits and cannot be fused: {others}. Call "
            "them on the logits instead"
        )


def expect_rows(student, teacher, labels, coefficients, terms):
    """Raises unless teacher rows, labels and coefficients are those of N rows."""
    n = student.shape[0]
    if n == 0:
        raise ValueError(
            "`student_rows` must have at least one row. Received: "
            f"student_rows.shape={tuple(student.shape)}"
        )
    received = {
        "teacher_rows": (tuple(teacher.shape), (n, *teacher.shape[1:])),
        "labels": (tuple(labels.shape), (n,)),
        "coefficients": (tuple(coefficients.shape), (terms, n)),
    }
    for name, (shape, expected) in received.items():
        if not shapes_agree(shape, expected):
            raise ValueError(
                f"`{name}` must have the shape {expected}, with N={n} student rows and "
                f"1 + E = {terms} terms: the cross-entropy and each energy. Received: "
                f"{name}.shape={shape}"
            )


def expect_same_classes(student_head, teacher_head):
    if not isinstance(teacher_head, HeadMatrix):
        return
    classes = [head.kernel.shape[0] for head in (student_head, teacher_head)]
    if classes[0] != classes[1]:
        raise ValueError(
            "The two heads must be over the same classes. Received: student_head with "
            f"{classes[0]}, teacher_head with {classes[1]}"
        )


def expect_tile_rows(tile_rows):
    """Raises unless `tile_rows` is a positive integer or `None`."""
    if tile_rows is not None and not (isinstance(tile_rows, int) and tile_rows > 0):
        raise ValueError(
            "`tile_rows` must be a positive integer or `None`. Received: "
            f"tile_rows={tile_rows}"
        )
