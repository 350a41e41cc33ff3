"""The experiments of the study: whose questions, which student, and which settings."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Setting:
    """How many questions are labelled, what share of them wrongly, and whose teacher.

    Of sentences, the share is that of the words which say something.
    """

    labelled: int
    wrong: float
    teacher: str


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Settings with the same questions and the same student.

    Attributes:
        settings: dict of name to `Setting`; a name belongs to one experiment.
        problems: `"drawn"`, `"easy-vqa"` or `"sentences"`.
        width: of the student.
        steps, learning_rate: of a student's training; every arm has the same.
        learnt_before: families of problems on whose right labels the student was
            trained before; the experiment is then on the other families.
    """

    settings: dict
    problems: str = "drawn"
    width: int = 24
    steps: int = 640
    learning_rate: float = 3e-3
    learnt_before: tuple = ()


def _settings(prefix="", full=3000, few=300, wrong=0.4):
    return {
        f"{prefix}full": Setting(full, 0.0, "good"),
        f"{prefix}few": Setting(few, 0.0, "good"),
        f"{prefix}noisy": Setting(full, wrong, "good"),
        f"{prefix}noisy-teacher": Setting(full, 0.0, "biased"),
    }


EXPERIMENTS = {
    "drawn": Experiment(_settings()),
    # Its teacher comes with the examples.
    "easy-vqa": Experiment(
        {
            "easy-full": Setting(3000, 0.0, "easy-vqa"),
            "easy-few": Setting(300, 0.0, "easy-vqa"),
            "easy-noisy": Setting(3000, 0.4, "easy-vqa"),
        },
        problems="easy-vqa",
    ),
    # As the paper's students, this one can already do something: few, small steps.
    "fine-tuning": Experiment(
        _settings("tuned-", full=1200, few=150),
        steps=160,
        learning_rate=1e-3,
        learnt_before=("counting", "bars", "magnets", "balance"),
    ),
    "unsure": Experiment(
        {
            "unsure-teacher": Setting(3000, 0.0, "mixed"),
            "unsure-noisy": Setting(3000, 0.4, "mixed"),
        }
    ),
    "narrow": Experiment(_settings("narrow-"), width=12),
    "wide": Experiment(_settings("wide-"), width=48),
    "sentences": Experiment(_settings("sentences-", wrong=0.2), problems="sentences"),
}
SETTINGS = EXPERIMENTS["drawn"].settings


_TITLES = {
    "full": "all labels",
    "few": "few labels",
    "noisy": "wrong labels",
    "noisy-teacher": "wrong teacher",
    "unsure-teacher": "unsure teacher",
    "unsure-noisy": "unsure teacher, wrong labels",
}


def title_of(setting):
    """What tables and plots call a setting."""
    if setting in _TITLES:
        return _TITLES[setting]
    return _TITLES[setting.split("-", 1)[1]]


def experiment_of(setting):
    """The name of the experiment that a setting belongs to."""
    return next(name for name, e in EXPERIMENTS.items() if setting in e.settings)


# Of the study, and to confirm what was found with the first.
SEEDS, FRESH_SEEDS = range(5), range(5, 10)
BATCH = 32
PARTS = 8  # how often a student is measured while it trains
