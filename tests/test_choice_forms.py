"""Letters of choices in whatever form models write them, and letters that are none."""

import time

import pytest

from keras_betakd.evaluation import parse_choice, parse_letter_strict

STATES = ("Maryland", "New Hampshire", "Rhode Island", "Vermont")

# All of them name B.
READ = {
    "LaTeX": r"""
$B$
$$B$$
$(B)$
\(B\)
\[B\]
\boxed{B}
$\boxed{B}$
$$\boxed{B}$$
\[\boxed{B}\]
\\boxed{B}
\fbox{B}
\boxed{b}
\boxed{a}
\boxed{(B)}
\boxed{\text{B}}
\boxed{\textbf{B}}
\boxed{\mathrm{B}}
\boxed{B. New Hampshire}
\boxed{\text{B. New Hampshire}}
\boxed{New Hampshire}
\text{B}
\textbf{B}
$\mathbf{B}$
The final answer is: $\boxed{B}$
The final answer is $B$.
Answer: \(B\)
It is not Maryland. A is too far south, C too small. $\boxed{B}$
""",
    "tags": """
<answer>B</answer>
<ANSWER>B</ANSWER>
<answer> B </answer>
<answer>B. New Hampshire</answer>
<answer>New Hampshire</answer>
<answer>(B)</answer>
<answer>b</answer>
<answer>B
It could be A, but it is colder. <answer>B</answer>
<final_answer>B</final_answer>
<option>B</option>
<choice>B</choice>
<b>B</b>
<strong>B</strong>
<p>B</p>
<B>
[ANSWER]B[/ANSWER]
<|begin_of_box|>B<|end_of_box|>
""",
    "JSON": """
{"answer": "B"}
{"answer":"B","explanation":"A is not cold."}
{"reasoning": "C is small.", "answer": "B"}
{'answer': 'B'}
{"answer": "B. New Hampshire"}
{"answer": "b"}
{"choice": "B"}
{"final_answer": "B"}
{"Answer": ["B"]}
```json {"answer": "B"} ```
["B"]
{"B"}
answer: B
""",
    "Markdown": """
**B**
__B__
_B_
***B***
`B`
```B```
#### B
# B
## B.
#### B. New Hampshire
#### New Hampshire
- B
* B
• B
> B
→ B
=> B
**Answer:** B
**Answer: B**
**Answer**: (B)
### Answer: B
__Answer:__ B
**B.** New Hampshire
- **B.** New Hampshire
~~A~~ B
""",
    "brackets and quotation marks": """
[B]
[[B]]
{B}
(B)
((B))
【B】
「B」
『B』
《B》
⟨B⟩
"B"
'B'
“B”
‘B’
«B»
„B“
"B."
["B"]
[B] New Hampshire
[B]. New Hampshire
The answer is [B].
The answer is {B}.
The answer is "B".
The answer is 'B'.
Answer: [B]
Answer: "B"
I choose [B].
I'd go with "B".
""",
    "marks": """
B
b
B.
b.
B)
b)
B:
B,
B;
B!
B。
B、
Ｂ
（Ｂ）
Ｂ．
Ｂ。
𝐁
Ⓑ
B ✓
✅ B
B: New Hampshire
B) New Hampshire
B - New Hampshire
B – New Hampshire
B | New Hampshire
B: it is in the north
b) it is in the north
B - it is in the north
B. It is in the north.
B. Because it is in the north.
B, it is in the north.
""",
    "sentences": r"""
It's B.
I think it's B.
It’s B
That's B.
It's (B).
It's option B.
So it's B.
Therefore, B is correct.
Therefore B.
Thus, B.
So B.
So, the answer is B.
Hence B is the answer.
Clearly, B.
B is correct.
B is the answer.
B is the correct answer.
B is right.
I believe B is correct.
I think that B is the best choice.
Option B
option B
option b
Option (B)
Option: B
Choice B
Letter B
Answer: B
answer: b
Answer - B
Answer = B
Answer -> B
Ans: B
Ans. : B
Final Answer: B
The final answer is B.
The answer's B.
The answer is clearly B.
The answer is most likely B.
The answer would be B.
The answer: B
The best answer is B.
The best option is B.
The right choice is B.
My answer is B
I choose B.
I would go with B.
I'd pick B.
I select B because it is colder.
The answer is B (it is colder than the rest)
The answer is B. Photosynthesis has nothing to do with it.
A is wrong. B is correct.
A: incorrect. B: correct.
B\n\nExplanation: A is Maryland.
B\nA is in the south. C is small.
Sure, B.
Answer B
It is not A, it's B.
The answer is not A. The answer is B.
Option A is incorrect; option B is correct.
B, not A.
The answer is B, A is wrong.
""",
    "other languages": """
La respuesta es B
La respuesta es B.
La respuesta correcta es B.
La respuesta correcta es la B.
La respuesta correcta es la opción B.
Respuesta: B
respuesta: b
Opción B
La opción B.
Réponse : B
réponse : b
La réponse est B.
La bonne réponse est la B.
La réponse correcte est B.
Die Antwort ist B
Die Antwort ist B.
Die richtige Antwort ist B.
Antwort: B
Die Antwort lautet: B
La risposta è B.
La risposta corretta è B.
Risposta: B
A resposta é B.
A resposta correta é a B.
A resposta correta é a opção B.
Resposta: B
Het antwoord is B.
Svaret är B.
Odpowiedź: B
Cevap: B
Jawaban: B
Jawabannya adalah B.
Đáp án: B
Đáp án là B.
Ответ: B
Правильный ответ: B.
C'est B.
Es ist B.
Es la B.
La correcta es la B.
Ответ — B
الإجابة: B
الإجابة هي B
उत्तर: B
सही उत्तर B है।
答案：B
答案是B
答案是B。
答案为B
答案: (B)
答案是【B】
答案是：B
正确答案是B。
正确答案：B
所以答案是B选项。
选B
选 B
選 B
选择B
選擇 B
应选B
故选B。
故选：B
我选B，因为它在北方。
选项B
选项B正确
B，因为它在北方。
B选项
答えはBです。
答えはB
答え：B
正解はBです
Bです
정답은 B입니다.
정답: B
정답은 B
""",
}
# Several letters, or a refused one.
CONFLICTS = r"""
A or B
A/B
A and B
A, B
[A] or [B]
"A" or "B"
$A$ or $B$
{A, B}
(A) or (B)
The answer is A or B.
The answer is [A] or [B].
The answer is either A or B.
The answer is A. The answer is B.
The answer is B, or maybe C.
\boxed{A} \boxed{B}
\boxed{A, B}
\boxed{A or B}
The answer is A. \boxed{B}
#### A\n#### B
<answer>A</answer><answer>B</answer>
<answer>A or B</answer>
<answer>unknown</answer>
{"answer": "A", "answer": "B"}
{"A": 0.4, "B": 0.6}
{"answer": ["A", "B"]}
["A", "B"]
- A\n- B
A. No\nB. Yes
A. Yes, it is.\nB. No.\nC. No.
B\nThe answer is A.
~~B~~
not B
not [B]
not $B$
It is not "B".
The answer is not B.
The answer isn't B.
The answer cannot be B.
B is not the answer.
B is wrong.
B: wrong
I don't think it's B.
I don't think that B is correct.
I doubt that B is right.
Neither A nor B is correct.
It's B or C.
La respuesta no es B.
La respuesta es A o B.
La réponse n'est pas B.
Die Antwort ist nicht B.
Die Antwort ist A oder B.
Ответ не B
答案不是B
不选B
不是选B
不应选B
没有选B
选A还是选B
选A或B
答案是A和B
答えはBではありません
정답은 B가 아닙니다
选项A不对
"""
# Words, names, initials, quantities, variables.
NO_CHOICE = r"""
A dog
A dog is shown.
A dog.
"A dog"
[A dog]
**A** dog
A small dog (brown)
A well-known city
I
I think so.
I think…
I'd say so
It's A dog.
It is a dog.
So A dog it is
Therefore, A dog is shown.
The answer is A dog.
The answer is a mystery.
La respuesta es A un perro
Answer
Answers vary.
Because
Because.
Cats
Definitely
Don't know
Dogs are mammals.
Drawing
Boxed
Options.
The options are unclear.
Letters.
Les réponses.
La respuesta.
Antworten
Die Antwort.
Plan B
Plan B.
Go with plan B.
The plan is B.
vitamin C
Vitamin C
Vitamin C.
Vitamin C is found in oranges.
It is vitamin C.
It contains vitamin C.
Type A blood
The blood type is A.
Blood type B.
type B
Hepatitis B
Hepatitis B is a virus.
He got grade B.
His grade was B.
An A in mathematics
grade A eggs
Team B won.
Appendix C
Appendix A.
C major
B flat
D minor
C++
C#
A+
B-
B+
A-level
B-52
A4
B2B
C3
A4 paper
C-shaped
x-ray B
T-shirt
D-day
U.S.A.
U.S.
B.C.
A.D.
D.C.
D. C. is a town.
A.M.
A. Lincoln
A. Lincoln was president.
A. A. Milne
B. Franklin
B. Franklin flew a kite.
B. F. Skinner
C. S. Lewis
C. elegans
C. elegans is a worm.
D. melanogaster is a fly.
D. H. Lawrence wrote it.
J. R. R. Tolkien
Dr. B. Smith
Dr. B. Smith discovered it.
Mr. D. is here
Mr. B
George W. Bush
He is B. Franklin.
by A. Einstein
Malcolm X
A's
The A's won.
B's turn
D'Artagnan
20 °C
20 C
5 A
37℃
from A to B
point A
the points A and B
triangle ABC
angle A
The field $B$ is strong.
The field is \(B\).
The area is $A$.
Let $A$ be a set.
x_{B}
F_{B} = 3
arr[B]
f(x) = B x
A = B
A > B
$5B$
$B
@B
/B
The word begins with the letter B.
It looks like the letter C.
In 1990, C was released.
In 1972, C became the best language.
AB
BB
bb
abc
В
Β
None of the above
Not sure
E
F.
$E$
\boxed{E}
<answer>E</answer>
答案是E
维生素C
B超
A型血
C罗
答案是B超
选B超
选择题B
入选B组
الإجابة
"""


def lines(text):
    return [line.replace(r"\n", "\n") for line in text.strip("\n").split("\n")]


@pytest.mark.parametrize("text", [t for texts in READ.values() for t in lines(texts)])
def test_forms_that_name_b(text):
    """19 forms that models are known to write were not read, so counted as wrong."""
    expected = 0 if text == r"\boxed{a}" else 1
    assert parse_choice(text, STATES) == expected


@pytest.mark.parametrize("text", lines(CONFLICTS))
def test_several_letters_and_refused_ones_are_no_answer(text):
    assert parse_choice(text, STATES) is None


@pytest.mark.parametrize("text", lines(NO_CHOICE))
def test_letters_that_are_no_choice(text):
    assert parse_choice(text, STATES) is None


@pytest.mark.parametrize(
    "text, expected",
    [
        # The rule for two letters: a refused one does not count, one that is stated
        # takes precedence over those that are mentioned.
        ("not B, it's C", 2),
        ("It's not B, it's C.", 2),
        ("A is a distractor. The answer is C.", 2),
        ("Option A fits, option C fits better. \\boxed{C}", 2),
        ("It is not \\boxed{A}. The answer is C.", 2),
        ("#### Step 1\nIt is C.", 2),
        ("The label (A) is wrong; (C) is the answer.", 2),
    ],
)
def test_one_of_two_letters(text, expected):
    assert parse_choice(text, STATES) == expected


@pytest.mark.parametrize(
    "text, choices, expected",
    [
        ('It is the letter "B".', ('the letter "A"', 'the letter "B"'), 1),
        ("$x^2$", ("$x$", "$x^2$"), 1),
        ("It is \\(x^2\\).", ("\\(x\\)", "\\(x^2\\)"), 1),
        ("- 5 m", ("5 m", "7 m"), 0),
        ("<b>", ("<b>", "<i>"), 0),
        ("<b>bold</b>", ("plain", "bold"), 1),
        ("\\text{water}", ("ice", "water"), 1),
        ("_E. coli_", ("E. coli", "C. elegans"), 0),
        ("C. elegans", ("E. coli", "C. elegans"), 1),
        ("It is vitamin C.", ("vitamin A", "vitamin C"), 1),
        ("[B] dog", ("cat", "dog"), 1),
        ("[A] dog", ("cat", "dog"), None),
        ("[A] cat [B] dog", ("cat", "dog"), None),
        ("B. Plant cells", ("Animals", "plant cells"), 1),
        ("B. Cells of plants", ("Animals", "plant cells"), 1),
        ("answer: E", ("a", "b", "c", "d", "e"), 4),
        ("variante.", ("v", "w", "x", "y", "z"), None),
        ("E. coli is one.", ("v", "w", "x", "y", "z"), None),
        ("It is I.", tuple("opqrstuvw"), 8),
    ],
)
def test_choices_that_look_like_forms(text, choices, expected):
    assert parse_choice(text, choices) == expected


@pytest.mark.parametrize(
    "piece",
    ["(", "_", "#", "- ", "<b>", "[A", '{"answer": "', "option A ", "not ", "\n"],
)
def test_no_text_takes_long(piece):
    """Nested repetitions in a pattern take for ever where a model repeats itself."""
    start = time.monotonic()
    parse_choice(piece * (4000 // len(piece)) + "B", STATES)
    assert time.monotonic() - start < 10


def test_the_published_scorer_reads_none_of_these():
    published = {"B", "B. It is in the north.", "B. Because it is in the north."}
    for text in lines(READ["marks"]) + lines(READ["LaTeX"]) + lines(READ["tags"]):
        assert parse_letter_strict(text, STATES) == (1 if text in published else None)
