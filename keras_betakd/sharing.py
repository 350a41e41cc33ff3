"""What teacher and student look at together: pictures, and a vision tower."""

import contextlib

from keras_betakd.models.towers import computed_once, same_frozen_tower
from keras_betakd.preprocessing.text_format import IMAGE_KEYS


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
