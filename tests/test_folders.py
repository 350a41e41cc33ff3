"""Names inside a folder, one owner of a folder, one draft for each writer.

The processes here import the two modules alone, which takes no Keras.
"""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from keras_betakd.data import load_llava
from keras_betakd.files import atomic_write, read_json, read_jsonl
from keras_betakd.folders import LOCK_NAME, FolderInUseError, FolderOwner, inside

ROOT = pathlib.Path(__file__).parent.parent

PREAMBLE = f"""
import os, pathlib, random, sys, time, types
package = types.ModuleType("keras_betakd")
package.__path__ = [{str(ROOT / "keras_betakd")!r}]
sys.modules["keras_betakd"] = package
from keras_betakd.files import atomic_write
from keras_betakd.folders import FolderInUseError, FolderOwner
folder, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
def pause():
    time.sleep(rng.random() * 0.004)
"""

# Writes one file again and again, in pieces. Its letter stands in every byte of it.
WRITER = (
    PREAMBLE
    + """
letter = b"ABC"[seed % 3 : seed % 3 + 1]
for _ in range(100):
    with atomic_write(folder / "state") as draft, open(draft, "wb") as file:
        for _ in range(4):
            file.write(letter * 5000)
            file.flush()
            pause()
"""
)

# Counts in a file that only the owner of the folder may read and write.
OWNER = (
    PREAMBLE
    + """
path = folder / "count"
while not (folder / "stop").exists():
    try:
        with FolderOwner(folder, "test"):
            count = int(path.read_text()) if path.exists() else 0
            pause()
            with atomic_write(path) as draft:
                draft.write_text(str(count + 1))
            with open(folder / f"log_{os.getpid()}", "a") as log:
                log.write("x")
    except FolderInUseError:
        pass
    pause()
"""
)


def started(code, folder, seed):
    return subprocess.Popen([sys.executable, "-c", code, str(folder), str(seed)])


def test_two_writers_of_one_file_always_leave_a_whole_one(tmp_path):
    """Writers had one draft in common: half a file of one replaced a whole one, and the
    error of the other said that nothing had been touched. 200 writes here."""
    path = tmp_path / "state"
    writers = [started(WRITER, tmp_path, seed) for seed in range(2)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 20000 and len(set(content)) == 1
            seen.add(content[0])
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen == set(b"AB")
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_killed_writer_leaves_the_last_whole_file_and_no_draft_for_long(tmp_path):
    path, rng = tmp_path / "state", random.Random(0)
    for seed in range(3):
        writer = started(WRITER, tmp_path, seed)
        while not path.exists() or path.read_bytes()[:1] != b"ABC"[seed % 3 :][:1]:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert len(path.read_bytes()) == 20000
    with atomic_write(path) as draft:
        draft.write_text("end")
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    """Processes that count in turns lose no count, also where one of them is killed."""
    path = tmp_path / "count"
    owners = [started(OWNER, tmp_path, seed) for seed in range(3)]
    rng, kills = random.Random(1), 0
    while not path.exists() or int(path.read_text()) < 200:
        time.sleep(0.05)
        if path.exists() and kills < 2 and rng.random() < 0.2:
            owners[0].kill()
            owners[0].wait()
            owners = [*owners[1:], started(OWNER, tmp_path, 10 + kills)]
            kills += 1
    (tmp_path / "stop").touch()
    assert [owner.wait() for owner in owners] == [0, 0, 0]
    logged = sum(p.stat().st_size for p in tmp_path.glob("log_*"))
    # A kill between the two writes loses the line of the log, not the count.
    assert logged <= int(path.read_text()) <= logged + kills
    assert not (tmp_path / LOCK_NAME).exists()


def test_another_process_is_refused_and_named(tmp_path):
    code = PREAMBLE + "owner = FolderOwner(folder, 'a test'); print('x', flush=True); "
    holder = subprocess.Popen(
        [sys.executable, "-c", code + "time.sleep(60)", str(tmp_path), "0"],
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    with pytest.raises(FolderInUseError, match=rf"process {holder.pid} .*a test"):
        FolderOwner(tmp_path, "test")
    holder.kill()
    holder.wait()
    with FolderOwner(tmp_path, "test") as owner:
        owner.expect()
    holder.stdout.close()


def test_a_newer_owner_in_one_process_takes_over(tmp_path):
    """As when a cell of a notebook that was interrupted runs again."""
    older, newer = FolderOwner(tmp_path, "test"), FolderOwner(tmp_path, "test")
    newer.expect()
    with pytest.raises(FolderInUseError, match="newer user"):
        older.expect()
    older.release()
    newer.expect()
    newer.release()
    with pytest.raises(FolderInUseError, match="released"):
        newer.expect()


def test_a_folder_that_was_removed_and_made_again_is_locked_anew(tmp_path):
    folder = tmp_path / "folder"
    FolderOwner(folder, "test")
    (folder / LOCK_NAME).unlink()
    folder.rmdir()
    with FolderOwner(folder, "test"):
        assert (folder / LOCK_NAME).exists()


def test_a_link_with_the_name_of_a_draft_or_lock_is_not_followed(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / ".part.state").symlink_to(target)
    with atomic_write(tmp_path / "state") as draft:
        draft.write_text("new")
    (tmp_path / LOCK_NAME).symlink_to(target)
    with pytest.raises(OSError):
        FolderOwner(tmp_path, "test")
    assert target.read_text() == "precious"


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/etc/hosts", "", " ", ".", None, 5, ["a"], "a\0b", b"a"],
)
def test_a_name_that_leads_outside_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        inside(tmp_path, name)


def test_links_stay_inside(tmp_path):
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.png").touch()
    (tmp_path / "secret.png").touch()
    (folder / "in.png").symlink_to(folder / "a" / "1.png")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "out").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    assert inside(folder, "in.png") == folder / "in.png"
    assert inside(tmp_path / "link", "a/1.png").exists()
    assert inside(folder, "a b..c.png") == folder / "a b..c.png"
    for name in ("out.png", "out/secret.png"):
        with pytest.raises(ValueError, match="leads out"):
            inside(folder, name)


def test_the_cache_of_hugging_face_keeps_its_files_beside_a_snapshot(tmp_path):
    blob = tmp_path / "models--a--b" / "blobs" / "0123"
    folder = tmp_path / "models--a--b" / "snapshots" / "main" / "images"
    for parent in (blob.parent, folder):
        parent.mkdir(parents=True)
    blob.touch()
    (folder / "1.png").symlink_to(os.path.relpath(blob, folder))
    assert inside(folder, "1.png").exists()


def test_a_key_that_stands_twice_is_refused(tmp_path):
    """The last one won, in silence."""
    path = tmp_path / "a.json"
    path.write_text('{"1": {"answer": 0, "answer": 1}}')
    with pytest.raises(ValueError, match=r"a\.json.*'answer' stands twice"):
        read_json(path)
    path.write_text('{"a": 1}\n{"a": 1, "a": 2}\n')
    with pytest.raises(ValueError, match="line 2.*'a' stands twice"):
        read_jsonl(path)


def test_a_record_with_a_key_that_stands_twice_is_refused(tmp_path):
    """Both forms of LLaVA's files: the second image replaced the first, in silence."""
    turns = (
        '"conversations": [{"from": "human", "value": "q"}, '
        '{"from": "gpt", "value": "a"}]'
    )
    record = f'{{"id": "1", "id": "2", {turns}}}'
    for name, text in (("a.json", f"[{record}]"), ("a.jsonl", record)):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name}.*'id' stands twice"):
            load_llava(tmp_path / name)
