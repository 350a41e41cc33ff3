"""A cached teacher gives the losses of the live one, and never another record's."""

import dataclasses
import json
import os
import pathlib
import pickle
import resource
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from marks import kept
from test_families import model_of, records
from tiny_models import random_image

from keras_betakd import (
    AttentionEnergy,
    BetaKDDistiller,
    CachedTeacher,
    CosineProbsEnergy,
    DistillationPreprocessor,
    FeatureCosineEnergy,
    FeatureMSEEnergy,
    ForwardKLEnergy,
    InstanceBeta,
    ReverseKLEnergy,
    TaskBeta,
    TokenBeta,
    cache_teacher,
)
from keras_betakd.models import view_of
from keras_betakd.teacher_cache import build, source

K = 8
IMAGE_COUNTS = (1, 0, 2, 1)  # of the records of a family that takes any number


def rows_of(name, count=3):
    """Records. Where several models train on them, their number fills equal batches,
    since every other size would be compiled again.
    `test_order_and_batches_do_not_matter` has one."""
    return records(name, IMAGE_COUNTS if name == "Gemma3" else (1,) * count)


def parts(*energies, beta=None):
    """Energies and a beta, the same each time."""
    keras.utils.set_random_seed(3)
    return list(energies), beta() if beta else InstanceBeta()


def distiller_of(teacher, student, energies, beta, **kwargs):
    if "preprocessor" not in kwargs and teacher.preprocessor is not None:
        pair = teacher.preprocessor, student.preprocessor
        kwargs["preprocessor"] = DistillationPreprocessor(*pair, K)
    distiller = BetaKDDistiller(teacher, student, energies, beta, **kwargs)
    distiller.compile(optimizer=keras.optimizers.SGD(0.05))
    return distiller


def history(distiller, data, batch_size=2):
    return distiller.fit(
        data, batch_size=batch_size, epochs=2, shuffle=False, verbose=0
    ).history


def evaluated(distiller, data, batch_size=2):
    return distiller.evaluate(data, batch_size=batch_size, verbose=0, return_dict=True)


def assert_same(got, expected, rtol=1e-5):
    assert set(got) == set(expected)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol, 1e-5, err_msg=name)


def build_cache(name, directory, teacher=None, data=None, **kwargs):
    """Builds a cache of a teacher alone; small batches, so that there are several."""
    teacher = teacher or model_of(name, 1, width=16)
    kwargs = {"batch_size": 2, "max_response_length": K, "verbose": 0} | kwargs
    return cache_teacher(teacher, data or rows_of(name), directory, **kwargs)


CASES = {
    "images and features": (
        "Gemma3",
        lambda: parts(
            ForwardKLEnergy(),
            FeatureMSEEnergy("image_features"),
            FeatureCosineEnergy("hidden_states"),
            AttentionEnergy(),
        ),
    ),
    "each token's own beta": (
        "Llama",
        lambda: parts(ReverseKLEnergy(), beta=TokenBeta),
    ),
    "the teacher's uncertainty": (
        "Llama",
        lambda: parts(
            CosineProbsEnergy(), beta=lambda: InstanceBeta(features="uncertainty")
        ),
    ),
    "prefix of image tokens": ("PaliGemma", lambda: parts(ForwardKLEnergy())),
    "encoder and decoder": ("BLIP2_FlanT5", lambda: parts(ForwardKLEnergy())),
}


@pytest.mark.backends
@pytest.mark.parametrize(
    "case", kept(CASES, "images and features", "the teacher's uncertainty")
)
@pytest.mark.one_of_two("jax")
def test_losses_are_those_of_the_live_teacher(case, tmp_path):
    name, make = CASES[case]
    data = rows_of(name, 4)
    live = distiller_of(model_of(name, 1, width=16), model_of(name, 0), *make())
    teacher = cache_teacher(live, data, tmp_path / "cache", batch_size=4, verbose=0)
    cached = distiller_of(teacher, model_of(name, 0), *make())
    assert_same(evaluated(cached, data), evaluated(live, data))
    if name == "Gemma3":  # the others would only compile for longer
        assert_same(history(cached, data), history(live, data))


@pytest.mark.backends
@pytest.mark.parametrize("top_k", kept([3, None], None))
def test_dense_path_and_a_vocabulary_in_common(top_k, tmp_path):
    """Cropped logits are normalised after they are cut, in the cache as well."""
    data, classes = rows_of("Llama", 4), 150
    options = {"fused": False, "vocabulary_size": classes}
    teacher = model_of("Llama", 1, width=16)
    live = distiller_of(
        teacher, model_of("Llama", 0), *parts(TopK(top_k), beta=TaskBeta), **options
    )
    stored = cache_teacher(live, data, tmp_path, top_k=top_k, verbose=0)
    cached = distiller_of(
        stored,
        model_of("Llama", 0),
        *parts(ForwardKLEnergy(), beta=TaskBeta),
        **options,
    )
    assert_same(history(cached, data), history(live, data))


class TopK(ForwardKLEnergy):
    """Forward KL from the teacher's top-k probabilities, in plain NumPy."""

    fuses = False

    def __init__(self, k):
        super().__init__(name="forward_kl")
        self.k = k

    def call(self, y_true, y_pred):
        if self.k is not None:
            y_true = known_by_top_k(y_true, self.k)
        return super().call(y_true, y_pred)


def known_by_top_k(logits, k):
    """Log-probabilities: the best k, and the rest spread uniformly."""
    ops = keras.ops
    log_p = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    ranks = ops.argsort(ops.argsort(-log_p, axis=-1), axis=-1)
    rest = ops.sum(ops.where(ranks < k, 0.0, ops.exp(log_p)), axis=-1, keepdims=True)
    others = logits.shape[-1] - k
    return ops.where(ranks < k, log_p, ops.log(rest / others))


@pytest.mark.backends
@pytest.mark.parametrize("top_k", kept([4, None], None))
def test_quantised_teacher(top_k, tmp_path):
    """Its head has no matrix to store, so the cache stores logits."""
    name = "Llama"
    data, teacher = rows_of(name, 4), model_of(name, 1, width=16)
    teacher.backbone.quantize("int8")
    energy = TopK(top_k) if top_k else ForwardKLEnergy()
    options = {"fused": False} if top_k else {}
    live = distiller_of(teacher, model_of(name, 0), *parts(energy), **options)
    cached = cache_teacher(live, data, tmp_path, top_k=top_k, verbose=0)
    assert cached.kind == ("top_k" if top_k else "logits")
    fed = distiller_of(cached, model_of(name, 0), *parts(ForwardKLEnergy()))
    assert_same(evaluated(fed, data), evaluated(live, data))


def test_all_classes_but_one_are_all_there_is(tmp_path):
    """Only one class is left after the best V - 1, so the rest determines it."""
    data, teacher = rows_of("Llama", 4), model_of("Llama", 1, width=16)
    energies = ForwardKLEnergy(), ReverseKLEnergy(), CosineProbsEnergy()
    live = distiller_of(teacher, model_of("Llama", 0), *parts(*energies))
    classes = live.teacher_parts[0].view.vocabulary_size
    cached = cache_teacher(live, data, tmp_path, top_k=classes - 1, verbose=0)
    fed = distiller_of(cached, model_of("Llama", 0), *parts(*energies))
    assert_same(evaluated(fed, data), evaluated(live, data))


def test_order_and_batches_do_not_matter(tmp_path):
    """Rows are found by id: each record gets its own in any order and batch size."""
    name, data = "PaliGemma", records("PaliGemma", (1,) * 5)
    teacher = model_of(name, 1, width=16)
    cached = build_cache(name, tmp_path, teacher, data)
    order = [3, 0, 4, 2, 1]
    data = {key: [values[i] for i in order] for key, values in data.items()}
    pair = [
        distiller_of(t, model_of(name, 0), *parts(ForwardKLEnergy()))
        for t in (teacher, cached)
    ]
    live, fed = (evaluated(d, data, batch_size=3) for d in pair)
    assert_same(fed, live)


def test_half_precision_is_kept_as_such(tmp_path):
    """Rows of a bfloat16 teacher take two bytes a number, without loss."""
    name, data = "Llama", rows_of("Llama", 4)
    teacher = model_of(name, 1, width=16)
    teacher = type(teacher).from_config(teacher.get_config() | {"dtype": "bfloat16"})
    keras.config.set_dtype_policy("bfloat16")
    teacher = model_of(name, 1, width=16)
    keras.config.set_dtype_policy("float32")
    live = distiller_of(teacher, model_of(name, 0), *parts(ForwardKLEnergy()))
    cached = cache_teacher(live, data, tmp_path, verbose=0)
    outputs = cached.preprocessor
    shard = outputs.folder.open("00000.safetensors")
    assert str(shard.rows("rows", 0, 1).dtype) == "bfloat16"
    assert str(outputs.head()["kernel"].dtype) == "bfloat16"
    fed = distiller_of(cached, model_of(name, 0), *parts(ForwardKLEnergy()))
    assert_same(evaluated(fed, data), evaluated(live, data))


def overflowing_teacher():
    """A teacher that gives NaN for every record with the word "red"."""
    teacher = model_of("Llama", 1, width=16)
    embedding = teacher.backbone.token_embedding.embeddings
    corrupted = keras.ops.convert_to_numpy(embedding).copy()
    corrupted[teacher.preprocessor.tokenizer.token_to_id("▁red")] = np.nan
    embedding.assign(corrupted)
    return teacher


def test_teacher_that_overflows_is_left_out_as_when_live(tmp_path):
    name, data = "Llama", {**rows_of("Llama"), "responses": ["yes"] * 3}
    for top_k in (None, 3):
        with pytest.warns(RuntimeWarning, match="at 4 of 6 answer.*'q1', 'q2'"):
            cached = build_cache(
                name, tmp_path / str(top_k), overflowing_teacher(), data, top_k=top_k
            )
        fed = distiller_of(cached, model_of(name, 0), *parts(ForwardKLEnergy()))
        with pytest.warns(RuntimeWarning, match="The teacher gave NaN"):
            losses = evaluated(fed, data)
        assert all(np.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("top_k", [None, 3])
def test_teacher_without_a_finite_output_is_refused(top_k, tmp_path):
    """It made a complete cache, of which nothing could be learned, without a word."""
    data = {**rows_of("Llama"), "prompts": ["red"] * 3}
    with pytest.raises(ValueError, match="NaN or infinite at all 6 answer tokens"):
        build_cache("Llama", tmp_path, overflowing_teacher(), data, top_k=top_k)
    assert not (tmp_path / "index.json").exists()
    teacher = model_of("Llama", 1, width=16)
    head = teacher.backbone.token_embedding.reverse_embeddings
    head.assign(head * np.nan)
    with pytest.raises(ValueError, match="LM head|at all 6 answer tokens"):
        build_cache("Llama", tmp_path / "head", teacher, top_k=top_k)


def test_no_records_make_no_cache(tmp_path):
    with pytest.raises(ValueError, match="at least one record"):
        build_cache("Llama", tmp_path, data={k: [] for k in rows_of("Llama")})


# Stopped, damaged, stale


def contents(directory):
    return {p.name: p.read_bytes() for p in pathlib.Path(directory).iterdir()}


class Stopping(keras.utils.PyDataset):
    """Batches of one record; calls `fail` at record `last`."""

    def __init__(self, data, last, fail):
        super().__init__()
        self.data, self.last, self.fail = data, last, fail

    def __len__(self):
        return len(self.data["ids"])

    def __getitem__(self, i):
        if i == self.last:
            self.fail()
        return {key: values[i : i + 1] for key, values in self.data.items()}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def build_until(directory, last, fail=die):
    """Builds a cache with two records a file; stops before record `last`."""
    build.FILE_RECORDS = 2
    data = Stopping(records("Llama", range(5)), last, fail)
    return build_cache("Llama", directory, data=data)


@pytest.mark.traced  # as the other process computes
def test_killed_and_started_again_it_is_the_same_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FILE_RECORDS", 2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    build_until(whole, last=None)
    code = "import sys, test_teacher_cache as t; t.build_until(sys.argv[1], last=3)"
    result = subprocess.run(
        [sys.executable, "-c", code, broken],
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert {"settings.json", "00000.safetensors"} <= set(contents(broken))
    assert "index.json" not in contents(broken)
    with pytest.raises(FileNotFoundError, match="unfinished"):
        CachedTeacher(broken)
    build_until(broken, last=None)
    assert contents(broken) == contents(whole)


@pytest.mark.backends
@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="Keras does so with JAX alone"
)
def test_each_batch_is_computed_once(tmp_path, monkeypatch):
    """Keras ran the teacher once more, not compiled, before each batch of a cache,
    since its tokenizer is never built."""
    runs, call = [], source.TeacherReading.call
    monkeypatch.setattr(
        source.TeacherReading, "call", lambda *args: runs.append(0) or call(*args)
    )
    teacher, student = model_of("Llama3"), model_of("Llama3", 8)
    distiller = distiller_of(teacher, student, *parts(CosineProbsEnergy()))
    cache_teacher(distiller, rows_of("Llama3", 6), tmp_path, batch_size=2, verbose=0)
    assert len(runs) == 2  # to build it, and to compile it


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FILE_RECORDS", 2)
    build_until(tmp_path, last=None)
    before = contents(tmp_path)
    (tmp_path / "00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has lost its file '00001"):
        CachedTeacher(tmp_path)
    computed = []
    outputs = build.TeacherSource.outputs

    def counted(source, batch):
        computed.extend(batch["ids"])
        return outputs(source, batch)

    monkeypatch.setattr(build.TeacherSource, "outputs", counted)
    build_until(tmp_path, last=None)
    assert computed == ["q2", "q3"]
    assert contents(tmp_path) == before


@pytest.fixture(scope="module")
def text_cache(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache")
    build_cache("Llama", directory)
    return directory


@pytest.fixture
def cache(text_cache, tmp_path):
    """A copy of a small cache, to be damaged."""
    for name, data in contents(text_cache).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def read(directory, data=None):
    """Reads the batches as training does."""
    student = model_of("Llama", 0).preprocessor
    teacher = CachedTeacher(directory).preprocessor
    return DistillationPreprocessor(teacher, student, K)(data or rows_of("Llama"))


@pytest.mark.parametrize("name", ["00000.safetensors", "head.safetensors"])
@pytest.mark.parametrize("place", [-3, 30, "cut"])
def test_damaged_file_is_named(name, place, cache):
    path = cache / name
    data = bytearray(path.read_bytes())
    if place == "cut":
        data = data[: len(data) // 2]
    else:
        data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}' of the teacher cache is damaged"):
        read(cache)
    if place == -3:  # and it is noticed when the cache is built again
        with pytest.raises(ValueError, match=f"{name}' of the teacher cache"):
            build_cache("Llama", cache)


def test_file_of_another_cache_is_noticed(cache, tmp_path):
    other = tmp_path / "other"
    build_cache("Llama", other, model_of("Llama", 2, width=16))
    (cache / "00000.safetensors").write_bytes(
        (other / "00000.safetensors").read_bytes()
    )
    with pytest.raises(ValueError, match="00000.*belongs to another cache"):
        read(cache)


def change(key, value):
    data = rows_of("Llama")
    data[key] = [value, *data[key][1:]]
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (change("ids", "new"), "'new' is not in the teacher cache"),
        (change("prompts", "what size"), "'q0' is not what it was"),
        (change("responses", "yes"), "'q0' is not what it was"),
        (change("ids", "q1"), "'q1' is not what it was"),
        ({k: v for k, v in rows_of("Llama").items() if k != "ids"}, "have none"),
    ],
)
def test_other_records_are_refused(data, message, text_cache):
    with pytest.raises(ValueError, match=message):
        read(text_cache, data)


def test_augmented_image_is_refused(tmp_path):
    name, data = "Gemma3", rows_of("Gemma3")
    cached = build_cache(name, tmp_path)
    fed = distiller_of(cached, model_of(name, 0), *parts(ForwardKLEnergy()))
    # The same image in another dtype is the same image.
    data["images"][0] = [image.astype("float32") for image in data["images"][0]]
    fed.evaluate(data, verbose=0)
    data["images"][2] = [data["images"][2][0], random_image(99)]
    with pytest.raises(ValueError, match="'q2' .*is not what it was.*augmentation"):
        fed.evaluate(data, verbose=0)


def test_stale_cache_is_not_gone_on_with(cache):
    cases = {
        "teacher": {"teacher": model_of("Llama", 2, width=16)},
        "preprocessor": {"teacher": model_of("Llama", 1, width=16)},
        "top_k": {"top_k": 5},
    }
    cases["preprocessor"]["teacher"].preprocessor.sequence_length = 64
    for setting, kwargs in cases.items():
        with pytest.raises(ValueError, match=f"begun with another .*{setting}"):
            build_cache("Llama", cache, **kwargs)
    data = {key: values[::-1] for key, values in rows_of("Llama").items()}
    with pytest.raises(ValueError, match="holds other records"):
        build_cache("Llama", cache, data=data)


def test_two_records_with_one_id(tmp_path):
    with pytest.raises(ValueError, match="Two records have the id 'q1'"):
        build_cache("Llama", tmp_path, data=change("ids", "q1"))


def test_disk_that_is_full(tmp_path):
    """No partial file is left; the message names the file that could not be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(OSError, match="head.safetensors' cannot be written"):
            build_cache("Llama", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert set(contents(tmp_path)) == {"settings.json"}
    build_cache("Llama", tmp_path)


def test_goes_to_other_processes(text_cache):
    """Workers of a data set get a copy, and open files cannot be copied."""
    teacher = CachedTeacher(text_cache).preprocessor
    data = rows_of("Llama")
    expected = teacher.encode(data, data["ids"], K).inputs
    copy = pickle.loads(pickle.dumps(teacher)).encode(data, data["ids"], K).inputs
    for name, value in expected.items():
        np.testing.assert_array_equal(copy[name], value)


def test_batches_of_arrays_are_refused(text_cache):
    """They hold no ids, so that nothing stored is found; the reader had no answer."""
    reader = view_of(CachedTeacher(text_cache)).reader(set())
    with pytest.raises(ValueError, match="knows the answers to records that have ids"):
        reader.logits({"token_ids": np.zeros((1, 4), "int32")})


def test_another_vocabulary_is_refused(text_cache):
    teacher = CachedTeacher(text_cache).preprocessor
    student = model_of("Qwen", 0).preprocessor
    with pytest.raises(ValueError, match="another vocabulary"):
        DistillationPreprocessor(teacher, student, K)(rows_of("Qwen"))


def test_another_tokenizer_is_refused(text_cache):
    teacher = CachedTeacher(text_cache).preprocessor
    student = model_of("Qwen", 0).preprocessor
    with pytest.raises(ValueError, match="answer tokens of its own tokenizer only"):
        DistillationPreprocessor(teacher, student, K, cross_tokenizer=True)


def test_settings_are_those_of_the_file(cache):
    path = cache / "settings.json"
    found = json.loads(path.read_text())
    settings = CachedTeacher(cache).preprocessor.settings
    assert {**dataclasses.asdict(settings), "digest": settings.digest} == found
    path.write_text(json.dumps({"format": 1, "kind": "hidden"}))
    with pytest.raises(ValueError, match="has format 1; this version reads 2.*anew"):
        CachedTeacher(cache)


def test_feature_that_is_not_in_the_cache(tmp_path):
    cached = build_cache("Gemma3", tmp_path)
    with pytest.raises(ValueError, match="by a distiller with this energy"):
        distiller_of(cached, model_of("Gemma3"), FeatureMSEEnergy(), TaskBeta())


def test_cache_is_made_of_a_model_that_shows_its_hidden_states(tmp_path, text_cache):
    plain = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4)])
    with pytest.raises(ValueError, match="keras-hub CausalLM"):
        cache_teacher(plain, rows_of("Llama"), tmp_path)
    with pytest.raises(ValueError, match="a cached one already"):
        cache_teacher(CachedTeacher(text_cache), rows_of("Llama"), tmp_path)
    with pytest.raises(ValueError, match="`top_k` must be an integer from 1 to"):
        build_cache("Llama", tmp_path, top_k=0)


def test_distiller_with_a_cached_teacher_is_saved_and_loaded(text_cache, tmp_path):
    data = rows_of("Llama")
    energies = parts(ForwardKLEnergy())
    distiller = distiller_of(CachedTeacher(text_cache), model_of("Llama", 0), *energies)
    expected = distiller.evaluate(data, verbose=0, return_dict=True)
    distiller.save(tmp_path / "all.keras")
    loaded = keras.saving.load_model(tmp_path / "all.keras")
    assert loaded.teacher.directory == str(text_cache)
    assert_same(loaded.evaluate(data, verbose=0, return_dict=True), expected)
    distiller.save_weights(tmp_path / "some.weights.h5")
    other = distiller_of(
        CachedTeacher(text_cache), model_of("Llama", 5), *parts(ForwardKLEnergy())
    )
    other.load_weights(tmp_path / "some.weights.h5")
    assert_same(other.evaluate(data, verbose=0, return_dict=True), expected)
