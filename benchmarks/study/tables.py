"""Writes docs/study.md from the runs: fills in the tables and numbers of its template.

The fields of `study_template.md` are `{{expression}}`, evaluated on the functions of
this module, so that every number of the report comes from the runs.
"""

import json
import os
import re

from arms import (
    COMPARED,
    GROUPS,
    HIDDEN,
    LEARNED,
    MAIN_ENERGIES,
    OF_OWN,
    SHARES,
    arms_of,
    on_policy,
)
from plots import draw
from results import Results, accuracy, fixed_arms
from settings import BATCH, EXPERIMENTS, FRESH_SEEDS, SEEDS, SETTINGS, title_of


def write_study(runs, folder):
    """Writes the report, study.md, to a folder, and its plots to study/ in it."""
    results, fresh = Results(runs, SEEDS), Results(runs, FRESH_SEEDS)
    path = os.path.join(folder, "study.md")
    draw(results, os.path.join(folder, "study"))
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "study_template.md")) as file:
        template = file.read()
    with open(path, "w") as file:
        file.write(filled_in(template, Report(results, fresh)))
    print(f"Written: {path}")


def filled_in(template, report):
    """The template with each `{{expression}}` replaced by its value for a report."""
    names = {name: getattr(report, name) for name in dir(report) if name[0] != "_"}

    def value(match):
        return str(eval(match[1], {**names, "len": len}))

    return re.sub(r"\{\{(.+?)\}\}", value, template)


class Report:
    """What the template's expressions may name; each method gives text.

    Args:
        results: `Results`.
        fresh: `Results` of other seeds, on which `fresh` gives the same numbers.
    """

    c_task, c_instance = "cosine-probs / task", "cosine-probs / instance"
    c_task_both = f"{c_task}, task_loss=task"
    c_both = f"{c_instance}, task_loss=task"
    c_hidden = f"{c_instance}, features=hidden_states"
    c_hidden_both = f"{c_hidden}, task_loss=task"
    c_shrunk = f"{c_hidden}, shrinkage=4, task_loss=task"
    c_larger = f"{c_instance}, dim=4, task_loss=task"
    c_token = "cosine-probs / token, task_loss=task"
    f_both = "forward-kl / instance, task_loss=task"
    r_both = "reverse-kl / instance, task_loss=task"
    r_task = "reverse-kl / task"
    f_hot = "forward-kl / task, temperature=2, task_loss=task"
    f_task_both = "forward-kl / task, task_loss=task"
    experiments, batch = EXPERIMENTS, BATCH

    def __init__(self, results, fresh=None):
        self.results = results
        self.fresh = fresh and Report(fresh)

    def fixed(self, value):
        return f"cosine-probs / fixed, value={value:g}"

    def best_fixed(self, energy, setting):
        return self.results.best_fixed(energy, setting)

    def mean(self, arm, setting, read=accuracy):
        return f"{self.results.mean(arm, setting, read):.1f}"

    def teacher(self, setting, part="accuracy_choices"):
        """The teacher's own accuracy on the test questions, or on a part of them."""
        return self.mean("ce", setting, lambda run: run["teacher"][part])

    def versus(self, arm, other, settings=tuple(SETTINGS), read=accuracy):
        """A paired difference with its interval."""
        return str(self.results.difference(arm, other, list(settings), read))

    def versus_grid(self, arm, energy, settings=tuple(SETTINGS)):
        """The same, to the fixed beta that a grid search takes in each setting."""
        found = self.results.difference_to_best_fixed(arm, energy, list(settings))
        return str(found)

    def compared_table(self, experiment="drawn"):
        """The main betas, above the labels alone and above the grid's choice."""
        data = list(EXPERIMENTS[experiment].settings)
        settings = [*([setting] for setting in data), data]
        rows = []
        for name, arm in COMPARED.items():
            cells = [self.versus(arm, "ce", s) for s in settings]
            rows.append([f"{name}, above labels alone", *cells])
        for name, arm in COMPARED.items():
            cells = [self.versus_grid(arm, "cosine-probs", s) for s in settings]
            rows.append([f"{name}, above the best of five fixed betas", *cells])
        return table(["", *self._titles(data), "together"], rows)

    def together_table(self):
        """The main betas above the grid's choice, in each experiment."""
        names = [n for n in EXPERIMENTS if self._has_run(n)]
        rows = [
            [name, *(self.grid_in(n, arm) for n in names)]
            for name, arm in COMPARED.items()
        ]
        return table(["above the grid's choice", *names], rows)

    def _has_run(self, experiment):
        settings = EXPERIMENTS[experiment].settings
        arms = ["ce", *COMPARED.values()]
        return all(self.results.has(arm, *settings) for arm in arms)

    def main_table(self):
        """Accuracy of the main arms; the grid's choice in bold."""
        rows = [self._accuracies("labels alone (CE)", "ce", [])]
        for energy in MAIN_ENERGIES:
            fixed = self.results.present(fixed_arms(energy))
            best = [self.results.best_fixed(energy, s) for s in SETTINGS if fixed]
            rows += [self._accuracies(name_of(arm), arm, best) for arm in fixed]
            for arm in self._learned(energy):
                rows.append(self._accuracies(name_of(arm), arm, []))
        return table(["", *self._titles()], rows)

    def experiment_table(self, name):
        """Accuracy of all arms of an experiment; the grid's choice in bold."""
        settings = EXPERIMENTS[name].settings
        best = [self.best_fixed("cosine-probs", s) for s in settings]
        rows = [
            self._accuracies(
                "labels alone (CE)" if arm == "ce" else name_of(arm),
                arm,
                best,
                settings,
            )
            for arm in arms_of(name)
            if self.results.has(arm, *settings) and not on_policy(arm)
        ]
        return table(["", *self._titles(settings)], rows)

    def own_answers_table(self):
        """Accuracy by the share of the student's own answers, and what it changes."""
        settings = EXPERIMENTS["sentences"].settings
        rows = []
        for given in OF_OWN:
            rows.append([*self._accuracies(name_of(given), given, [], settings), ""])
            for share in SHARES:
                arm = f"{given}, on_policy={share:g}"
                had = [s for s in settings if self.results.has(arm, s)]
                cells = [
                    self._accuracies_in(arm, s) if s in had else "" for s in settings
                ]
                difference = self.versus(arm, given, had) if had else ""
                rows.append([f"{share:.0%} own answers", *cells, difference])
        heads = ["", *self._titles(settings), "above given answers alone"]
        return table(heads, rows)

    def own_in(self, arm, share, *settings):
        """What a share of own answers changes in some settings."""
        return self.versus(f"{arm}, on_policy={share:g}", arm, settings)

    def versus_in(self, experiment, arm, other, read=accuracy):
        """A paired difference over the settings of an experiment."""
        return self.versus(arm, other, tuple(EXPERIMENTS[experiment].settings), read)

    def grid_in(self, experiment, arm):
        """The same, to the grid's choice."""
        return self.versus_grid(
            arm, "cosine-probs", tuple(EXPERIMENTS[experiment].settings)
        )

    def _titles(self, settings=SETTINGS):
        return [title_of(setting) for setting in settings]

    def _learned(self, energy):
        return self.results.present(f"{energy} / {kind}" for kind in LEARNED)

    def _accuracies(self, name, arm, best, settings=SETTINGS):
        cells = []
        for i, setting in enumerate(settings):
            mean, deviation = self.results.spread(arm, setting)
            text = f"{mean:.1f} ± {deviation:.1f}"
            cells.append(f"**{text}**" if best and best[i] == arm else text)
        return [name, *cells]

    def group_table(self, *groups, reference):
        """Arms of groups that were run: accuracy, and what is above a reference."""
        rows = []
        for arm in (arm for group in groups for arm in GROUPS[group]):
            settings = [s for s in SETTINGS if self.results.has(arm, s)]
            if not settings:
                continue
            cells = [
                self._accuracies_in(arm, s) if s in settings else "-" for s in SETTINGS
            ]
            rows.append([arm, *cells, self.versus(arm, reference, settings)])
        if not rows:
            return f"None yet: `study.py run --groups {' '.join(groups)}`."
        return table(["", *self._titles(), f"above `{reference}`"], rows)

    def _accuracies_in(self, arm, setting):
        mean, deviation = self.results.spread(arm, setting)
        return f"{mean:.1f} ± {deviation:.1f}"

    def family_table(self, arms, setting):
        """Accuracy by family of problems in one setting."""
        families = list(self.results.runs_of("ce", setting)[0]["test"]["families"])
        rows = []
        for arm in arms:
            means = [
                self.mean(arm, setting, lambda r, f=f: r["test"]["families"][f])
                for f in families
            ]
            rows.append([arm, *means])
        return table([title_of(setting), *families], rows)

    def of_beta(self, arm, setting, name, form=".2f"):
        """The mean over the seeds of something that was measured of beta."""
        return f"{self.results.mean(arm, setting, lambda r: r['beta'][name]):{form}}"

    def beta_table(self):
        """Beta times energy, and how well a low beta tells the teacher's errors."""
        rows = []
        for energy in MAIN_ENERGIES:
            kinds = (*LEARNED, HIDDEN)
            for arm in self.results.present(f"{energy} / {kind}" for kind in kinds):
                for setting in SETTINGS:
                    names = ["mean", "energy", "beta_times_energy"]
                    cells = [self.of_beta(arm, setting, n, ".3g") for n in names]
                    predicted = arm.split(" / ")[1].startswith(("instance", "token"))
                    for n in ("rank_correlation", "auc_errors", "auc_biased"):
                        cells.append(self.of_beta(arm, setting, n) if predicted else "")
                    rows.append([name_of(arm), title_of(setting), *cells])
        heads = ["", "setting", "beta", "energy", "beta x energy"]
        heads += ["rank correlation", "AUC, teacher wrong", "AUC, taught wrong"]
        return table(heads, rows)

    def hours(self):
        runs = self.results.runs + self.fresh.results.runs
        return f"{sum(run['seconds'] for run in runs) / 3600:.1f}"

    def teacher_minutes(self):
        folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "presets")
        with open(os.path.join(folder, "trained.json")) as file:
            return f"{json.load(file)['seconds'] / 60:.0f}"

    def count(self, experiment="drawn"):
        settings = EXPERIMENTS[experiment].settings
        return f"{sum(run['setting'] in settings for run in self.results.runs):,}"

    def seeds(self):
        return str(len({run["seed"] for run in self.results.runs}))

    def versions(self):
        return "; ".join(sorted({run["versions"] for run in self.results.runs}))


def name_of(arm):
    """An arm as the tables call it."""
    return arm.replace(" /", ",").replace("fixed, value=", "fixed ")


def table(heads, rows):
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
