"""`StudentMethods`: what people do with a keras-hub model, for the student alone."""

from keras_betakd.distillation.generation import as_records, student_answers
from keras_betakd.on_policy.arguments import expect_counts
from keras_betakd.preprocessing.preprocessor import without_images


class StudentMethods:
    """Mixin: `generate`, and where to find what a distiller does not do itself.

    Mixed into `BetaKDDistiller`, in front of `keras.Model`; it reads `student`,
    `student_view` and `preprocessor`.
    """

    def generate(
        self, inputs, max_length=None, stop_token_ids="auto", strip_prompt=False
    ):
        """The student's answers to prompts, with images marked as in training.

        `<image>` becomes the image mark of the student's family, and images may have
        any size. `student.generate` itself, which is keras-hub's, knows its family's
        mark and form alone.

        Args:
            inputs: a prompt, a list or array of prompts, or a dict as `fit` takes it:
                `"prompts"` and optional `"images"`, of one record (a string and its
                image or images) or of several. `"ids"` are named in errors. Responses
                are not shown to the student, except for those to the earlier turns of
                a conversation. Prompts are written in the student's prompt template,
                as in training. Or a batched `tf.data.Dataset` of any of these. What
                has no `"prompts"` is passed on as it is.
            max_length: tokens of prompt and answer together; the preprocessor's
                `sequence_length` if `None`.
            stop_token_ids, strip_prompt: as for `keras_hub.models.CausalLM.generate`.

        Returns:
            A string for one prompt, else a list of strings. The answers are drawn by
            the sampler of `student.compile`; `keras_betakd.evaluation.generate_answers`
            gives greedy ones, the same in every batch.

        Raises:
            ValueError: a `max_length` that is no positive integer; an image without a
                mark, or a mark without an image; keys that are unknown; a prompt that
                leaves no room for an answer. The message names the record.

        Example:

        ```python
        distiller.generate(
            {"images": image, "prompts": "<image>\\nwhat color is it?"},
            strip_prompt=True,
        )
        ```
        """
        expect_counts(max_length=max_length)
        options = {
            "max_length": max_length,
            "stop_token_ids": stop_token_ids,
            "strip_prompt": strip_prompt,
        }
        if getattr(self.student, "preprocessor", None) is None:
            return self.student.generate(inputs, **options)
        if hasattr(inputs, "as_numpy_iterator"):  # tf.data.Dataset
            batches = inputs.as_numpy_iterator()
            return [text for x in batches for text in self.generate(x, **options)]
        if isinstance(inputs, dict) and any(k.endswith("token_ids") for k in inputs):
            return self.student.generate(inputs, **options)
        records, is_single = as_records(inputs)
        if getattr(self.preprocessor, "blind_student", False):
            records = without_images(records)
        templates = getattr(self.preprocessor, "prompt_templates", {})
        template = templates.get("student", "auto")
        answers = student_answers(self.student_view, records, template, **options)
        return answers[0] if is_single else answers

    def export(self, *args, **kwargs):
        """Not supported: the student is exported."""
        raise _unsupported("export", "distiller.student.export(path)")

    def save_to_preset(self, *args, **kwargs):
        """Not supported: the student is saved."""
        raise _unsupported("save_to_preset", "distiller.student.save_to_preset(folder)")

    def quantize(self, *args, **kwargs):
        """Not supported: teacher and student are quantised one by one."""
        raise _unsupported(
            "quantize",
            "distiller.student.quantize(mode) after the training, "
            "teacher.quantize(mode) before the distiller is made",
        )

    def enable_lora(self, *args, **kwargs):
        """Not supported: LoRA is of the student."""
        raise _unsupported(
            "enable_lora",
            "student.backbone.enable_lora(rank) before the distiller is made",
        )


def _unsupported(name, instead):
    return ValueError(
        f"A distiller is a teacher and a student, so it has no `{name}` of its own: "
        f"call {instead}."
    )
