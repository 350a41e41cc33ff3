"""`SharedTower`: runs a vision tower that teacher and student have in common once.

Models of one family often have the same frozen vision tower (all sizes of Gemma 3,
MobileVLM and LLaVA). Its outputs are then the same for both, and computing them once
saves half of that work.
"""

import contextlib

from keras import ops

from keras_betakd.models.hooks import replaced
from keras_betakd.preprocessing.image_inputs import layer_settings
from keras_betakd.preprocessing.text_format import IMAGE_KEYS


def same_frozen_tower(student, teacher):
    """Whether two models have equal vision towers that training does not change.

    Compares the settings and the weights themselves, not where they came from.

    Args:
        student, teacher: `ModelView`s.
    """
    towers = student.vision_tower(), teacher.vision_tower()
    if [len(found) for found in towers] != [1, 1]:
        return False
    ours, theirs = (found[0] for found in towers)
    if ours.trainable_weights or _drops_out(ours) or not ours.built:
        return False
    if ours is theirs:
        return True
    if type(ours) is not type(theirs) or layer_settings(ours) != layer_settings(theirs):
        return False
    pairs = zip(ours.weights, theirs.weights, strict=True)
    return all(_equal(*pair) for pair in pairs)


def _drops_out(layer):
    return any(v for k, v in layer.get_config().items() if "dropout" in k)


def _equal(ours, theirs):
    return ours.shape == theirs.shape and bool(ops.all(ops.equal(ours, theirs)))


@contextlib.contextmanager
def computed_once(first, second):
    """A context in which a call of `second` returns the outputs of the call of `first`.

    Args:
        first, second: built layers, or the same one twice.
    """
    outputs = []

    def once(compute, *args, **kwargs):
        if not outputs:
            outputs.append(compute(*args, **kwargs))
        return outputs[0]

    with contextlib.ExitStack() as stack:
        for layer in {id(layer): layer for layer in (first, second)}.values():
            stack.enter_context(replaced(layer, once))
        yield


class SharedTower:
    """Gives both models the same images, and runs a common vision tower once.

    A frozen vision tower that teacher and student have in common computes the same
    image features in both, so its second call reuses the outputs of the first.

    Args:
        student_view, teacher_view: the two `ModelView`s.

    Attributes:
        shared: whether the two had the same frozen tower at the last `check`.
    """

    def __init__(self, student_view, teacher_view):
        self._student, self._teacher = student_view, teacher_view
        self.shared = False

    def check(self):
        """Compares the towers, whose weights may have been loaded since the last time.

        Returns:
            Whether `shared` changed; functions compiled before are then outdated.
        """
        before = self.shared
        self.shared = same_frozen_tower(self._student, self._teacher)
        return self.shared != before

    def once(self, inputs):
        """A context in which a shared tower runs once for both models.

        Args:
            inputs: the batch's `x`, with `"student"` and `"teacher"`.
        """
        if not self.shared or not self._shares_images(inputs):
            return contextlib.nullcontext()
        towers = self._student.vision_tower() + self._teacher.vision_tower()
        return computed_once(*towers)

    def with_images(self, inputs):
        """The batch's `x`, with the student's images in a teacher's that has none."""
        if not self._shares_images(inputs):
            return inputs
        student = inputs["student"]
        found = {key: student[key] for key in IMAGE_KEYS & set(student)}
        return {**inputs, "teacher": {**inputs["teacher"], **found}}

    def _shares_images(self, inputs):
        """Whether the teacher takes its images from the student's inputs."""
        if not self._teacher.vision_tower():
            return False
        if not all(isinstance(inputs[m], dict) for m in ("student", "teacher")):
            return False  # a plain model's only input
        ours, theirs = (IMAGE_KEYS & set(inputs[m]) for m in ("student", "teacher"))
        return bool(ours) and not theirs
