"""The settings of the study: how many questions are labelled, how well, and by whom."""

# labelled questions, share of wrong labels, teacher
SETTINGS = {
    "full": (3000, 0.0, "good"),
    "few": (300, 0.0, "good"),
    "noisy": (3000, 0.4, "good"),
    "noisy-teacher": (3000, 0.0, "biased"),
}
# The same of easy-VQA, whose teacher comes with the examples.
EASY_VQA_SETTINGS = {
    "easy-full": (3000, 0.0, "easy-vqa"),
    "easy-few": (300, 0.0, "easy-vqa"),
    "easy-noisy": (3000, 0.4, "easy-vqa"),
}
# By their questions.
DATA = {"drawn": SETTINGS, "easy-vqa": EASY_VQA_SETTINGS}

# Of the study, and to confirm what was found with the first.
SEEDS, FRESH_SEEDS = range(5), range(5, 10)

# Of a student's training; every arm has the same.
STEPS, BATCH = 640, 32
LEARNING_RATE = 3e-3
WIDTH = 24  # of the student
PARTS = 8  # how often it is measured
