"""The sentences in which a letter is a choice, and those in which it is not.

A bare letter counts only where it cannot be a word, an initial or a part of a name: it
does not in "A dog", "I think" and "vitamin C", but does in "A is right" and "I.". "(A)"
always counts.
"""

import re

from keras_betakd.evaluation.choice_wrappers import (
    CLOSING,
    IN_BRACKETS,
    OPENING,
    QUOTED,
    WRAPPED,
)

# Letters and digits but those of Chinese, Japanese and Korean, which need no space.
_WORD = r"[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]"
_ENDS = rf"""(?:\s*(?:\.(?!{_WORD})|[;:!?)\]\n。、]|$)|["'](?!\w))"""
_GOES_ON = rf"(?={_ENDS}|\s*[,/&]|\s+(?:is|was|because|since|as|or|and)\b)"
_I_GOES_ON = rf"(?={_ENDS}|\s+(?:is|because)\b)"
_LETTER = rf"(?:\(([A-Za-z])\)|([A-HJ-Z]){_GOES_ON}|(I){_I_GOES_ON})"
_SMALL_LETTER = rf"([b-hj-z])(?={_ENDS})"
_ANY_LETTER = rf"(?:{WRAPPED}|{_LETTER}|{_SMALL_LETTER})"
_NAME = r"(?i:(?:option|choice|letter|answer)\s+)"

OR_LETTER = re.compile(
    rf"{CLOSING}?\.?\s*,?\s*(?:\b(?:or|and)\b|/|,|&|[和或与與及、])\s*"
    rf"(?i:(?:maybe|perhaps|possibly|even)\s+)?{_NAME}?(?:{WRAPPED}|{_LETTER})"
)
BARE = re.compile(
    rf"""[(\["']*(?:{WRAPPED}|([A-Za-z]))[)\]"'.:,;!?。、]*\s*[✓✔✅☑\ufe0f]*"""
)
LEADING = re.compile(
    rf"(?:\(([A-Za-z])\)|([A-Z])\s?(?:[.):、]|(?<!I),)(?!{_WORD}|\s?[A-Z]\.)"
    r"|([A-HJ-Z])(?=\n)"
    rf"|([A-HJ-Z])\s[-–—|](?=\s)|([a-z])\)|{IN_BRACKETS}"
    rf"|{QUOTED}(?=\s*(?:[.:,\n]|[-–—]\s|$)))"
)
# Labels at the beginning of lines: a list of the choices.
LISTED = re.compile(r"^(?:\(([A-Z])\)|([A-Z])(?:[.):、](?=\s)|$))", re.MULTILINE)
LABEL = re.compile(r"(?:[(\[{【]([A-Za-z])[)\]}】]|\b([A-Z])\s?[.):、])\s*$")

_SURELY = (
    r"(?:\s+(?:clearly|definitely|(?:most\s+)?likely|probably|certainly|obviously|thus"
    r"|therefore|indeed|simply))?"
)
_STATED = (
    r"\b(?i:(?:answer|ans\.?)(?:\s+(?:to|for)\b[^.?!:]{0,60}?)?"
    r"|(?:correct|right|best)\s+(?:choice|option|letter|one))"
    r"(?i:(?:\s+(?:is|would\s+be|should\s+be|must\s+be|has\s+to\s+be|will\s+be)|'s)"
    rf"{_SURELY}|\s*(?:[:=→⇒]|[-=]>)|\s+[-–—](?=\s))[\s:]*"
    rf"(?i:(?:the\s+)?(?:option|choice|letter)\s+)?(?:{_ANY_LETTER}|([A-HJ-Z])(?=\}})|([B-HJ-Z])(?=\s*\())"
)
_SAID_OF = (
    r"(?:^|[.!?;:,]\s+|\n|\b(?i:that|think|believe|say|so|thus|therefore|hence|then|and"
    rf"|because|but|option|choice|letter|answer)\s+)(?:{WRAPPED}|\(([A-Za-z])\)|([A-Z]))"
    rf"\s*(?i:\b(?:is|would\s+be|must\s+be|seems|looks){_SURELY}\s+"
    r"(?:(?:the\s+)?(?:correct|right|best)\b(?!\s+(?!answer|choice|option|one)\w)"
    r"|the\s+(?:answer|choice)\b))"
)

# Words for "answer" and "is" in other languages, and what may stand between is and B.
_ANSWERS = (
    r"respuestas?|r[ée]ponses?|antwort|l[öo]sung|risposta|resposta|antwoord|svar(?:et)?"
    r"|odpowied[źz]|odpov[ěe][ďd]|v[áa]lasz|r[ăa]spunsul?|vastaus|cevap|yan[ıi]t|jawab"
    r"(?:an)?(?:nya)?|đáp\s+án|câu\s+trả\s+lời|απάντηση|ответ|відповідь|отговор|одговор"
    r"|الإجابة|الاجابة|الجواب|پاسخ|جواب|תשובה|התשובה|उत्तर|जवाब|คำตอบ(?:คือ)?"
)
_ADJECTIVES = (
    r"(?:\s+(?:corre(?:ct|kt|t|tt)[a-z]*|final[a-z]*|exact[ae]|juste|giusta|certa|juist"
    r"e|poprawna|prawidłowa|yang\s+benar|đúng|الصحيحة|الصحيح|हमारा|सही|נכונה|הנכונה))?"
)
_IS = (
    r"(?:\s*[:=→⇒]|\s+[-–—](?=\s)|\s+(?:es|est|ist|[èé]|is|är|er|jest|to|je|on|este|là"
    r"|adalah|είναι|это|це|هي|هو|היא|הוא)\b)?"
)
_ARTICLE = r"(?i:(?:la|el|le|lo|il|die|der|das|de|het|o|a|os)\s+|l')?"
_NOUNS = (
    r"opci[óo]n|option|op[çc][ãa]o|opzione|optie|opcja|alternativ[ae]?|letra|lettre"
    r"|lettera|buchstabe|variant[ae]?|вариант|буква|pilihan|lựa\s+chọn"
)
_STATED_ELSEWHERE = (
    rf"(?i:\b(?:{_ANSWERS}){_ADJECTIVES}{_IS}[\s:]*{_ARTICLE}(?:(?:{_NOUNS})\s+)?)"
    rf"(?<!{_WORD})"
    rf"(?:{_ANY_LETTER}|([A-HJ-Za-hj-z])(?=\s*(?:है|हैं)))"
    r"|(?:^|\n|[.!?,]\s+)(?i:c'est|es(?:\s+ist)?|è|é|das\s+ist|richtig\s+ist"
    rf"|la\s+(?:correcta|bonne|corretta|correta)\s+(?:es|est|è|é))\s+{_ARTICLE}{_LETTER}"
)
_ASIAN_END = (
    rf"(?={_ENDS}|\s*,|\s*(?:选项|選項|项|項|因[为為]|[还還]是|[或和与與及]|而不|です|だ(?!れ)|でしょう|である"
    r"|입니다|이다|이에요|예요|번))"
)
_STATED_IN_ASIA = (
    r"(?<![不别別勿没非])(?<!不[应能会要可该應會是])(?<!没有)(?<!不应该)(?<!不應該)"
    r"(?:答案|答え|解答|回答|正解|正答|答|选择|選擇|選択|选|選|정답|답)"
    r"\s*(?:应该是|應該是|应是|应为|就是|是|为|為|选|選|は|が|은|는)?\s*[:=]?\s*"
    rf"(?:选项|選項|选择|選擇|选|選)?\s*(?:{WRAPPED}|\(([A-Za-z])\)|([A-Za-z]){_ASIAN_END})"
    rf"|(?:^|\n|[。,、]\s*)(?:{WRAPPED}|\(([A-Za-z])\)|([A-Z]))\s*(?:が正解|が正しい|が答え|です"
    r"|是正确|是正確|正确|正確|是答案|(?:选项|選項)(?=正|是正|[.。]?\s*$)|이\s?정답|가\s?정답)"
)
STATED = re.compile("|".join((_STATED, _SAID_OF, _STATED_ELSEWHERE, _STATED_IN_ASIA)))

# Not after "Dr. ", "A. " and the like: an initial follows.
_TITLES = "".join(
    rf"(?<!\b{word}\.\s)" for word in "[A-Z] Dr Mr Ms Mrs St Prof Fig No".split()
)
_MENTIONED = (
    rf"(?:^|[.!?;:]\s+{_TITLES}|\n|\b(?i:is|be|was|say|choose|select|pick)\s+"
    rf"|\b(?i:it|that|answer)'s\s+|\b(?i:go|going|went|agree)\s+(?i:with|for)\s+){_LETTER}"
    r"|\b(?i:so|thus|hence|therefore|then|clearly|definitely|(?:most\s+)?likely|probably"
    rf"|finally|sure|yes|ok|okay|answer),?\s+(?:\(([A-Za-z])\)|([A-HJ-Z])(?={_ENDS}))"
    r"|\b(?i:choose|select|pick|(?:go|going|went|agree)\s+(?:with|for)|it\s+is|it's"
    rf"|that's)\s+{WRAPPED}"
    rf"|^{WRAPPED}(?=[.,:;!]?\s*$)"
    r"|(?<!with the )(?<!like the )\b(?i:option|choice|letter)"
    rf"(?:\s*:\s*|\s+)(?:([A-Z])(?![\w'+#-])|([a-z])(?={_ENDS}))"
    rf"|\b(?i:option|choice)(?:\s*:\s*|\s*){WRAPPED}"
    rf"|\b(?i:{_NOUNS})\s*:?\s+(?:{WRAPPED}|([A-Z])(?=\s*,|{_ENDS}))"
    rf"|(?:选项|選項)\s*:?\s*(?:{WRAPPED}|([A-Z])(?!{_WORD}))"
    r"|\(([A-Z])\)"
)
MENTIONED = re.compile(_MENTIONED, re.MULTILINE)

REFUSED_AFTER = re.compile(
    rf"{CLOSING}*\s*(?:(?:is|was|are)(?:n't|\s+(?:not|wrong|incorrect|false|never|a\s+"
    r"(?:\w+\s+)?distractor)\b)|can(?:not|'t)\b|[:=–-]?\s*(?:incorrect|wrong|false)\b"
    r"|(?:是)?(?:不|错|錯)|并非|並非|では(?:な|あり)|じゃな|[이가]\s?아니)"
)
REFUSED_BEFORE = re.compile(
    r"(?i:\bnot|n't|\bneither|\bnor|\bnever|\bcannot|\bexcept|\bunlike|\brather\s+than"
    r"|\binstead\s+of)\s+(?i:be\s+)?(?i:(?:a|an|the|in|at|on|of|option|choice)\s+)?"
    rf"{OPENING}*$"
    r"|(?i:(?:\bnot|n't)\s+(?:think|believe|know|say|sure|certain)|\bdoubt)\b[^.!?;,\n]*$"
    # What is called by a letter of its own: "The blood type is A."
    r"|\b(?i:grade|type|vitamin|plan|note|chord|hepatitis|rating|initials?)\s+"
    rf"(?i:is|was)\s+{OPENING}*$"
)

_NEXT_WORD = re.compile(r"\.[ ]+([^\W\d_][\w'-]*)(\.(?!\w)|[!?]?\s*$)?")
_SENTENCE_WORDS = frozenset(
    "a all also although an and answer are as at based because both but by choice"
    " clear correct definitely do does during each either every explanation final"
    " first for from given he hence here how however i if in incorrect is it it's its"
    " justification let like many most my neither no none not note of on one only"
    " option or other our over reason reasoning right she since so some step sure that"
    " that's the their then there therefore these they this those though thus to under"
    " we what when where which while who why with within yes you your".split()
)


def is_initial(text: str, end: int, option: str, leads: bool) -> bool:
    """Whether a letter and its period begin a name: "A. Lincoln", "C. elegans".

    Args:
        text: The text.
        end: The end of the letter in it.
        option: The wording of that choice.
        leads: Whether the letter begins a text or sentence. What follows must then be
            the choice's wording or a sentence's usual beginning; elsewhere it is a name
            only if it is a single word.

    Example:

    >>> is_initial("A. Lincoln was one.", 1, "Maryland", leads=True)
    True
    """
    match = _NEXT_WORD.match(text, end)
    if not match:
        return False
    if len(match[1]) == 1 and (match[2] or "").startswith("."):
        return True
    if match[1].casefold() in _SENTENCE_WORDS:
        return False
    of_option = match[1].casefold() in re.findall(r"[\w'-]+", option.casefold())
    is_name = match[2] is not None and match[1][0].isupper()
    return not of_option and (leads or is_name)
