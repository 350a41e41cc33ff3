"""How much memory a training step takes: counted from shapes, and shown."""

from keras_betakd.memory.plan import MemoryPlan, MemorySaving

__all__ = [
    "MemoryPlan",
    "MemorySaving",
]
