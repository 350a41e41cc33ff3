"""Files of a teacher cache: one builder, and every change of a file is noticed."""

import json
import os
import pathlib
import random
import subprocess
import sys

import keras
import pytest
from test_families import model_of
from test_fingerprints import rebuilt
from test_teacher_cache import build_cache, contents, read, rows_of

from keras_betakd import CachedTeacher, fingerprints
from keras_betakd.folders import FolderInUseError, FolderOwner
from keras_betakd.teacher_cache import build

HOLDER = (
    "import sys; from keras_betakd.folders import FolderOwner; "
    "owner = FolderOwner(sys.argv[1], 'cache_teacher'); print('x', flush=True); "
    "sys.stdin.read()"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("built")
    build_cache("Llama", directory)
    return contents(directory)


@pytest.fixture
def cache(built, tmp_path):
    for name, data in built.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


FILES = ["settings.json", "index.json", "00000.safetensors", "head.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_never_read(name, cache):
    """Of settings.json 288 of 712 flips passed in silence, and 55 were KeyErrors."""
    path, rng = cache / name, random.Random(0)
    data = path.read_bytes()
    # All of it, but for arrays: there the first part, which is the header.
    places = range(8 * min(len(data), 2000))
    for bit in rng.sample(places, 40):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="teacher cache"):
            read(cache)
    path.write_bytes(data)
    read(cache)


@pytest.mark.parametrize("name", ["settings.json", "index.json"])
@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "5", "[" * 100_000, '{"a": 1, "a": 2}', '{"format": 2}', "\xff"],
)
def test_what_is_no_such_file_has_one_error(name, text, cache):
    (cache / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=name):
        CachedTeacher(cache)


def signed(content):
    """A JSON file with a right digest, as of somebody who knows how to make one."""
    content = {**content, "digest": fingerprints.of_value(content)}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize(
    ("key", "value"),
    [("top_k", "5"), ("arrays", None), ("hidden_dim", True), ("soft_cap", [])],
)
def test_types_of_settings(key, value, cache):
    path = cache / "settings.json"
    settings = json.loads(path.read_text())
    del settings["digest"]
    path.write_text(signed({**settings, key: value}))
    with pytest.raises(ValueError, match=f"settings.json.*'{key}' is"):
        CachedTeacher(cache)
    path.write_text(signed({k: v for k, v in settings.items() if k != key}))
    with pytest.raises(ValueError, match="settings.json.*has the keys"):
        CachedTeacher(cache)


@pytest.mark.parametrize(
    "name", ["../00000.safetensors", "/etc/hosts", "a/b.safetensors", "x", ""]
)
def test_an_index_names_files_of_its_folder_only(name, cache):
    path = cache / "index.json"
    files = json.loads(path.read_text())["files"]
    path.write_text(signed({"files": {**files, name: "0"}}))
    with pytest.raises(ValueError, match="index.json.*it names the file"):
        CachedTeacher(cache)
    path.write_text(signed({"files": {**files, "00000.safetensors": 5}}))
    with pytest.raises(ValueError, match="the digest of '00000.safetensors' is 5"):
        CachedTeacher(cache)


def test_links_and_folders_in_the_place_of_files(cache, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "00000.safetensors"
    path = cache / "00000.safetensors"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of the folder"):
        CachedTeacher(cache)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="00000.*no regular file"):
        CachedTeacher(cache)


def test_settings_and_files_of_two_caches_do_not_mix(cache, tmp_path_factory):
    """The settings hold the soft cap: with another's, all losses are others."""
    other = tmp_path_factory.mktemp("other")
    build_cache("Llama", other, model_of("Llama", 2, width=16))
    settings = (other / "settings.json").read_bytes()
    (cache / "settings.json").write_bytes(settings)
    with pytest.raises(ValueError, match="another cache than its index.json"):
        CachedTeacher(cache)
    (cache / "index.json").unlink()
    with pytest.raises(ValueError, match="head.*belongs to another cache"):
        build_cache("Llama", cache, model_of("Llama", 2, width=16))


@pytest.mark.parametrize(
    "changes", [{"rope_max_wavelength": 10}, {"layer_norm_epsilon": 0.5}]
)
def test_another_teacher_of_the_same_weights_does_not_go_on(
    changes, tmp_path, monkeypatch
):
    """The second half of such a cache was another teacher's."""
    monkeypatch.setattr(build, "FILE_RECORDS", 2)
    teacher = model_of("Llama", 1, width=16)
    build_cache("Llama", tmp_path, teacher)
    (tmp_path / "index.json").unlink()
    (tmp_path / "00001.safetensors").unlink()
    with pytest.raises(ValueError, match="begun with another teacher_settings"):
        build_cache("Llama", tmp_path, rebuilt(teacher, **changes))
    build_cache("Llama", tmp_path, teacher)


def test_another_version_does_not_go_on(cache, monkeypatch):
    monkeypatch.setattr(fingerprints, "__version__", "0.0.1")
    with pytest.raises(ValueError, match="another versions.*'keras_betakd': '0.0.1'"):
        build_cache("Llama", cache)
    CachedTeacher(cache)  # complete, it is read by any


def test_one_process_builds_a_cache(cache):
    """Two at once wrote the same files; a complete cache is read by any number."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(__file__).parent.parent,
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
    )
    assert holder.stdout.readline()
    with pytest.raises(FolderInUseError, match=rf"process {holder.pid} .*cache_teach"):
        build_cache("Llama", cache)
    read(cache)
    holder.communicate()
    build_cache("Llama", cache)
    assert set(contents(cache)) == set(FILES)


def test_an_older_builder_of_the_process_writes_no_more(tmp_path):
    """As when a cell of a notebook that was interrupted runs again."""
    data, newer = rows_of("Llama"), []

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, i):
            newer.append(FolderOwner(tmp_path, "cache_teacher"))
            return data

    with pytest.raises(FolderInUseError, match="newer user"):
        build_cache("Llama", tmp_path, data=Batches())
    newer[0].release()
