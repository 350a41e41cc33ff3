"""Measures of a trained student and of its betas.

What differs between answers of one word and of many is in the data: `tasks.Split` and
`sentences.Sentences`.
"""

import numpy as np
from scipy import stats

import keras_betakd
from keras_betakd.evaluation import beta_and_errors


def log_softmax(logits):
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def best_choice(logits, choices):
    """(N,) token ids of the likeliest choice."""
    scores = np.take_along_axis(logits, np.maximum(choices, 0), axis=1)
    best = np.where(choices >= 0, scores, -np.inf).argmax(axis=1)
    return choices[np.arange(len(choices)), best]


def cosine(a, b):
    """The cosine of two sets of logits, each about its mean."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / norms


def of_betas(model, split, logits):
    """Measures of the first beta on held-out questions.

    Beta times energy, which should settle at d / 2; and where beta depends on the
    question, its rank correlation with the energy, how well a low beta tells the
    teacher's errors (area under the curve), and the share of errors in each tenth of
    the questions, by beta. All of them are over the answers' tokens.

    Args:
        model: what was trained.
        split: the questions.
        logits: the student's, (N, K, V).
    """
    if not isinstance(model, keras_betakd.BetaKDDistiller):
        return {}
    name, beta = next(iter(model.betas.items()))
    if model.energies[name].schedule is not None:
        return {}
    outputs = split.teacher_outputs()
    counted = outputs.weights > 0
    energy = np.asarray(model.energies[name].call(outputs.logits, logits))[counted]
    log_beta = np.asarray(beta.log_beta(beta.features_of(outputs)))
    log_beta = log_beta[:, None] if log_beta.ndim == 1 else log_beta
    betas = np.broadcast_to(np.exp(log_beta), counted.shape)[counted]
    found = {
        "mean": betas.mean(),
        "energy": energy.mean(),
        "beta_times_energy": (betas * energy).mean(),
    }
    if beta.uses_features:
        tenths = np.array_split(np.argsort(betas, kind="stable"), 10)
        found["rank_correlation"] = stats.spearmanr(betas, energy).statistic
        for part, flags in split.parts_to_find().items():
            flags = flags.reshape(counted.shape)[counted]
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
