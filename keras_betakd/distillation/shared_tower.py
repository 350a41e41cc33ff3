"""One vision tower for teacher and student, where both have the same.

Models of one family are often made around the same frozen tower (all sizes of Gemma 3,
MobileVLM and LLaVA). What it makes of a picture is then the same for both, and half of
that work can be left out.
"""

import contextlib

from keras import ops

from keras_betakd.models.hooks import replaced
from keras_betakd.preprocessing.image_inputs import layer_settings
from keras_betakd.preprocessing.text_format import IMAGE_KEYS


def same_frozen_tower(student, teacher):
    """Whether two models make the same of a picture, and training keeps it so.

    Looks at the weights themselves, not at where they came from.

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
    """Within, a call of `second` gives what the call of `first` before it gave.

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


class PictureSharing:
    """The part of the distiller that lets both models see the same pictures.

    Mixed into `BetaKDDistiller`, in front of `keras.Model`. A frozen vision tower that
    the two have in common computes once.
    """

    _shares_tower = False

    def _look_for_shared_tower(self):
        """Each time anew: weights may have been loaded since."""
        shares = same_frozen_tower(self.student_view, self.teacher_view)
        if shares != self._shares_tower:
            self._shares_tower = shares
            # Compiled for the other case.
            self.train_function = self.test_function = None

    def _tower_once(self, inputs):
        """Lets the teacher see through the student's eyes where theirs are the same."""
        if not self._shares_tower or not self._shares_pictures(inputs):
            return contextlib.nullcontext()
        towers = self.student_view.vision_tower() + self.teacher_view.vision_tower()
        return computed_once(*towers)

    def _shares_pictures(self, inputs):
        """Whether the teacher is to see the student's pictures."""
        if not self.teacher_view.vision_tower():
            return False
        ours, theirs = (IMAGE_KEYS & set(inputs[m]) for m in ("student", "teacher"))
        return bool(ours) and not theirs

    def _with_pictures(self, inputs):
        if not self._shares_pictures(inputs):
            return inputs
        student = inputs["student"]
        found = {key: student[key] for key in IMAGE_KEYS & set(student)}
        return {**inputs, "teacher": {**inputs["teacher"], **found}}
