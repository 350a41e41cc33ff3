"""How much memory a training step takes: counted from shapes, and shown."""
