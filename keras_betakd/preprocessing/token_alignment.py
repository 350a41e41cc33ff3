"""Where two tokenizers are about to continue the same text."""

import numpy as np


def aligned_slots(teacher, student, teacher_ids, student_ids):
    """Pairs each token of the student with the teacher's that starts at the same place.

    The prediction of a token is made after all tokens before it. Two predictions are
    comparable where the text of those before is the same in both tokenizers; the first
    (nothing before) and that of the end mark (the whole answer before) always are.

    Args:
        teacher, student: the two keras-hub tokenizers.
        teacher_ids, student_ids: the ids of one answer, end mark included.

    Returns:
        For each of `student_ids` the index of the teacher's token, or -1.
    """
    theirs, ours = (
        # Several tokens may add no text (a lone space): the last of them counts.
        {text: i for i, text in enumerate(_texts_before(*pair)) if text is not None}
        for pair in ((teacher, teacher_ids), (student, student_ids))
    )
    slots = np.full(len(student_ids), -1, dtype="int32")
    for text, i in ours.items():
        slots[i] = theirs.get(text, -1)
    return slots


def _texts_before(tokenizer, ids):
    """The text of the tokens before each token; half a character is no text."""
    ids = [int(i) for i in ids]
    texts = [""]
    texts += [str(tokenizer.detokenize(ids[:end])) for end in range(1, len(ids))]
    # SentencePiece drops the space that it put before the first word.
    texts = [text.lstrip() for text in texts]
    return [None if "�" in text else text for text in texts]
