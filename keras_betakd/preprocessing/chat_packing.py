"""Packs chats in rows of one length, with the weights of all their answers."""

import numpy as np

from keras_betakd.preprocessing.chat_tokens import end_id, mark_ids


def packed_chats(preprocessor, chats, sequence_length=None):
    """Packs chats to `(x, y, sample_weight)`, y shifted by one.

    Args:
        preprocessor: keras-hub preprocessor with the padding token and length to use.
        chats: list of `ChatTokens`.
        sequence_length: length of the sequences; the preprocessor's if `None`.
    """
    length = (sequence_length or preprocessor.sequence_length) + 1
    ids = np.full((len(chats), length), preprocessor.tokenizer.pad_token_id, "int32")
    mask, trained = (np.zeros(ids.shape, bool) for _ in range(2))
    for i, chat in enumerate(chats):
        size = min(len(chat.ids), length)
        ids[i, :size] = chat.ids[:size]
        mask[i, :size] = True
        trained[i, :size] = chat.trained[:size]
        # A row that was cut reaches the end of its sequence, by which `check_lengths`
        # knows it, although the answer that was cut begins further on.
        trained[i, -1] |= len(chat.ids) > length
    x = {"token_ids": ids[:, :-1], "padding_mask": mask[:, :-1]}
    return x, ids[:, 1:], trained[:, 1:]


def with_earlier_answers(chats, y, weight, family):
    """The weights of rows that keras-hub packed, earlier answers of a chat included.

    keras-hub gives weight to the last answer. The others are found by the mark that
    ends every turn, of which a row has as many as its chat.

    Args:
        chats: list of `Chat`.
        y: (B, T), the labels.
        weight: (B, T), the weights of the last answers.
        family: the `TextFormat` that packed the rows.

    Returns:
        (B, T) bools.
    """
    y, weight = np.asarray(y), np.array(weight, dtype=bool)
    for row, labels, chat in zip(weight, y, chats, strict=True):
        if sum(trained for _, trained in chat.segments) > 1:
            _mark_earlier(row, labels, chat, family)
    return weight


def _mark_earlier(row, labels, chat, family):
    end = end_id(chat.template, family.preprocessor.tokenizer)
    places = np.flatnonzero(labels == end)
    ends, text = [], ""
    for piece, trained in chat.segments:
        text += piece
        if trained:
            ends.append((text.count(chat.template.end) - 1, piece))
    if row[-1] and len(places) <= ends[-1][0]:
        return  # cut: `check_lengths` packs it again in a longer sequence
    for number, answer in ends[:-1]:
        tokens = _in_context(answer, chat.template, family)
        start = places[number] + 1 - len(tokens)
        if start < 0 or labels[start : places[number] + 1].tolist() != tokens:
            raise ValueError(
                f"The answer {answer!r} has other tokens within its conversation than "
                "on its own, so it cannot be found there. Train the last turn alone "
                '(`trained_turns="last"`), or leave the record out.'
            )
        row[start : places[number] + 1] = True


def _in_context(answer, template, family):
    """The tokens of an answer behind the text that its prompt ends with."""
    before = family.token_ids(template.answer)
    return family.token_ids(template.answer + answer)[len(before) :]


def expect_marks_in_text(template, family):
    """Raises a `ValueError` unless the tokenizer reads the marks in a text.

    The start token need not be: keras-hub's packers put it.
    """
    tokenizer = family.preprocessor.tokenizer
    for text, token in mark_ids(template, tokenizer).items():
        is_start = text == template.opening == tokenizer.start_token
        if not is_start and token not in family.token_ids(f"a{text}a"):
            raise ValueError(
                f"This model's {type(tokenizer).__name__} has a token for {text!r}, "
                f"which the prompt template {template.name!r} writes, but splits it in "
                "a text, and keras-hub's preprocessor of this family takes text alone. "
                "Use a tokenizer that has it as a symbol of its own."
            )
