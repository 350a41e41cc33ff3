"""The student changes one token of given answers, and is compared behind it."""

import keras
import numpy as np
import pytest
from test_families import RowLogits, model_of
from test_families import records as family_records
from test_response_tokens import DECODERS, answers_of
from test_student_answers import (
    Fixed,
    K,
    Read,
    cached,
    distiller,
    fitted,
    of_encoders,
    of_other_tokenizers,
    weights_of,
)
from test_student_answers import records as short_records
from tiny_models import tiny_gemma_text

from keras_betakd import (
    BetaKDDistiller,
    DistillationPreprocessor,
    DKDEnergy,
    FixedBeta,
    ForwardKLEnergy,
    StudentBranches,
    TaskBeta,
)
from keras_betakd.data import EpochParts
from keras_betakd.models import view_of
from keras_betakd.models.uncached_decoding import NextToken
from keras_betakd.on_policy import Branch
from keras_betakd.on_policy.branch_drawer import BranchDrawer

ANSWERS = ["one two", "red yes", "yes no yes", "two red"]

# Two alternatives at each of two places, over three classes.
TEACHER = [[1, 0, 0], [0, 2, 0], [0, 0, 1], [1, 1, 0]]
STUDENT = [[0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]


def records(size=8):
    """Records whose answers have several tokens beside their ends."""
    return {**short_records(size), "responses": ANSWERS * (size // 4)}


@pytest.mark.parametrize(
    "weights, expected",
    [
        ([1, 1, 1, 1], 0.166900214409),
        ([0.75, 0.25, 0.5, 0.5], 0.169950023113),  # (.6, .2) and (.5, .5), normalised
    ],
)
def test_known_values(weights, expected):
    """The mean over places and alternatives, by float64."""
    rows = [np.array(logits, "float32") for logits in (TEACHER, STUDENT)]
    found = ForwardKLEnergy()(*rows, sample_weight=np.array(weights, "float32"))
    assert float(found) == pytest.approx(expected, abs=1e-7)


def text_pair():
    """A teacher and a student without images, far from each other."""
    keras.utils.set_random_seed(0)
    models = tiny_gemma_text(width=16), tiny_gemma_text()
    rng = np.random.default_rng(0)
    for weight in (*models[0].weights, *models[1].weights):
        if "norm" not in weight.path:
            weight.assign(rng.normal(0, 0.3, weight.shape))
    made = BetaKDDistiller(
        *models, ForwardKLEnergy(), FixedBeta(), max_response_length=K
    )
    made.compile(optimizer=keras.optimizers.SGD(0.0))
    return made


def log_probabilities(model, prompt, tokens):
    """What follows a prompt and tokens, in float64: (V,)."""
    x = model.preprocessor.generate_preprocess([prompt], sequence_length=32)
    x = {k: np.array(keras.ops.convert_to_numpy(v)) for k, v in x.items()}
    start = int(x["padding_mask"].sum())
    x["token_ids"][0, start : start + len(tokens)] = tokens
    x["padding_mask"][0, : start + len(tokens)] = True
    logits = keras.ops.convert_to_numpy(view_of(model).logits(x))
    logits = logits[0, start + len(tokens) - 1].astype("float64")
    return logits - np.log(np.exp(logits).sum())


def test_the_mean_over_draws_is_the_sum_over_all_places_and_tokens():
    """Each with its probability, q / (K - 1), of three tokens at each place."""
    made, prompt, answer = text_pair(), "what color", [30, 41, 52, 1]
    cells = {}
    for place in (1, 2, 3):
        q = np.exp(log_probabilities(made.student, prompt, answer[: place - 1]))
        q[made.student.preprocessor.tokenizer.end_token_id] = 0
        q[made.student.preprocessor.tokenizer.token_to_id("<end_of_turn>")] = 0
        for token in np.argsort(-q)[:3]:
            read = prompt, [*answer[: place - 1], int(token)]
            p, s = (log_probabilities(m, *read) for m in (made.teacher, made.student))
            share = q[token] / np.sort(q)[-3:].sum() / 3
            cells[place, int(token)] = share, (np.exp(p) * (p - s)).sum()
    shares, energies = map(np.array, zip(*cells.values(), strict=True))
    expected = (shares * energies).sum()
    size = 600
    data = {"prompts": [prompt] * size, "response_tokens": [answer] * size}
    branches = StudentBranches(data, 1.0, top_k=3)
    logs = fitted(made, branches, epochs=1, batch_size=100)
    drawn = [(branch.place, branch.token) for branch in branches.last]
    counts = np.array([drawn.count(cell) for cell in cells])
    assert counts.sum() == size
    (found,) = logs["forward_kl"]
    assert found == pytest.approx((counts * energies).sum() / size, rel=1e-5)
    error = np.sqrt((shares * (energies - expected) ** 2).sum() / size)
    assert abs(found - expected) < 3 * error < 0.2 * expected
    assert (np.abs(counts - size * shares) < 4 * np.sqrt(size * shares)).all()


def test_a_token_that_ends_is_never_drawn_however_sure_the_student_is():
    """The probabilities of all others were 0, and any token as likely as another."""
    made = text_pair()
    drawer = BranchDrawer(made.preprocessor, made.student_view, temperature=0.1)
    drawer.begin(0)
    size = made.student_view.logit_size
    logits = np.zeros((4, size), "float32")
    logits[:, drawer.sampler.excluded[0]] = 100
    logits[:, drawer.sampler.classes :] = 200  # they pad the vocabulary
    logits[:, 30] = 10
    drawer._next_token = keras.layers.Layer()
    drawer._next_token.predict_on_batch = lambda inputs: logits
    last = np.zeros(3, "int32")
    assert drawer._tokens({"token_ids": last}, last, 4).tolist() == [30] * 3


def branch_rows(branches):
    """Raw records' columns of branches, as they are trained."""
    weight = np.zeros((len(branches), K), "float32")
    for row, branch in zip(weight, branches, strict=True):
        row[branch.place] = 1
    return {
        "response_tokens": [branch.tokens for branch in branches],
        "sample_weight": weight,
        "task_weight": np.zeros(len(branches)),
    }


def test_all_given_tokens_together_are_plain_distillation_from_the_second_row():
    """Of each record alone, as each has as many branches as rows behind its first."""
    model, data = distiller(ForwardKLEnergy(), FixedBeta()), records(4)
    _, y, weight = model.preprocessor(data)
    for i, labels in enumerate(answers_of((None, y, weight))):
        one = {key: [values[i]] for key, values in data.items()}
        given = np.zeros((1, K), "float32")
        given[0, 1 : len(labels)] = 1
        plain = model.evaluate({**one, "sample_weight": given}, return_dict=True)
        places = range(1, len(labels))
        branches = [Branch("", tuple(labels), k, labels[k - 1]) for k in places]
        same = {key: values * len(branches) for key, values in one.items()}
        found = model.evaluate({**same, **branch_rows(branches)}, return_dict=True)
        assert len(branches) > 1
        assert found["forward_kl"] == pytest.approx(plain["forward_kl"], rel=1e-5)
        assert found["task_loss"] == 0


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.one_of_two("tensorflow")
def test_tokens_are_those_of_the_weights_at_the_beginning_of_the_epoch(monkeypatch):
    """And nothing is compiled again from epoch to epoch."""
    calls, call = [], NextToken.call
    counted = lambda *args: calls.append(1) or call(*args)  # noqa: E731
    monkeypatch.setattr(NextToken, "call", counted)
    model, branches = distiller(), StudentBranches(records(), 0.75, top_k=1)
    last, counts, weights = [], [], [weights_of(model)]

    class Noted(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            last.append(branches.last)
            counts.append(len(calls))
            weights.append(weights_of(self.model))

    fitted(model, branches, epochs=3, callbacks=[Noted()])
    fresh = distiller()
    view = view_of(fresh.student)
    x, _, _ = fresh.preprocessor(records())
    places = {"x": x["student"], "positions": x["student_positions"]}
    reader = RowLogits(view)
    ends = branches._drawer.sampler.excluded
    for values, found in zip(weights, last, strict=False):
        for variable, value in zip(fresh.student.variables, values, strict=True):
            variable.assign(value)
        logits = np.array(reader.predict_on_batch(places))
        logits[..., list(ends)] = -np.inf
        assert len(found) == 6
        for branch in found:
            row = records()["ids"].index(branch.name.split("'")[1])
            assert branch.token == logits[row, branch.place - 1].argmax()
    eager = keras.backend.backend() == "torch"
    assert counts == ([2, 4, 6] if eager else 3 * counts[:1])


def test_a_training_that_was_stopped_goes_on_with_the_same_branches(tmp_path):
    whole, branches = distiller(), StudentBranches(records(), 0.5)
    options = {"shuffle": False}
    history = fitted(whole, branches, epochs=4, **options)
    first = distiller()
    fitted(first, StudentBranches(records(), 0.5), epochs=2, **options)
    first.save_weights(tmp_path / "first.weights.h5")
    resumed, again = distiller(), StudentBranches(records(), 0.5)
    resumed.load_weights(tmp_path / "first.weights.h5")
    logs = fitted(resumed, again, epochs=4, initial_epoch=2, **options)
    assert again.last == branches.last
    assert logs == {name: values[2:] for name, values in history.items()}
    for ours, theirs in zip(weights_of(resumed), weights_of(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_seeds_and_epochs_draw_other_branches():
    """Places too: they are not a function of the record alone."""
    model = distiller()
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    found = []
    for seed in (0, 0, 1):
        branches = StudentBranches(records(), 1.0, seed=seed)
        fitted(model, branches, epochs=1 + len(found) % 2, shuffle=False)
        found.append([(b.place, b.token) for b in branches.last])
    assert found[0] != found[1]  # of epochs 0 and 1
    assert found[0] != found[2]  # of seeds 0 and 1
    assert len({place for place, _ in found[0]}) > 1


def test_one_row_of_a_branch_has_weight_and_no_label_is_trained():
    """The row behind the student's token; other records are as they were given."""
    model, data = distiller(), records()
    data["sample_weight"] = np.linspace(1, 2, 8)
    branches = StudentBranches(data, 0.5)
    read = Read(branches)
    fitted(model, branches, epochs=1, shuffle=False, callbacks=[read])
    by_name = {branch.name.split("'")[1]: branch for branch in branches.last}
    assert len(by_name) == 4
    for batch in read.batches:
        x, y, weight = model.preprocessor(
            {k: v for k, v in batch.items() if k not in ("task_weight",)}
        )
        weight = weight * batch["sample_weight"]
        for row, name in enumerate(batch["ids"]):
            given = 1 + int(name[1:]) / 7
            branch = by_name.get(name)
            assert batch["task_weight"][row] == (branch is None)
            if branch is None:
                assert set(weight[row]) == {0, np.float32(given)}
                continue
            expected = np.zeros(K)
            expected[branch.place] = given
            np.testing.assert_allclose(weight[row], expected)
            assert tuple(y[row, : branch.place]) == branch.tokens[:-1]
            for role in ("student", "teacher"):
                last = x[f"{role}_positions"][row, branch.place]
                assert x[role]["token_ids"][row, last] == branch.token
    logs = fitted(distiller(), StudentBranches(data, 1.0), epochs=1)
    assert logs["task_loss"] == logs["accuracy"] == [0]
    assert logs["reverse_kl"][0] > 0


def test_an_epoch_is_the_mean_of_given_answers_and_branches():
    """(1 - s) (L_sft + beta L_kd) + s beta L_tpa, as the class says."""
    model = distiller(ForwardKLEnergy(), FixedBeta(2.0))
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    branches = StudentBranches(records(), 0.375)
    logs = fitted(model, branches, epochs=1, batch_size=8)
    names = [branch.name.split("'")[1] for branch in branches.last]
    assert len(names) == 3

    def some(chosen):
        rows = [records()["ids"].index(name) for name in chosen]
        return {key: [values[i] for i in rows] for key, values in records().items()}

    rest = model.evaluate(some(set(records()["ids"]) - set(names)), return_dict=True)
    own = {**some(names), **branch_rows(branches.last)}
    l_tpa = model.evaluate(own, return_dict=True)["forward_kl"]
    expected = 0.625 * (rest["task_loss"] + 2 * rest["forward_kl"])
    expected += 0.375 * 2 * l_tpa - 0.5 * np.log(2)
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", [FixedBeta(2.0), TaskBeta()])
def test_answers_of_one_token_count_for_nothing_and_are_told_of(beta):
    data = {k: v for k, v in records().items() if k != "responses"}
    data["response_tokens"] = [[30]] * 8
    model = distiller(beta=beta)
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    with pytest.warns(UserWarning, match="Of the 8 records .* 8 have an answer of one"):
        logs = fitted(model, StudentBranches(data, 1.0), epochs=1)
    assert logs["unbranched"] == [8] and logs["branches"] == [0]
    assert np.isnan(logs["branches_given"]).all()
    assert logs["loss"] == logs["task_loss"] == logs["reverse_kl"] == [0]
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(new))
    data["response_tokens"][:4] = [[30, 31, 1]] * 4
    with pytest.warns(UserWarning, match="Of the 8 records .* 4 have an answer of one"):
        logs = fitted(model, StudentBranches(data, 1.0), epochs=1)
    assert logs["unbranched"] == [4] and logs["branches"] == [4]
    assert np.isfinite(logs["loss"]).all() and logs["reverse_kl"][0] > 0


@pytest.mark.parametrize("name", DECODERS)
def test_every_family(name):
    """Tokens are of the student's rows, and the row behind one is of both models."""
    teacher, student = model_of(name, 1, width=16), model_of(name, 0)
    encode = DistillationPreprocessor(teacher.preprocessor, student.preprocessor, 8)
    view, rows = view_of(student), family_records(name, (1, 1, 1))
    drawer = BranchDrawer(encode, view, top_k=1)
    drawer.begin(0)
    found = [branch for branch, _ in drawer.branches(rows, 4)]

    def row_logits(batch):
        x = {"x": batch[0]["student"], "positions": batch[0]["student_positions"]}
        return np.array(RowLogits(view).predict_on_batch(x))

    given = encode(rows)
    logits = row_logits(given)
    assert [list(branch.given) for branch in found] == answers_of(given)
    allowed = np.full(logits.shape[-1], -np.inf)
    allowed[: drawer.sampler.classes] = 0
    allowed[list(drawer.sampler.excluded)] = -np.inf
    for row, branch in zip(logits, found, strict=True):
        assert branch.token == (row[branch.place - 1] + allowed).argmax()
    batch = encode({**rows, "response_tokens": [branch.tokens for branch in found]})
    for i, branch in enumerate(found):
        for role in ("student", "teacher"):
            behind = batch[0][f"{role}_positions"][i, branch.place]
            assert batch[0][role]["token_ids"][i, behind] == branch.token
    same = [Branch("", b.given, b.place, b.given[b.place - 1]) for b in found]
    unchanged = encode({**rows, "response_tokens": [branch.tokens for branch in same]})
    behind = [branch.place for branch in same]
    np.testing.assert_allclose(
        row_logits(unchanged)[range(3), behind],
        logits[range(3), behind],
        rtol=1e-4,
        atol=1e-5,
    )


def test_of_a_conversation_the_last_answer_is_branched_off():
    """With the weights of its own rows, which are not the first of the record."""
    model = model_of("MobileVLM")
    encode = DistillationPreprocessor(model.preprocessor, model.preprocessor, 12)
    rows = {
        "prompts": [["<image>\nwhat?", "and then?"]],
        "responses": [["red", "yes"]],
        "images": [np.zeros((16, 16, 3), "uint8")],
    }
    _, y, weight = encode(rows)
    both = y[0, weight[0] > 0].tolist()
    drawer = BranchDrawer(encode, view_of(model))
    drawer.begin(0)
    ((branch, slot),) = drawer.branches(rows, 1)
    last = encode({**rows, "response_tokens": [branch.given]})
    assert answers_of(last) == [list(branch.given)] == [both[-len(branch.given) :]]
    assert 0 < len(branch.given) < len(both)
    assert slot == len(both) - len(branch.given) + branch.place


def test_weights_of_rows_are_kept():
    data = records(4)
    weight = np.arange(4 * K, dtype="float32").reshape(4, K) + 1
    branches = StudentBranches({**data, "sample_weight": weight}, 1.0)
    read = Read(branches)
    options = {"shuffle": False, "callbacks": [read], "epochs": 1}
    fitted(distiller(), branches, **options)
    (batch,) = read.batches
    for i, branch in enumerate(branches.last):
        expected = np.zeros(K)
        expected[branch.place] = weight[i, branch.place]
        np.testing.assert_array_equal(batch["sample_weight"][i], expected)


@pytest.mark.parametrize(
    "make, fit, message",
    [
        (cached, {}, "A cached teacher knows given answers only"),
        (of_other_tokenizers, {}, "ids of its own tokenizer"),
        (of_encoders, {}, "student, a BLIP2Seq2SeqLM, has an encoder"),
        (lambda: distiller(DKDEnergy()), {}, r"\['dkd'\] compare the models"),
        (distiller, {"steps_per_epoch": 1}, r"with `StudentBranches`.*EpochParts"),
        (distiller, {"validation_data": StudentBranches(records())}, "cannot be `Stu"),
    ],
)
def test_what_cannot_be_branched_off_is_refused(make, fit, message, tmp_path):
    model = make(tmp_path) if make is cached else make()
    with pytest.raises(ValueError, match=message):
        model.fit(StudentBranches(records()), verbose=0, **fit)


@pytest.mark.parametrize(
    "name, value", [("on_policy", 1.5), ("top_k", 0), ("batch_size", 0), ("seed", None)]
)
def test_wrong_arguments_are_refused(name, value):
    with pytest.raises(ValueError, match=f"Received: {name}={value}"):
        StudentBranches(records(), **{name: value})


def test_records_that_cannot_be_branched_off_are_named():
    model, branches = distiller(), StudentBranches(records())
    with pytest.raises(ValueError, match="StudentBranches` must be the training data"):
        model.evaluate(branches, verbose=0)
    without = {**records(), "responses": ["red"] * 7 + [None]}
    with pytest.raises(
        ValueError, match=r"'r7' \(number 7 of the data\): its response"
    ):
        fitted(model, StudentBranches(without, 1.0), shuffle=False)
    long = {**records(), "responses": ["red"] * 7 + ["blue " * 20]}
    with pytest.raises(ValueError, match=r"'r7' \(number 7 of the data\) has \d+ tok"):
        fitted(model, StudentBranches(long, 1.0), shuffle=False)


def test_records_that_are_too_long_are_left_out_where_others_are():
    long = {**records(), "responses": ["blue " * 20, *["red"] * 7]}
    branches = StudentBranches(long, 1.0)
    with pytest.warns(RuntimeWarning, match="r0"):
        logs = fitted(distiller(on_too_long="skip"), branches, shuffle=False)
    assert logs["branches"] == [7, 7] and logs["unbranched"] == [0, 0]
    assert np.isfinite(logs["loss"]).all()


def test_parts_of_an_epoch_are_branched_off_one_by_one():
    branches = StudentBranches(EpochParts(Fixed(), parts=2), 0.5, batch_size=3)
    logs = fitted(distiller(), branches, epochs=4)
    assert logs["branches"] == [2] * 4
    assert "number" in branches.last[0].name
