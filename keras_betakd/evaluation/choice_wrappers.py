"""What may surround the letter of a choice: Markdown, HTML, LaTeX, JSON, brackets.

A wrapped letter is marked by characters of Unicode's private use area, so that patterns
can tell a letter in brackets, in mathematics, in quotation marks and a bare one apart:
a variable of a formula and a quoted letter are less than an answer.
"""

import re

_BRACKET, _MATH, _QUOTE, _CLOSE = "\ue000\ue001\ue002\ue003"
_PRIVATE = re.compile("[\ue000-\uf8ff]")
WRAPPED = rf"[{_BRACKET}{_MATH}{_QUOTE}]([A-Za-z]){_CLOSE}"
IN_BRACKETS = rf"{_BRACKET}([A-Z]){_CLOSE}"
QUOTED = rf"{_QUOTE}([A-Za-z]){_CLOSE}"
OPENING = rf"[({_BRACKET}{_MATH}{_QUOTE}]"
CLOSING = rf"[){_CLOSE}]"

_INNER = rf"\s*\(?[{_BRACKET}{_MATH}{_QUOTE}]?([A-Za-z]){_CLOSE}?\)?\.?\s*"
_WRAPPERS = [
    (mark, re.compile(pattern.replace("X", _INNER)))
    for mark, pattern in (
        (_MATH, r"\$\$?X\$\$?"),
        (_MATH, r"\\+\(X\\+\)"),
        (_MATH, r"\\+\[X\\+\]"),
        (_BRACKET, r"(?<![\w^])\[X\](?!\w)"),
        (_BRACKET, r"(?<![\w^])\{X\}(?!\w)"),
        (_BRACKET, r"<\s*([A-Z])\s*>"),
        *((_BRACKET, f"{a}X{b}") for a, b in ("【】", "《》", "〈〉", "〔〕", "⟨⟩")),
        *(
            (_QUOTE, f"{a}X{b}")
            for a, b in ("「」", "『』", "“”", "„“", "„”", "«»", "‹›")
        ),
        (_QUOTE, r'(?<!\w)"X"(?!\w)'),
        (_QUOTE, r"(?<!\w)['‘]X'(?!\w)"),
    )
]
_TEX_FONT = re.compile(
    r"\\+(?:(?:text|math)(?:rm|bf|it|sf|tt|bb|cal|normal|md)?|[mh]box|operatorname|emph"
    r"|underline|bm|boldsymbol|rm|bf)\s?\{([^{}]*)\}"
)
_HTML = re.compile(
    r"<(b|i|u|em|strong|p|span|div|code|mark|center|font|h[1-6]|li|ul|ol|pre|big|small)"
    r"(?:\s[^<>]*)?>(.*?)</\1\s*>",
    re.IGNORECASE | re.DOTALL,
)
_EMPHASIS = re.compile(r"(?<![^\W_])(_{1,3})(?=[^\s_])(.+?)(?<=[^\s_])\1(?![^\W_])")
_STRUCK_OUT = re.compile(r"~~.+?~~")
_BULLET = re.compile(
    r"^[-+•>→⇒=#✅✔✓☑👉\ufe0f \t]+(?<=[\s>→⇒✅✔✓☑👉\ufe0f])"
    r"""(?=[(\[{$\\"'“【「]*[A-Za-z](?!\w))""",
    re.MULTILINE,
)

_TAGS = (
    r"(?:the[_ ]?)?(?:final[_ ]?|correct[_ ]?)?(?:answer|ans|choice|option|letter)"
    r"|response|output|result|conclusion|solution|verdict|selection"
)
_BOX = re.compile(
    r"(?:\\+|\x08|\b)(?:b?oxed|fbox)\s?\{([^{}]*)\}"
    rf"|<\s*({_TAGS})\s*>(.*?)(?:<\s*/\s*\2\s*>|$)"
    r"|\[\s*ANSWER\s*\](.*?)(?:\[\s*/\s*ANSWER\s*\]|$)"
    rf"""|(["'])(?:{_TAGS})\5\s*:\s*(?:(["'])(.*?)\6|\[([^\[\]]*)\]|([A-Za-z])\b)""",
    re.IGNORECASE | re.DOTALL,
)
_HASHES = re.compile(r"^####[ \t]*(\S[^\n]*)$", re.MULTILINE)


def formatted(text: str) -> str:
    """The text without the Markdown, HTML and LaTeX that only change its look.

    Example:

    >>> formatted("The **answer** is <b>__B__</b>, \\\\text{as} seen")
    'The answer is B, as seen'
    """
    text = _PRIVATE.sub(" ", text).replace("*", "").replace("`", "")
    text = re.sub(r"<br\s*/?>", "\n", text, flags=re.IGNORECASE)
    previous = None
    while previous != text:
        previous = text
        text = _EMPHASIS.sub(r"\2", _HTML.sub(r"\2", _TEX_FONT.sub(r"\1", text)))
    return text


def boxes(text: str) -> tuple[list[tuple[int, str]], str]:
    """The answers that are set apart from the rest, and the text without them.

    These are `\\boxed{B}`, `<answer>B</answer>`, the value of `{"answer": "B"}` and a
    line `#### B`.

    Returns:
        Position and content of each, in the order of the text; and the text with blanks
        in their place.

    Example:

    >>> boxes("So \\\\boxed{B}")
    ([(3, 'B')], 'So          ')
    """
    found = []
    for pattern in (_BOX, _HASHES):
        for match in pattern.finditer(text):
            found.append((match.start(), match[_content(match)].strip()))
        text = pattern.sub(lambda match: " " * len(match[0]), text)
    return sorted(found), text


def _content(match):
    """The number of the last group that took part: the content of the box."""
    return max(k for k, group in enumerate(match.groups(), 1) if group is not None)


def without_bullets(text: str) -> str:
    """The text without what is struck out, and without bullets before a letter.

    Example:

    >>> without_bullets("~~A~~\\n- B").strip()
    'B'
    """
    return _BULLET.sub("", _STRUCK_OUT.sub("", text)).strip()


def marked(text: str) -> str:
    """The text with its wrapped letters marked.

    Example:

    >>> marked("$B$") == "\\ue001B\\ue003"
    True
    """
    previous = None
    while previous != text:
        previous = text
        for mark, pattern in _WRAPPERS:
            text = pattern.sub(rf"{mark}\1{_CLOSE}", text)
    return text
