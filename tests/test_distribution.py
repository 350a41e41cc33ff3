"""Several devices and several processes give the results of one device."""

import json
import os
import socket
import subprocess
import sys

import distribution_cases
import keras
import pytest

pytestmark = [pytest.mark.backends, pytest.mark.traced]

SCRIPT = distribution_cases.__file__
BACKEND = keras.backend.backend()
EIGHT_DEVICES = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)


@pytest.fixture(scope="module")
def expected():
    """The results of each case on one device."""
    names = {
        "tensorflow": ("plain",),
        "jax": ("plain", "images"),
        "torch": ("plain", "images"),
    }[BACKEND]
    return {
        name: distribution_cases.trained(getattr(distribution_cases, name))
        for name in names
    }


def start(folder, how, launcher=(), **environment):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    command = [sys.executable, *launcher, SCRIPT, str(folder), how]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(*processes):
    try:
        outputs = [p.communicate(timeout=1200)[0].decode() for p in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-5000:]


def read(folder, name):
    with open(os.path.join(folder, f"{name}.json")) as file:
        return json.load(file)


if BACKEND != "torch":

    def test_devices_of_one_process(tmp_path, expected):
        """JAX: eight, each with rows, then two times four that share the weights.
        TensorFlow: two that mirror them."""
        finish(start(tmp_path, "devices", XLA_FLAGS=EIGHT_DEVICES))
        for name, values in expected.items():
            distribution_cases.check_same(read(tmp_path, name), values)


if BACKEND == "jax":

    @pytest.mark.pytorch  # with `--everywhere` alone: answering compiles for long
    def test_answers_on_devices_of_one_process(tmp_path):
        finish(start(tmp_path, "answers", XLA_FLAGS=EIGHT_DEVICES))
        expected = distribution_cases.trained(distribution_cases.answers)
        distribution_cases.check_same(read(tmp_path, "answers"), expected)

    def test_two_processes(tmp_path, expected):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        finish(
            *(
                start(
                    tmp_path,
                    "process",
                    KERAS_DISTRIBUTION_JOB_ADDRESSES=address,
                    KERAS_DISTRIBUTION_NUM_PROCESSES="2",
                    KERAS_DISTRIBUTION_PROCESS_ID=str(rank),
                )
                for rank in range(2)
            )
        )
        for rank in range(2):
            received = read(tmp_path, f"plain{rank}")
            distribution_cases.check_same(received, expected["plain"])


if BACKEND == "torch":

    def test_two_processes(tmp_path, expected):
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
        finish(start(tmp_path, "process", launcher))
        for rank in range(2):
            for name, values in expected.items():
                received = read(tmp_path, f"{name}{rank}")
                distribution_cases.check_same(received, values)
