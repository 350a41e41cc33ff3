"""The student, and the peers' way to train it."""

import keras
import keras_hub

HEADS = 2


def make_student(task, width):
    """An untrained student: projector, one decoder block, head.

    Args:
        task: `tasks.Task`.
        width: of embeddings and decoder block.

    Its inputs are the frozen vision tower's output for the image, and the tokens of the
    question, or of the answer up to each word; it returns the logits of the answer's
    words, (B, K, V).
    """
    shapes = {name: array.shape[1:] for name, array in task.train.student.items()}
    tokens = keras.Input(shapes["tokens"], dtype="int32", name="tokens")
    images = keras.Input(shapes["images"], name="images")
    words = keras.layers.Embedding(task.vocabulary, width)(tokens)
    seen = keras.layers.Dense(width, name="projector")(images)
    x = keras.layers.Concatenate(axis=1)([seen, words])
    x = x + keras_hub.layers.PositionEmbedding(x.shape[1])(x)
    block = keras_hub.layers.TransformerDecoder(2 * width, HEADS, normalize_first=True)
    x = keras.layers.LayerNormalization()(block(x)[:, -task.train.answer_length :])
    logits = keras.layers.Dense(task.vocabulary, name="head")(x)
    return keras.Model({"tokens": tokens, "images": images}, logits)


class StoredLogits(keras.Model):
    """The teacher of `keras.distillation`: returns its logits out of the batch."""

    def call(self, inputs, training=None):
        return inputs["teacher_logits"]


class WithStoredTeacher(keras.Model):
    """A student that ignores the teacher's logits in the batch."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def call(self, inputs, training=None):
        inputs = {name: inputs[name] for name in ("tokens", "images")}
        return self.student(inputs, training=training)


def keras_distiller(student, corrected):
    """`keras.distillation.Distiller`, with its default loss or the one it means.

    By default "kl_divergence" becomes a function, which Keras takes for a loss of
    logits: it gives it the logits themselves instead of probabilities. A
    `KLDivergence()` gets the probabilities.
    """
    loss = {"loss": keras.losses.KLDivergence()} if corrected else {}
    models = StoredLogits(), WithStoredTeacher(student)
    for model in models:
        model.built = True  # as far as they have variables
    losses = keras.distillation.LogitsDistillation(**loss)
    distiller = keras.distillation.Distiller(*models, losses)
    distiller.built = True
    return distiller


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
