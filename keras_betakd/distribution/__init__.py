"""Training on several devices: layouts, replicas and the division of a batch."""

from keras_betakd.distribution.layout_map import layout_map
