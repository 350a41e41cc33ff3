"""Training on several devices: weight layouts, replicas and division of a batch."""

from keras_betakd.distribution.layout_map import layout_map

__all__ = [
    "layout_map",
]
