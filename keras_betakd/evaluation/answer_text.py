"""Cuts a model's output at its end mark and removes special tokens: the answer."""

import re

_END_MARK = re.compile(
    r"</s>|<eos>|<end_of_turn>|<turn\|>"
    r"|<\|(?:im_end|endoftext|end_of_text|eot_id|end|eot|return)\|>"
)
_OTHER_MARK = re.compile(
    r"<(?:s|bos|pad|unk|img|start_of_image|end_of_image|image_soft_token)>|\[/?IMG\]"
    r"|<\|[a-z_]+\|>"
)


def clean_answer(text: str) -> str:
    """The answer in an output: cut at the first end mark, without special tokens.

    Args:
        text: The output of a model.

    Returns:
        The text up to `</s>`, `<eos>`, `<end_of_turn>`, `<|im_end|>` or the like,
        without the marks of padding, start and images and without outer spaces.

    Example:

    >>> clean_answer(" 2011<|im_end|>\\n<pad>")
    '2011'
    """
    return _OTHER_MARK.sub("", _END_MARK.split(text, maxsplit=1)[0]).strip()


def without_end_mark(text: str) -> str:
    """Applies `clean_answer` to a text that has an end mark; leaves others as they are.

    It is for answers that another program wrote, possibly with end marks. In texts
    without one even outer spaces stay, since the published scorers compare them.

    Example:

    >>> without_end_mark("No</s>"), without_end_mark(" No")
    ('No', ' No')
    """
    return clean_answer(text) if _END_MARK.search(text) else text
