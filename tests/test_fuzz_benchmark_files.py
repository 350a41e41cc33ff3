"""Damaged question and answer files are read rightly or refused by name, never else."""

import json
import pathlib

import pytest
from benchmark_folders import RIGHT, write_benchmark
from fuzz_cases import EXAMPLES, TOGETHER
from hypothesis import given
from hypothesis import strategies as st

from keras_betakd.evaluation import run
from keras_betakd.evaluation.benchmarks.registry import BENCHMARKS
from keras_betakd.evaluation.journal import Journal

NUM = 4
FILES = {
    "scienceqa": ["problems.json", "pid_splits.json"],
    "gqa": ["llava_gqa_testdev_balanced.jsonl", "testdev_balanced_questions.json"],
    "textvqa": ["llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json"],
    "pope": ["llava_pope_test.jsonl", "coco/coco_pope_popular.json"],
    "mme": [
        "MME_Benchmark_release_version/OCR/0001.txt",
        "MME_Benchmark_release_version/scene/questions_answers_YN/0000.txt",
    ],
    "mmbench": ["mmbench_dev_20230712.tsv"],
}
VALUES = (
    'null true NaN Infinity -1 0 7 1e999 [] {} [null] "" "x" [[[]]] {"a":{}} '
    '"\\ud800" 123456789012345678901234567890'
).split(" ")
PIECES = [
    *"\"'\\,:{}[]\t\n\r\0 ",
    *("\ufeff", "\u2028", "\ud800", "é", "\r\n", "\n\n", '""', "<image>", "../", "0"),
    *VALUES,
]
PLACES = st.floats(0, 1, exclude_max=True)
BYTES = [b"\xff", b"\xc3", b"\xfe\xff", b"\0\0", b"\x80"]
INSERTIONS = st.tuples(st.just("insert"), PLACES, st.sampled_from(PIECES))
MUTATIONS = st.one_of(
    INSERTIONS,
    st.tuples(st.just("bytes"), PLACES, st.sampled_from(BYTES)),
    st.tuples(st.just("delete"), PLACES, st.integers(1, 60)),
    st.tuples(st.just("flip"), PLACES, st.integers(0, 7)),
    st.tuples(st.just("truncate"), PLACES, st.none()),
    st.tuples(st.just("repeat line"), PLACES, st.none()),
    st.tuples(st.just("drop line"), PLACES, st.none()),
    st.tuples(st.just("join lines"), PLACES, st.none()),
    st.tuples(st.just("value"), PLACES, st.sampled_from(VALUES)),
    st.tuples(st.just("key"), PLACES, st.sampled_from(["x", "id", "text", "image"])),
    st.tuples(st.just("encode"), st.just(0), st.sampled_from(["utf-16", "utf-32"])),
)


def mutated(data, mutation):
    """The bytes of a file after one mutation."""
    kind, place, what = mutation
    start = int(place * len(data))
    if kind in ("insert", "bytes"):
        what = what.encode("utf-8", "surrogatepass") if kind == "insert" else what
        return data[:start] + what + data[start:]
    if kind == "delete":
        return data[:start] + data[start + what :]
    if kind == "flip":
        flipped = bytes([data[start] ^ 1 << what]) if data else b""
        return data[:start] + flipped + data[start + 1 :]
    if kind == "truncate":
        return data[:start]
    if kind == "encode":
        return data.decode("utf-8", "replace").encode(what)
    if kind in ("value", "key"):
        return with_other_part(data, place, what, is_key=kind == "key")
    lines = data.splitlines(keepends=True) or [b""]
    number = int(place * len(lines))
    if kind == "join lines":
        lines[number] = lines[number].rstrip(b"\r\n")
    else:
        count = 2 if kind == "repeat line" else 0
        lines[number : number + 1] = lines[number : number + 1] * count
    return b"".join(lines)


def with_other_part(data, place, what, is_key):
    """The bytes with another JSON value, or key, in the place of one of theirs."""
    parts = data.split(b'": ')
    number = int(place * (len(parts) - 1))
    if len(parts) < 2:
        return data
    if is_key:
        before = parts[number].rpartition(b'"')[0]
        parts[number] = before + b'"' + what.encode()
    else:
        after = parts[number + 1]
        try:
            text = after.decode()
            _, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            text, end = after.decode("utf-8", "replace"), 1
        parts[number + 1] = what.encode() + text[end:].encode()
    return b'": '.join(parts)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return {name: write_benchmark(name, folder / name, NUM) for name in BENCHMARKS}


def named(error, name, folder):
    """Whether an error is a documented one that names a file of the benchmark."""
    if isinstance(error, OSError):
        return str(folder) in str(error)
    names = [pathlib.Path(file).name for file in FILES[name]]
    # MME and POPE have more files of the kind.
    names += ["coco_pope_", ".txt'"]
    return type(error) is ValueError and any(n in str(error) for n in names)


CASES = [(name, file) for name, files in FILES.items() for file in files]


@pytest.mark.parametrize("name, file", CASES)
@given(
    st.lists(st.lists(MUTATIONS, min_size=1, max_size=3), min_size=1, max_size=TOGETHER)
)
def test_damaged_question_files(name, file, folders, cases):
    benchmark, path = BENCHMARKS[name], folders[name] / file
    intact = path.read_bytes()
    for mutations in cases:
        data = intact
        for mutation in mutations:
            data = mutated(data, mutation)
        path.write_bytes(data)
        try:
            questions = run.load_questions(benchmark, folders[name])
        except Exception as error:
            assert named(error, name, folders[name]), (mutations, error)
        else:
            expect_usable(benchmark, questions)
        finally:
            path.write_bytes(intact)
        EXAMPLES["damaged question files"] += 1


def expect_usable(benchmark, questions):
    """What was read can be prompted, answered and scored, or is refused."""
    assert len({question.id for question in questions}) == len(questions)
    try:
        run.check_questions(benchmark, questions)
        answers = {q.id: RIGHT[benchmark_name(benchmark)](q) for q in questions}
        benchmark.scores(questions, answers)
    except (ValueError, OSError) as error:
        assert str(error)


def benchmark_name(benchmark):
    return next(name for name, found in BENCHMARKS.items() if found is benchmark)


@pytest.mark.parametrize("name", ["mmbench", "gqa", "textvqa", "pope"])
@given(st.lists(INSERTIONS, min_size=1, max_size=TOGETHER))
def test_nothing_that_is_put_in_takes_a_question_out(name, folders, cases):
    """One quotation mark left 1 of 8 rows of MMBench."""
    path = folders[name] / FILES[name][0]
    intact = path.read_bytes()
    expected = len(BENCHMARKS[name].load(folders[name]))
    for mutation in cases:
        path.write_bytes(mutated(intact, mutation))
        try:
            assert len(BENCHMARKS[name].load(folders[name])) == expected, mutation
        except (ValueError, OSError) as error:
            assert named(error, name, folders[name]), (mutation, error)
        finally:
            path.write_bytes(intact)
        EXAMPLES["insertions"] += 1


@pytest.fixture(scope="module")
def answered(folders, tmp_path_factory):
    """A run's folder for each benchmark, its questions, and their answers."""
    found = {}
    for name, benchmark in BENCHMARKS.items():
        questions = benchmark.load(folders[name])
        lines = [
            {
                **benchmark.line(question, RIGHT[name](question)),
                "answer_id": question.id,
                "metadata": {"max_new_tokens": 4},
                "model_id": "any",
            }
            for question in questions
        ]
        journal = Journal(tmp_path_factory.mktemp("run") / name, {})
        journal.append(lines)
        getattr(journal, "close", lambda: None)()
        found[name] = (
            journal.folder,
            questions,
            {k["answer_id"]: k["text"] for k in lines},
        )
    return found


@pytest.mark.parametrize("name", BENCHMARKS)
@given(
    st.lists(st.lists(MUTATIONS, min_size=1, max_size=3), min_size=1, max_size=TOGETHER)
)
def test_damaged_answer_files(name, answered, cases):
    benchmark = BENCHMARKS[name]
    folder, questions, expected = answered[name]
    path = folder / "answers.jsonl"
    intact = path.read_bytes()
    for mutations in cases:
        data = intact
        for mutation in mutations:
            data = mutated(data, mutation)
        path.write_bytes(data)
        try:
            check_journal(folder, benchmark, questions, expected)
            path.write_bytes(data)
            check_teacher(path, benchmark, questions)
        finally:
            path.write_bytes(intact)
        EXAMPLES["damaged answer files"] += 1


def check_journal(folder, benchmark, questions, expected):
    journal = None
    try:
        journal = Journal(folder, {})
        answers = run.recorded_answers(journal.lines, benchmark, questions)
        journal.sort([question.id for question in questions])
    except (ValueError, OSError) as error:
        assert "answers.jsonl" in str(error), error
    else:
        assert set(answers) <= set(expected)
        for answer in answers.values():
            assert type(answer.text) is str and type(answer.room) is int
            assert answer.room > 0
    finally:
        if journal is not None:
            getattr(journal, "close", lambda: None)()


def check_teacher(path, benchmark, questions):
    try:
        answers = run.teacher_answers(path, benchmark, questions, questions)
    except (ValueError, OSError) as error:
        assert path.name in str(error), error
    else:
        outcomes = benchmark.outcomes(questions, answers)
        assert set(outcomes) <= {question.id for question in questions}
