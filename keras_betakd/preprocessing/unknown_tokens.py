"""Answers with words that a tokenizer does not know, and that are trained as <unk>."""

import warnings

import numpy as np

# A text that is no token of any vocabulary.
_NO_TOKEN = "\ue000keras_betakd\ue000"
# How many records a warning names.
_NAMED = 20
_ADVICE = " `distiller.check_records(data)` names all such records."


def unknown_id(tokenizer):
    """The id of the token that stands for all that a tokenizer does not know.

    Args:
        tokenizer: a keras-hub tokenizer.

    Returns:
        An int; `None` for a tokenizer that has none, since it knows every byte.
    """
    try:
        return int(tokenizer.token_to_id(_NO_TOKEN))
    except (KeyError, TypeError, ValueError):
        return None


def unknown_tokens(encoded, tokenizer, records):
    """The records of a batch whose answers have unknown tokens.

    Args:
        encoded: the `Encoded` of one model.
        tokenizer: its tokenizer.
        records: the `CheckedRecords`. Answers that are given by their tokens are not
            looked at.

    Returns:
        Dict of the names of records to how many tokens of their answers are unknown,
        as a text.
    """
    unknown = unknown_id(tokenizer)
    if unknown is None:
        return {}
    used = encoded.weights > 0
    counts = ((encoded.labels == unknown) & used).sum(axis=1)
    given = records.get("response_tokens") or [None] * len(counts)
    return {
        records.names[row]: f"{counts[row]} of {used[row].sum()} tokens"
        for row in np.flatnonzero(counts)
        if given[row] is None
    }


class UnknownTokensWarning:
    """Warns of the first batch that has answers with unknown tokens, and no other."""

    def __init__(self):
        self._is_told = False

    def __call__(self, found):
        """Notes a batch.

        Args:
            found: what `unknown_tokens` returned of it.
        """
        if found and not self._is_told:
            self._is_told = True
            warn_of_unknown(found, "a batch", _ADVICE)


def warn_of_unknown(found, whole, advice=""):
    """Warns of answers with unknown tokens.

    Args:
        found: dict as of `unknown_tokens`, not empty.
        whole: of what the records are a part.
        advice: what to say at the end.
    """
    named = [f"{name} ({count})" for name, count in found.items()]
    shown = ", ".join(named[:_NAMED]) + (", ..." if len(named) > _NAMED else "")
    warnings.warn(
        "The answers of these records have words that the tokenizer does not know, and "
        f"that it makes its unknown token of ({len(found)} of {whole}): {shown}. The "
        "student would learn to say that token. Leave the records out, write them in "
        f"other words, or use models with another vocabulary.{advice}",
        stacklevel=3,
    )
