"""Bringing free answers to one form before they are compared, as TextVQA does.

The rules are those of the VQA evaluation (Antol et al., 2015, arXiv 1505.00468) in the
form that the TextVQA scorer of LLaVA and MobileVLM runs. Where it does something else
than it seems to mean, that something defines the published numbers and is done here.
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

# Of the published table the 112 entries that can be met: by now a text is in small
# letters, and "'s" stands alone. "somebody'd" loses its apostrophe there, too.
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
"""Words without their apostrophe, and the same with it."""


def normalize_vqa_answer(text: str) -> str:
    """An answer in the form in which TextVQA compares it.

    In this order: small letters, without any "," and "?", and "'s" as a word of its
    own; line breaks and tabs as spaces; each other mark deleted where it occurs next
    to a space and replaced by a space otherwise; periods deleted unless a digit
    follows; number words to ten (and "none") as digits; articles dropped;
    contractions with their apostrophe; words joined by single spaces.

    Known traps: "a" alone becomes empty, and equals any other empty answer; "a/b c"
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
    """One place next to a space decides for all places of the mark."""
    return "" if f"{mark} " in text or f" {mark}" in text else " "
