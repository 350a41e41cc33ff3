"""Measures of a trained student and of its betas."""

import numpy as np
from scipy import stats

import keras_betakd
from keras_betakd.evaluation import beta_and_errors


def measured(logits, split, brief=False):
    """Accuracy among the choices, agreement with the teacher, log-likelihood."""
    answers = best_choice(logits, split.choices)
    right, same = answers == split.right, answers == teacher_answers(split)
    log_p = log_softmax(logits)[np.arange(len(logits)), split.right]
    found = {
        "accuracy_choices": 100 * right.mean(),
        "agreement": 100 * same.mean(),
        "log_likelihood": log_p.mean(),
        "logit_cosine": cosine(logits, split.teacher_logits).mean(),
    }
    if not brief:
        found["families"] = {
            name: 100 * right[split.families == name].mean()
            for name in sorted(set(split.families))
        }
        if split.biased.any():
            found["biased"] = 100 * right[split.biased].mean()
            found["elsewhere"] = 100 * right[~split.biased].mean()
    return found


def log_softmax(logits):
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def best_choice(logits, choices):
    """(N,) token ids of the likeliest choice."""
    scores = np.take_along_axis(logits, np.maximum(choices, 0), axis=1)
    best = np.where(choices >= 0, scores, -np.inf).argmax(axis=1)
    return choices[np.arange(len(choices)), best]


def teacher_answers(split):
    return best_choice(split.teacher_logits, split.choices)


def cosine(a, b):
    """The cosine of two sets of logits, each about its mean."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / norms


def predicted_betas(beta, split):
    """(N,) betas for held-out questions, as the distiller would weigh them."""
    outputs = keras_betakd.betas.TeacherOutputs(
        weights=np.ones((len(split), 1), "float32"),
        logits=split.teacher_logits[:, None],
        rows=split.teacher["rows"],
        hidden_mean=split.teacher["hidden_mean"],
    )
    log_beta = np.asarray(beta.log_beta(beta.features_of(outputs)))
    return np.broadcast_to(np.exp(log_beta).reshape(-1), len(split))


def of_betas(model, split, logits):
    """Measures of the first beta on held-out questions.

    Beta times energy, which should settle at d / 2; and where beta depends on the
    question, its rank correlation with the energy, how well a low beta tells the
    teacher's errors (area under the curve), and the share of errors in each tenth of
    the questions, by beta.
    """
    if not isinstance(model, keras_betakd.BetaKDDistiller):
        return {}
    name, beta = next(iter(model.betas.items()))
    if model.energies[name].schedule is not None:
        return {}
    energy = np.asarray(model.energies[name].call(split.teacher_logits, logits))
    betas = predicted_betas(beta, split)
    found = {
        "mean": betas.mean(),
        "energy": energy.mean(),
        "beta_times_energy": (betas * energy).mean(),
    }
    if beta.uses_features:
        errors = teacher_answers(split) != split.right
        tenths = np.array_split(np.argsort(betas, kind="stable"), 10)
        found["rank_correlation"] = stats.spearmanr(betas, energy).statistic
        parts = {"errors": errors, "biased": split.biased}
        for part, flags in parts.items():
            if not flags.any():
                continue
            auc = beta_and_errors(betas, flags)
            found[f"auc_{part}"] = auc.auc
            found[f"medians_{part}"] = [auc.median_wrong, auc.median_right]
            found[f"{part}_by_tenth"] = [flags[rows].mean() for rows in tenths]
    return {"beta": found}


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [rounded(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.5g}")
    return value
