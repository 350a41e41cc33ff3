"""Settings shared by the whole suite: all of it runs on PyTorch, part of it on all."""

import gc
import importlib.metadata
import os
import signal
import sys
import tempfile

# `run.sh` starts the suites in the background, where a shell ignores Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The suite compiles many small programs and runs each once or twice.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# On a GPU JAX would round the factors of float32 products to TensorFloat-32.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
_jaxlib = importlib.metadata.version("jaxlib")
if os.environ["KERAS_BACKEND"] == "jax" and _jaxlib.startswith("0.10."):
    # Without the first, compiling takes twice as long; without the second, each program
    # is cut into parts that are compiled one by one. Only for the version that is known
    # to have them: an unknown flag ends the process. What the user has set stays.
    _flags = os.environ.get("XLA_FLAGS", "").split()
    _names = {flag.split("=")[0] for flag in _flags}
    for _flag in (
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ):
        if _flag.split("=")[0] not in _names:
            _flags.append(_flag)
    os.environ["XLA_FLAGS"] = " ".join(_flags)
# And many of them are the same program, made anew by the next test: found again in a
# cache, they are compiled once. It lasts for one run, where none is given that stays
# (`run.sh` does); its keys hold the programs, the flags, and JAX's version.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="keras_betakd_jax_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import keras
import pytest
from precision import compiles_float16

# The same few examples everywhere, however slow the machine; on demand, many others.
_common = {
    "database": None,
    "deadline": None,
    "suppress_health_check": [
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
}
hypothesis.settings.register_profile(
    "suite", max_examples=2, derandomize=True, **_common
)
# Not shrunk: with so many numbers an example that fails takes minutes to shrink.
hypothesis.settings.register_profile(
    "nightly", max_examples=64, phases=[hypothesis.Phase.generate], **_common
)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser):
    parser.addoption(
        "--everywhere",
        action="store_true",
        help="on JAX and TensorFlow, run what is for PyTorch alone, too",
    )
    parser.addoption(
        "--part",
        default="1/1",
        help="the tests of every Nth file: 1/2 and 2/2 together are all",
    )


def pytest_collection_modifyitems(config, items):
    """Deselects the files of other parts, and what is for PyTorch alone elsewhere."""
    number, count = map(int, config.getoption("--part").split("/"))
    files = sorted({str(item.path) for item in items})[number - 1 :: count]
    _keep(config, items, lambda item: str(item.path) in files)
    if keras.backend.backend() == "torch" or config.getoption("--everywhere"):
        return
    _keep(config, items, _is_of_this_backend)


def _is_of_this_backend(item):
    """Whether a test is for JAX, or for TensorFlow, too, by its marks."""
    one = item.get_closest_marker("one_of_two")
    if one is not None and one.args[0] != keras.backend.backend():
        return False
    is_marked = item.get_closest_marker("backends") is not None
    return is_marked and item.get_closest_marker("pytorch") is None


def _keep(config, items, chosen):
    config.hook.pytest_deselected(items=[x for x in items if not chosen(x)])
    items[:] = [item for item in items if chosen(item)]


def pytest_report_header(config):
    return f"keras {keras.__version__}, backend {keras.config.backend()}"


def pytest_terminal_summary(terminalreporter):
    """Reports how many random examples the fuzz tests checked."""
    if "fuzz_cases" in sys.modules:
        held = sys.modules["fuzz_cases"].EXAMPLES
        terminalreporter.write_line(f"{sum(held.values())} fuzz examples: {dict(held)}")


@pytest.fixture(autouse=True)
def short_collections():
    """Takes what is there before a test out of the garbage collector's sight.

    Keras collects garbage for each layer that it quantises and after each load. Each
    time it looked at every object of every library and test: for 0.2 s at the start of
    a run, for seconds at its end. What tests leave behind is collected first, where it
    is much.
    """
    if gc.get_count()[2] > 2:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def graphs_where_they_matter(request):
    """On TensorFlow, traces graphs in tests marked `traced` only.

    Tracing a step takes about 8 s there, most of the time of the suite. The other tests
    run the same operations eagerly.
    """
    traced = request.node.get_closest_marker("traced")
    if keras.backend.backend() != "tensorflow" or traced:
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(autouse=True)
def float16_where_it_compiles(request):
    """Skips what computes in float16 where the compiler has no code for it."""
    case = getattr(request.node, "callspec", None)
    values = [] if case is None else case.params.values()
    half = any(value in ("float16", "mixed_float16") for value in map(str, values))
    half = half or request.node.get_closest_marker("float16")
    if half and not compiles_float16():
        pytest.skip("XLA does not compile float16 for this processor")


@pytest.fixture(autouse=True)
def clean_keras_state():
    """Seeds every test alike, and restores the global dtype policy afterwards."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
