"""On-policy distillation: the student answers, and the teacher is compared with it.

A student that only ever sees given answers never learns to get out of its own
mistakes. `StudentAnswers` lets it answer a share of the training prompts itself, anew
in each epoch; the energies are then computed at every token of these answers. Given
answers stay in the mix, with their cross-entropy. An answer is a constant: the gradient
flows through the student's distribution at each of its tokens, as in GKD.

    total = sum_i w_i a_i CE_i
            + sum_k sum_i w_i [ beta_ik l_ik - (d_k / 2) log beta_ik ]

with w the weights of the rows, which add up to one over all of them, and a the task
weight: 1 where the answer was given, 0 where the student made it up.

`StudentBranches` goes one step of this: one token of a given answer is the student's,
and one row counts, the one behind it.

`answer_records` lets a teacher answer instead, once and ahead of training, and makes
labels of its answers (sequence-level distillation).

Reference: generalised knowledge distillation (GKD), Agarwal et al. 2024
(arXiv:2306.13649).
"""

from keras_betakd.on_policy.answer_records import answer_records
from keras_betakd.on_policy.answered import AnsweredDataset, AnsweredRecords
from keras_betakd.on_policy.answers import Answer
from keras_betakd.on_policy.branches import Branch
from keras_betakd.on_policy.student_answers import StudentAnswers
from keras_betakd.on_policy.student_branches import StudentBranches

__all__ = [
    "Answer",
    "AnsweredDataset",
    "AnsweredRecords",
    "Branch",
    "StudentAnswers",
    "StudentBranches",
    "answer_records",
]
