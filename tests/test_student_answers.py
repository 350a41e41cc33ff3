"""The student answers prompts of its training data, and is trained on its answers."""

import keras
import numpy as np
import pytest
from test_families import model_of
from test_families import records as family_records
from tiny_families import FAMILIES, VISION
from tiny_models import tiny_gemma3, tiny_gemma_text, vqa_records

from keras_betakd import (
    BetaKDDistiller,
    CachedTeacher,
    DistillationPreprocessor,
    DKDEnergy,
    FixedBeta,
    ReverseKLEnergy,
    StudentAnswers,
    TaskBeta,
    ULDEnergy,
    cache_teacher,
)
from keras_betakd.data import EpochDataset, EpochParts
from keras_betakd.evaluation import generate_answers
from keras_betakd.models import view_of
from keras_betakd.models.chat_generation import stop_tokens
from keras_betakd.on_policy.batches import unanswered
from keras_betakd.on_policy.decoder import AnswerDecoder
from keras_betakd.on_policy.drawing import drawn_rows
from keras_betakd.on_policy.student_answers import hashed_seed
from keras_betakd.preprocessing.prompts import grouped

K = 6


def records(size=8):
    found = vqa_records(4)
    found = {key: list(values) * (size // 4) for key, values in found.items()}
    found["ids"] = [f"r{i}" for i in range(size)]
    found["responses"] = np.array(found["responses"])  # as data sets make it
    return found


def distiller(energy=None, beta=None, **options):
    keras.utils.set_random_seed(0)
    teacher, student = tiny_gemma3(width=16), tiny_gemma3()
    rng = np.random.default_rng(0)
    for weight in (*teacher.weights, *student.weights):  # with answers that differ
        if "norm" not in weight.path and weight.trainable:
            weight.assign(rng.normal(0, 0.3, weight.shape))
    model = BetaKDDistiller(
        *(teacher, student, energy or ReverseKLEnergy(), beta or TaskBeta()),
        max_response_length=K,
        **options,
    )
    model.compile(optimizer=keras.optimizers.SGD(0.05))
    return model


def fitted(model, data, **options):
    keras.utils.set_random_seed(1)
    options = {"epochs": 2, "batch_size": 4, "verbose": 0, **options}
    return model.fit(data, **options).history


def weights_of(model):
    return [keras.ops.convert_to_numpy(v) for v in model.student.variables]


def tokens_of(answers):
    return [(answer.name, answer.tokens) for answer in answers.last]


class Noted(keras.callbacks.Callback):
    """Notes the answers of each epoch, and the weights at its end."""

    def __init__(self, answers):
        super().__init__()
        self.answers, self.tokens, self.weights = answers, [], []

    def on_epoch_end(self, epoch, logs=None):
        self.tokens.append(tokens_of(self.answers))
        self.weights.append(weights_of(self.model))


class Read(keras.callbacks.Callback):
    """Reads the batches of an epoch once more, while it is trained on."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def on_epoch_end(self, epoch, logs=None):
        self.batches = [self.answers[i] for i in range(self.answers.num_batches)]


@pytest.mark.backends
@pytest.mark.one_of_two("tensorflow")
def test_answers_are_those_of_the_weights_at_the_beginning_of_the_epoch():
    """Where batches are read ahead, they were those of a student of a step before."""
    model = distiller()
    answers = StudentAnswers(records(), 1.0, top_k=1)
    noted = Noted(answers)
    weights = [weights_of(model)]
    fitted(model, answers, epochs=3, callbacks=[noted])
    weights += noted.weights[:-1]
    fresh = distiller()
    for values, tokens in zip(weights, noted.tokens, strict=True):
        for variable, value in zip(fresh.student.variables, values, strict=True):
            variable.assign(value)
        expected = generate_answers(
            fresh.student, records(), batch_size=4, max_new_tokens=K, progress=False
        )
        view = view_of(fresh.student)
        decoder = AnswerDecoder(view, None, K)
        found = {
            name.split("'")[1]: decoder.text_of(list(ids)).strip()
            for name, ids in tokens
        }
        assert found == {name: text.strip() for name, text in expected.items()}
    assert noted.tokens[0] != noted.tokens[2]


def test_without_a_share_it_is_training_on_the_data():
    expected = distiller()
    history = fitted(expected, records())
    found = distiller()
    found.student.generate_step = None  # a call would fail
    logs = fitted(found, StudentAnswers(records(), 0.0))
    assert logs.pop("answers") == [0, 0]
    assert np.isnan([logs.pop("answer_tokens"), logs.pop("answers_ended")]).all()
    assert logs == history
    for ours, theirs in zip(weights_of(found), weights_of(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_training_that_was_stopped_goes_on_with_the_same_answers(tmp_path):
    whole, answers = distiller(), StudentAnswers(records(), 0.5)
    noted = Noted(answers)
    history = fitted(whole, answers, epochs=4, callbacks=[noted], shuffle=False)
    first = distiller()
    fitted(first, StudentAnswers(records(), 0.5), epochs=2, shuffle=False)
    first.save_weights(tmp_path / "first.weights.h5")
    resumed, answers = distiller(), StudentAnswers(records(), 0.5)
    resumed.load_weights(tmp_path / "first.weights.h5")
    later = Noted(answers)
    options = {"epochs": 4, "initial_epoch": 2, "shuffle": False}
    logs = fitted(resumed, answers, callbacks=[later], **options)
    assert later.tokens == noted.tokens[2:]
    assert logs == {name: values[2:] for name, values in history.items()}
    for ours, theirs in zip(weights_of(resumed), weights_of(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_share_is_drawn_anew_in_each_epoch_and_repeatably():
    answers = StudentAnswers(records(12), lambda epoch: [0.5, 0.5, 0.25][epoch])
    noted = Noted(answers)
    model = distiller()
    logs = fitted(model, answers, epochs=3, callbacks=[noted])
    assert logs["answers"] == [6, 6, 3]
    names = [{name for name, _ in tokens} for tokens in noted.tokens]
    assert names[0] != names[1]
    again = StudentAnswers(records(12), 0.5)
    noted_again = Noted(again)
    fitted(distiller(), again, epochs=1, callbacks=[noted_again])
    assert noted_again.tokens[0] == noted.tokens[0]
    other = StudentAnswers(records(12), 0.5, seed=1)
    fitted(distiller(), other, epochs=1)
    assert {name for name, _ in tokens_of(other)} != names[0]


@pytest.mark.backends
def test_epochs_share_no_stream_of_random_numbers():
    """On PyTorch, seeds 1 and 2 are one stream, a draw apart."""
    from keras_betakd.on_policy.sampler import DrawnAnswerSampler

    sampler = DrawnAnswerSampler()
    uniform = keras.ops.full((1, 1000), 1e-3)
    streams = []
    for epoch in (0, 1, 2):
        sampler.begin(hashed_seed(0, epoch))
        draws = [int(sampler.get_next_token(uniform)[0]) for _ in range(64)]
        streams.append({tuple(draws[i : i + 4]) for i in range(61)})
    assert not streams[0] & streams[1] | streams[1] & streams[2]
    sampler.begin(hashed_seed(0, 1))
    assert int(sampler.get_next_token(uniform)[0]) in [s[0] for s in streams[1]]


@pytest.mark.backends
def test_the_sampler_cuts_only_if_asked_to():
    from keras_betakd.on_policy.sampler import DrawnAnswerSampler

    shares = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]], "float32")
    options = {
        "all": ({}, [[1, 1, 1, 1], [1, 1, 1, 1]]),
        "top_k": ({"top_k": 2}, [[1, 1, 0, 0], [1, 1, 1, 1]]),  # with ties
        "top_p": ({"top_p": 0.6}, [[1, 1, 0, 0], [0, 0, 0, 1]]),
        "classes": ({"classes": 3}, [[1, 1, 1, 0], [1, 1, 1, 0]]),
        "both": ({"top_p": 0.6, "classes": 3}, [[1, 1, 0, 0], [1, 1, 1, 0]]),
    }
    for name, (given, expected) in options.items():
        allowed = DrawnAnswerSampler(**given).allowed(keras.ops.array(shares))
        found = keras.ops.convert_to_numpy(allowed).astype(int)
        found = np.broadcast_to(found, shares.shape)
        np.testing.assert_array_equal(found, expected, err_msg=name)
    even = keras.ops.array([[0.2, 0.4, 0.4], [0.5, 0.0, 0.5]], "float32")
    first = keras.ops.convert_to_numpy(DrawnAnswerSampler(top_k=1).allowed(even))
    np.testing.assert_array_equal(first, [[0, 1, 0], [1, 0, 0]])  # the mode is one
    sampler = DrawnAnswerSampler()
    many = keras.ops.array(np.repeat(shares, 4000, axis=0))
    drawn = keras.ops.convert_to_numpy(sampler.get_next_token(many))
    for row, share in zip(drawn.reshape(2, -1), shares, strict=True):
        found = np.bincount(row, minlength=4) / len(row)
        np.testing.assert_allclose(found, share, atol=0.04)


def test_rows_of_an_answer_that_ended_and_of_one_that_was_cut():
    model = distiller()
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    fitted(model, records(), epochs=15)  # some answers end then
    answers = StudentAnswers(records(), 0.75)
    read = Read(answers)
    fitted(model, answers, epochs=1, shuffle=False, callbacks=[read])
    assert {a.ended for a in answers.last} == {True, False}
    by_name = {answer.name.split("'")[1]: answer for answer in answers.last}
    ends = stop_tokens(model.student.preprocessor, {})
    for batch in read.batches:
        x, y, weight = model.preprocessor(
            {k: v for k, v in batch.items() if k != "task_weight"}
        )
        for row, name in enumerate(batch["ids"]):
            labels = y[row, weight[row] > 0].tolist()
            own = by_name.get(name)
            assert batch["task_weight"][row] == (own is None)
            assert (labels[-1] in ends) == (own is None or own.ended)
            if own is not None:
                assert labels == list(own.tokens)
                assert len(labels) == K or own.ended


def test_prompts_without_answers_are_answered_by_the_student():
    data = records()
    alone = {k: v for k, v in data.items() if k != "responses"}
    model = distiller()
    logs = fitted(model, StudentAnswers(alone, 1.0), epochs=1)
    assert logs["answers"] == [8]
    assert logs["task_loss"] == logs["accuracy"] == [0]
    assert logs["reverse_kl"][0] > 0
    some = {**data, "responses": [None, *data["responses"][1:]]}
    answers = StudentAnswers(some, 0.0)
    fitted(distiller(), answers, epochs=1)
    assert [name.split("'")[1] for name, _ in tokens_of(answers)] == ["r0"]


def test_classes_that_pad_the_vocabulary_are_never_drawn():
    """They are no tokens: nothing can be read of them, and the teacher has others."""
    keras.utils.set_random_seed(0)
    models = tiny_gemma_text(width=16), tiny_gemma_text()
    made = BetaKDDistiller(*models, ReverseKLEnergy(), max_response_length=K)
    made.compile()
    size = models[1].preprocessor.tokenizer.vocabulary_size()
    data = {"prompts": ["what color"] * 4, "responses": ["red"] * 4}
    answers = StudentAnswers(data, 1.0)
    fitted(made, answers, epochs=1)
    assert answers._decoder.sampler.classes == size
    fewer = BetaKDDistiller(
        *models, ReverseKLEnergy(), max_response_length=K, vocabulary_size=size - 3
    )
    fewer.compile()
    fitted(fewer, answers, epochs=1)
    assert all(token < size - 3 for a in answers.last for token in a.tokens)


def test_the_students_own_sampler_is_given_back():
    model = distiller()
    student = model.student
    student.compile(sampler="greedy")
    student.generate("what?", max_length=8)
    before = student.sampler, student.generate_function
    fitted(model, StudentAnswers(records(), 0.5), epochs=1)
    assert (student.sampler, student.generate_function) == before
    wrong = {**records(), "prompts": ["<image> <image> <image> what?"] * 8}
    with pytest.raises(ValueError, match="r[0-9]"):
        fitted(model, StudentAnswers(wrong, 1.0), epochs=1)
    assert (student.sampler, student.generate_function) == before


@pytest.mark.backends
@pytest.mark.traced
@pytest.mark.one_of_two("jax")
def test_nothing_is_compiled_again_from_epoch_to_epoch():
    model = distiller()
    traces, step = [], model.student.generate_step

    def counted(*args, **kwargs):
        traces.append(1)
        return step(*args, **kwargs)

    model.student.generate_step = counted
    answers = StudentAnswers(records(12), 0.75)
    fitted(model, answers, epochs=3)
    fitted(model, answers, epochs=2)
    groups = 3 * 5  # of four prompts, in five epochs; PyTorch compiles nothing
    assert len(traces) == (groups if keras.backend.backend() == "torch" else 1)


def greedy_texts(model, rows, count=4):
    """The most likely answers of a text model by id, read as a whole at each token."""
    view, preprocessor, texts = view_of(model), model.preprocessor, {}
    stop = stop_tokens(preprocessor, {})
    for key, prompt in zip(rows["ids"], rows["prompts"], strict=True):
        x = preprocessor.generate_preprocess([prompt], sequence_length=32)
        x = {k: np.array(keras.ops.convert_to_numpy(v)) for k, v in x.items()}
        start = end = int(x["padding_mask"].sum())
        ids, mask = x["token_ids"][0], x["padding_mask"][0]
        while end < start + count and (end == start or ids[end - 1] not in stop):
            logits = keras.ops.convert_to_numpy(view.logits(x))
            ids[end], mask[end] = logits[0, end - 1].argmax(), True
            end += 1
        answer = {key: value[:, start:end] for key, value in x.items()}
        answer = {k: keras.ops.convert_to_tensor(v) for k, v in answer.items()}
        texts[key] = str(preprocessor.generate_postprocess(answer)[0])
    return texts


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "BLIP2_FlanT5"])
def test_answers_of_every_family_are_those_of_its_own_generation(name):
    """By ids: prompts of several lengths, padding that is the end mark, images."""
    model = model_of(name)
    rows = family_records(name, (1, 1, 1))
    if name in VISION:
        expected = generate_answers(model, rows, 3, max_new_tokens=4, progress=False)
    else:
        # Not keras-hub's `generate`: it stops at padding that is the end mark.
        expected = greedy_texts(model, rows)
    decoder = AnswerDecoder(view_of(model), None, 4, top_k=1)
    decoder.begin(0)
    prompts = list(decoder.prompts(rows, rows["ids"]))
    found = {key: (ids, end) for key, ids, end in decoder.answered(prompts, 3)}
    assert {key: decoder.text_of(ids).strip() for key, (ids, _) in found.items()} == {
        key: text.strip() for key, text in expected.items()
    }
    for ids, ended in found.values():
        assert ended or len(ids) == 4
    assert sum(len(group) for group, _ in grouped(prompts, 3)) == 3


class Fixed(EpochDataset):
    def __init__(self):
        super().__init__(range(8), 0)
        self.start_epoch(0)

    def cut(self, generator):
        return generator.permutation(8).reshape(-1, 2)

    def batch(self, rows):
        return {k: [v[i] for i in rows] for k, v in records().items()}


def test_parts_of_an_epoch_are_answered_one_by_one():
    model = distiller()
    answers = StudentAnswers(EpochParts(Fixed(), parts=2), 0.5)
    noted = Noted(answers)
    logs = fitted(model, answers, epochs=4, callbacks=[noted])
    assert logs["answers"] == [2] * 4
    assert len({name for tokens in noted.tokens for name, _ in tokens}) > 2


def test_a_student_that_never_ends_is_warned_of():
    model = distiller()
    embedding = model.student.backbone.token_embedding
    values = keras.ops.convert_to_numpy(embedding.embeddings).copy()
    values[model.student.preprocessor.tokenizer.end_token_id] = 0
    embedding.embeddings.assign(10 * values)
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    with pytest.warns(UserWarning, match="in epoch 2, 0% ended by themselves, with 6"):
        logs = fitted(model, StudentAnswers(records(), 1.0, top_k=1), epochs=2)
    assert logs["answers_ended"] == [0, 0]


def cached(tmp_path):
    model = distiller()
    cache_teacher(model.teacher, records(), tmp_path / "cache", max_response_length=K)
    student = model.student
    made = BetaKDDistiller(
        CachedTeacher(tmp_path / "cache"), student, ReverseKLEnergy(), FixedBeta()
    )
    made.compile()
    return made


def of_other_tokenizers():
    model = distiller()
    pair = model.teacher.preprocessor, model.student.preprocessor
    crossed = DistillationPreprocessor(*pair, K, cross_tokenizer=True)
    made = BetaKDDistiller(
        model.teacher, model.student, ULDEnergy(), preprocessor=crossed
    )
    made.compile()
    return made


def of_encoders():
    pair = model_of("BLIP2_FlanT5", 1, width=16), model_of("BLIP2_FlanT5", 0)
    made = BetaKDDistiller(*pair, ReverseKLEnergy(), max_response_length=K)
    made.compile()
    return made


@pytest.mark.parametrize(
    "make, options, fit, message",
    [
        (cached, {}, {}, "A cached teacher knows given answers only"),
        (of_other_tokenizers, {}, {}, "ids of its own tokenizer"),
        (of_encoders, {}, {}, "student, a BLIP2Seq2SeqLM, has an encoder"),
        (lambda: distiller(DKDEnergy()), {}, {}, r"\['dkd'\] compare the models"),
        (distiller, {}, {"steps_per_epoch": 1}, r"EpochParts.*steps_per_epoch=1"),
        (distiller, {"max_new_tokens": K + 1}, {}, "max_response_length=6"),
    ],
)
def test_what_cannot_be_on_policy_is_refused(make, options, fit, message, tmp_path):
    model = make(tmp_path) if make is cached else make()
    with pytest.raises(ValueError, match=message):
        model.fit(StudentAnswers(records(), **options), verbose=0, **fit)


@pytest.mark.parametrize(
    "name, value",
    [
        ("on_policy", 1.5),
        ("on_policy", True),
        ("temperature", 0),
        ("top_p", 0.0),
        ("top_k", 0),
        ("max_new_tokens", 2.5),
        ("batch_size", 0),
        ("seed", None),
    ],
)
def test_wrong_arguments_are_refused(name, value):
    with pytest.raises(ValueError, match=f"Received: {name}={value}"):
        StudentAnswers(records(), **{name: value})


def test_data_that_cannot_be_answered_is_refused():
    model = distiller()
    with pytest.raises(ValueError, match="takes raw records, or a `keras"):
        fitted(model, StudentAnswers(iter([records()])))
    with pytest.raises(ValueError, match="data that `fit` is given"):
        model.evaluate(StudentAnswers(records()), verbose=0)
    long = {**records(), "prompts": ["<image> what" + " red" * 200] * 8}
    with pytest.raises(ValueError, match=r"'r\d' .*its prompt has \d+ tokens, and an"):
        fitted(model, StudentAnswers(long, 1.0))


class Batches(keras.utils.PyDataset):
    """Batches of four, which may be read by several workers."""

    def __init__(self, data, **kwargs):
        super().__init__(**kwargs)
        self.data = data

    @property
    def num_batches(self):
        return len(self.data["prompts"]) // 4

    def __getitem__(self, index):
        return {k: v[4 * index : 4 * index + 4] for k, v in self.data.items()}


def test_data_of_several_workers_is_read_after_the_answers():
    """Their queue was filled before: the given answers were trained, in silence."""
    data = Batches(records(16), workers=2, max_queue_size=4)
    logs = fitted(distiller(), StudentAnswers(data, 1.0))
    assert logs["answers"] == [16, 16]
    assert logs["task_loss"] == [0, 0]


def test_answers_by_their_tokens_are_given_answers():
    """Without texts beside them, they were replaced by the student's own."""
    data = {k: v for k, v in records().items() if k != "responses"}
    data["response_tokens"] = [[30, 1]] * 8
    model = distiller()
    logs = fitted(model, StudentAnswers(data, 0.0), epochs=1)
    assert logs["answers"] == [0]
    assert np.isnan(logs["answers_ended"]).all()
    assert logs["task_loss"][0] > 0


def test_it_is_for_the_training_of_fit_alone():
    """After a `fit` it was taken elsewhere, with the answers of its last epoch."""
    model, answers = distiller(), StudentAnswers(records(), 1.0)
    with pytest.raises(ValueError, match="`validation_data` cannot be"):
        fitted(model, answers, validation_data=answers)
    fitted(model, answers, epochs=1)
    for use in (model.evaluate, model.predict, model.check_records):
        with pytest.raises(ValueError, match="training data that `fit` is given"):
            use(answers)


def test_prompts_that_are_too_long_are_left_out_where_others_are():
    data = records()
    data["prompts"] = ["<image> what" + " red" * 200, *data["prompts"][1:]]
    data["responses"] = [None] * 8
    model = distiller(on_too_long="skip")
    answers = StudentAnswers(data, 0.0)
    with pytest.warns(RuntimeWarning, match="r0"):
        logs = fitted(model, answers, shuffle=False)
    assert logs["answers"] == [7, 7]
    assert np.isfinite(logs["loss"]).all()


def test_a_small_share_of_a_small_epoch_is_not_always_none():
    """Rounded, a quarter of two records was none in every part of the data."""
    counts = [sum(map(len, drawn_rows(0.25, [2], 0, epoch))) for epoch in range(200)]
    assert set(counts) == {0, 1}
    assert np.mean(counts) == pytest.approx(0.5, abs=0.1)
    assert {len(drawn_rows(0.1, [30], 0, e)[0]) for e in range(20)} == {3}


def test_a_conversation_without_its_last_answer_is_answered():
    batch = {
        "prompts": [["a?", "b?"], ["a?", "b?"], ["a?", "b?"], "a?", ["a?"]],
        "responses": [["x"], ["x", None], ["x", "y"], "x", [None]],
    }
    assert unanswered(batch) == [True, True, False, False, True]


def test_tokens_that_a_model_takes_for_images_are_never_drawn():
    """Gemma 3n: one in an answer gave gradients that were not finite."""
    model = model_of("Gemma3n")
    (token,) = view_of(model).placeholder_ids
    decoder = AnswerDecoder(view_of(model), None, 4)
    uniform = keras.ops.full((1, token + 2), 0.1)
    allowed = keras.ops.convert_to_numpy(decoder.sampler.allowed(uniform))[0]
    assert allowed.tolist() == [i != token for i in range(token + 2)]


def test_monitored_answers_have_a_direction():
    stop = keras.callbacks.EarlyStopping("answers_ended", patience=5)
    fitted(distiller(), StudentAnswers(records(), 0.5), epochs=1, callbacks=[stop])
    assert stop.mode == "max"


def test_a_response_that_is_none_keeps_its_message():
    data = {**records(), "responses": [float("nan")] * 8}
    with pytest.raises(ValueError, match=r"'r\d' .*its response must be text"):
        fitted(distiller(), StudentAnswers(data, 1.0), epochs=1)
