"""Settings shared by the whole suite, which runs once per backend."""

import importlib.metadata
import os
import sys
import tempfile

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The suite compiles many small programs and runs each once or twice.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# On a GPU JAX would round the factors of float32 products to TensorFloat-32.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
_jaxlib = importlib.metadata.version("jaxlib")
if os.environ["KERAS_BACKEND"] == "jax" and _jaxlib.startswith("0.10."):
    # Halves the time to compile. Only for the version that is known to have it: an
    # unknown flag ends the process.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# And many of them are the same program, made anew by the next test: found again in a
# cache that lasts for one run, they are compiled once.
_cache = tempfile.TemporaryDirectory(prefix="keras_betakd_jax_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import keras
import pytest

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
        "--everywhere", action="store_true", help="run what is marked `once`, too"
    )


def pytest_collection_modifyitems(config, items):
    """Leaves what is marked `once` to the suite that runs on PyTorch."""
    if keras.backend.backend() == "torch" or config.getoption("--everywhere"):
        return
    once = [item for item in items if item.get_closest_marker("once")]
    config.hook.pytest_deselected(items=once)
    items[:] = [item for item in items if not item.get_closest_marker("once")]


def pytest_report_header(config):
    return f"keras {keras.__version__}, backend {keras.config.backend()}"


def pytest_terminal_summary(terminalreporter):
    """Says how many random examples held, where the fuzz tests ran."""
    if "fuzz_cases" in sys.modules:
        held = sys.modules["fuzz_cases"].EXAMPLES
        terminalreporter.write_line(f"{sum(held.values())} fuzz examples: {dict(held)}")


@pytest.fixture(autouse=True)
def only_first_case_traced(request):
    """On TensorFlow, traces the first case of a parametrised test, and no other.

    Tracing a step takes some 8 s there, which was most of the time of the suite. The
    other cases run the same operations one by one; unless they are marked `traced`.
    """
    case = getattr(request.node, "callspec", None)
    traced = request.node.get_closest_marker("traced")
    traced = traced or request.config.getoption("--everywhere")
    if keras.backend.backend() != "tensorflow" or case is None or traced:
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(any(case.indices.values()))
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(autouse=True)
def clean_keras_state():
    """Seed every test alike, and give back a global dtype policy it changed."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
