"""Aligns the answer tokens of two tokenizers.

Pairs the tokens before which both have produced the same text.
"""

import numpy as np


def aligned_slots(teacher, student, teacher_ids, student_ids):
    """Pairs each student token with the teacher token that continues the same text.

    A token is predicted from all tokens before it, so two predictions are comparable
    where the text of the tokens before is the same in both tokenizers. Those of the
    first token (no text before) and of the end mark (the whole answer before) always
    are.

    Args:
        teacher, student: the two keras-hub tokenizers.
        teacher_ids, student_ids: the token ids of one answer, end mark included.

    Returns:
        (N,) int32: for each of the N `student_ids` the index in `teacher_ids`, or -1.
    """
    of_teacher, of_student = (
        # Of several tokens after the same text (one may add none) the last is paired.
        {text: i for i, text in enumerate(_texts_before(*pair)) if text is not None}
        for pair in ((teacher, teacher_ids), (student, student_ids))
    )
    slots = np.full(len(student_ids), -1, dtype="int32")
    for text, i in of_student.items():
        slots[i] = of_teacher.get(text, -1)
    return slots


def _texts_before(tokenizer, ids):
    """The text before each token; `None` if it ends within a character."""
    ids = [int(i) for i in ids]
    texts = [""]
    texts += [str(tokenizer.detokenize(ids[:end])) for end in range(1, len(ids))]
    # SentencePiece drops the space that it put before the first word.
    texts = [text.lstrip() for text in texts]
    return [None if "�" in text else text for text in texts]
