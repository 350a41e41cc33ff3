"""Normalizes free-text answers before they are compared, as TextVQA does.

The rules are those of the VQA evaluation (Antol et al., 2015, arXiv 1505.00468) as the
TextVQA scorer of LLaVA and MobileVLM implements them. Its errors are reproduced, since
the published numbers depend on them.
"""

import re

_MARKS = ';/[]"{}()=+\\_-><@`,?!'

# Periods that no digit follows. The published scorer passes a flag where the number of
# replacements belongs, so that it removes the first 32 of them only.
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32

_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten".split()
    )
} | {"none": "0"}

_ARTICLES = frozenset(("a", "an", "the"))

# The 112 entries of the published table that can occur at this point, where a text is
# in lower case and "'s" is a word of its own. "somebody'd" loses its apostrophe in the
# published table, too.
_PAIRS = """
aint ain't  arent aren't  cant can't  couldve could've  couldnt couldn't
couldn'tve couldn't've  couldnt've couldn't've  didnt didn't  doesnt doesn't  dont don't
hadnt hadn't  hadnt've hadn't've  hadn'tve hadn't've  hasnt hasn't  havent haven't
hed he'd  hed've he'd've  he'dve he'd've  hes he's  howd how'd  howll how'll  hows how's
isnt isn't  itd it'd  itd've it'd've  it'dve it'd've  itll it'll  maam ma'am
mightnt mightn't  mightnt've mightn't've  mightn'tve mightn't've  mightve might've
mustnt mustn't  mustve must've  neednt needn't  notve not've  oclock o'clock
oughtnt oughtn't  'ows'at 'ow's'at  shant shan't  shed've she'd've  she'dve she'd've
shouldve should've  shouldnt shouldn't  shouldnt've shouldn't've
shouldn'tve shouldn't've  somebody'd somebodyd  somebodyd've somebody'd've
somebody'dve somebody'd've  somebodyll somebody'll  somebodys somebody's
someoned someone'd  someoned've someone'd've  someone'dve someone'd've
someonell someone'll  someones someone's  somethingd something'd
somethingd've something'd've  something'dve something'd've  somethingll something'll
thats that's  thered there'd  thered've there'd've  there'dve there'd've
therere there're  theres there's  theyd they'd  theyd've they'd've  they'dve they'd've
theyll they'll  theyre they're  theyve they've  twas 'twas  wasnt wasn't  wed've we'd've
we'dve we'd've  weve we've  werent weren't  whatll what'll  whatre what're  whats what's
whatve what've  whens when's  whered where'd  wheres where's  whereve where've
whod who'd  whod've who'd've  who'dve who'd've  wholl who'll  whos who's  whove who've
whyll why'll  whyre why're  whys why's  wont won't  wouldve would've  wouldnt wouldn't
wouldnt've wouldn't've  wouldn'tve wouldn't've  yall y'all  yall'll y'all'll
y'allll y'all'll  yall'd've y'all'd've  y'alld've y'all'd've  y'all'dve y'all'd've
youd you'd  youd've you'd've  you'dve you'd've  youll you'll  youre you're  youve you've
""".split()

CONTRACTIONS = dict(zip(_PAIRS[::2], _PAIRS[1::2], strict=True))
"""Maps words without their apostrophe to the same with it."""


def normalize_vqa_answer(text: str) -> str:
    """Normalizes an answer as TextVQA does before it compares answers.

    The steps, in this order: lower case, any "," and "?" deleted, and "'s" made a word
    of its own; line breaks and tabs replaced by spaces; each other mark deleted if it
    occurs next to a space and replaced by a space otherwise; periods deleted unless a
    digit follows; number words up to ten (and "none") replaced by digits; articles
    deleted; apostrophes added to contractions; words joined by single spaces.

    Known pitfalls: "a" alone becomes empty, and equals any other empty answer; "a/b c"
    becomes "b c"; "www.abc.com" becomes "wwwabccom"; "let's" stays "let 's"; of more
    than 32 periods the rest stays.

    Args:
        text: The answer.

    Returns:
        The normalized answer.

    Example:

    >>> normalize_vqa_answer("The red-blue cups, two of Mike's!")
    "red blue cups 2 of mike 's"
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    text = text.translate({ord(mark): _replacement(mark, text) for mark in _MARKS})
    text = _PERIOD.sub("", text, count=_MOST_PERIODS)
    numbers = (_NUMBERS.get(word, word) for word in text.split())
    words = (word for word in numbers if word not in _ARTICLES)
    return " ".join(CONTRACTIONS.get(word, word) for word in words)


def _replacement(mark, text):
    """What replaces a mark: a single occurrence next to a space decides for all."""
    return "" if f"{mark} " in text or f" {mark}" in text else " "
