"""Finds the answer in a model's output: no end mark, special tokens and thoughts.

A model that reasons writes its thoughts between marks, as `<think>` and `</think>`, and
the answer behind them. Often its chat template opens the thoughts in the prompt, so
that the output has the closing mark alone.
"""

import re
from collections.abc import Iterable

# gpt-oss ends its thoughts with <|end|> too, but goes on as the assistant.
_END_MARK = re.compile(
    r"</s>|<eos>|<end_of_turn>|<turn\|>"
    r"|<\|(?:im_end|endoftext|end_of_text|eot_id|eot|return)\|>"
    r"|<\|end\|>(?!\s*<\|start\|>assistant)"
)
_NAME = r"(?:(?:seed:)?think(?:ing)?|thoughts?|reasoning|reflection)"
_OPENS = (
    rf"<\|?\s*{_NAME}(?:\s+\w+\s*=[^<>]*)?\s*\|?>|\[\s*think\s*\]|◁\s*{_NAME}\s*▷"
    r"|<\|begin_of_thought\|>|<\|start_thinking\|>|<\|channel>\s*thought\b"
    r"|<unused94>\s*thought\b|<\|channel\|>\s*(?:analysis|commentary)\b[^<]*<\|message\|>"
)
_CLOSES = (
    rf"<\|?\s*/\s*\|?\s*{_NAME}\s*\|?>|<\s*{_NAME}\s*/\s*>|\[\s*/\s*think\s*\]"
    rf"|◁\s*/\s*{_NAME}\s*▷|<\|end_of_thought\|>|<\|end_thinking\|>|<channel\|>"
    r"|<unused95>|<\|channel\|>\s*final\b[^<]*<\|message\|>"
)
_OTHER = (
    r"<(?:s|bos|pad|unk|img|start_of_image|end_of_image|image_soft_token)>|\[/?IMG\]"
    r"|<\|[a-z_]+\|>"
)
_MARK = re.compile(f"(?P<closes>(?i:{_CLOSES}))|(?P<opens>(?i:{_OPENS}))|{_OTHER}")
_QUOTES = frozenset("\"'`")


def clean_answer(text: str) -> str:
    """The answer in an output: no thoughts, no end mark, no special tokens.

    Args:
        text: The output of a model.

    Returns:
        The text up to `</s>`, `<eos>`, `<end_of_turn>`, `<|im_end|>` or the like,
        without the marks of padding, start and images and without outer spaces. Where
        it holds thoughts (`<think>...</think>`), what follows the last of them; nothing
        if they do not end.

    Example:

    >>> clean_answer(" 2011<|im_end|>\\n<pad>"), clean_answer("<think>No? </think> Yes")
    ('2011', 'Yes')
    """
    return final_answer(without_marks(text)) or ""


def without_marks(text: str) -> str:
    """An output up to its end mark and without special tokens; thoughts stay in it.

    Example:

    >>> without_marks(" <think>No? </think> Yes<|im_end|>")
    '<think>No? </think> Yes'
    """
    text = _END_MARK.split(text, maxsplit=1)[0]
    # The marks of thoughts, which may be special tokens too, have a name in `_MARK`.
    return _MARK.sub(lambda mark: mark[0] if mark.lastgroup else "", text).strip()


def without_end_mark(text: str) -> str:
    """Applies `without_marks` to a text with an end mark; leaves others as they are.

    It is for answers that another program wrote, possibly with end marks. In texts
    without one even outer spaces stay, since the published scorers compare them.

    Example:

    >>> without_end_mark("No</s>"), without_end_mark(" No")
    ('No', ' No')
    """
    return without_marks(text) if _END_MARK.search(text) else text


def final_answer(text: str) -> str | None:
    """What follows the thoughts of a text; `None` if its thoughts have no answer.

    It is what follows the last mark that closes thoughts, whether one opens them or
    not. Thoughts that do not end, or that nothing follows, have no answer: no part of
    them is taken for one. A mark in quotation marks or backticks is none.

    Args:
        text: An answer, without end mark.

    Returns:
        The answer without outer spaces; a text without thoughts as it is.

    Example:

    >>> final_answer("<think>A? No.</think>\\n\\nB"), final_answer("<think>A? No. B")
    ('B', None)
    """
    marks = _thought_marks(text)
    if not marks:
        return text
    last = marks[-1]
    return None if last["opens"] else text[last.end() :].strip() or None


def thought_counts(texts: Iterable[str]) -> dict[str, int]:
    """How many answers hold thoughts, and how many of these have no answer behind them.

    Example:

    >>> thought_counts(["B", "<think>A?</think>B", "<think>A"])
    {'answers': 2, 'without_answer': 1}
    """
    found = [text for text in map(without_end_mark, texts) if _thought_marks(text)]
    lacking = sum(final_answer(text) is None for text in found)
    return {"answers": len(found), "without_answer": lacking}


def _thought_marks(text):
    return [m for m in _MARK.finditer(text) if m.lastgroup and not _is_quoted(m)]


def _is_quoted(mark):
    before = mark.string[max(mark.start() - 1, 0) : mark.start()]
    return before in _QUOTES and mark.string[mark.end() : mark.end() + 1] == before
