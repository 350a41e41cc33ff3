"""JAX: models that were made under another distribution than the current one.

Run as a script by the test, with four devices.
"""

import os
import subprocess
import sys

import keras
import pytest

if keras.backend.backend() == "jax":

    @pytest.mark.backends
    def test_models_made_before_the_distribution_are_named():
        """XLA's own error named neither, and left the models without values."""
        flags = os.environ.get("XLA_FLAGS", "")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=4",
        }
        command = [sys.executable, __file__]
        run = subprocess.run(command, env=environment, capture_output=True, timeout=300)
        assert run.returncode == 0, run.stderr[-5000:].decode()


def main():
    import numpy as np
    from plain_models import linear_model, token_batch

    from keras_betakd import BetaKDDistiller, ForwardKLEnergy, TAIDEnergy

    devices = keras.distribution.list_devices()
    current = keras.distribution.set_distribution

    def spread(some):
        current(keras.distribution.DataParallel(devices=some))

    def made(teacher=None, student=None, energy=None, optimizer="sgd"):
        teacher = teacher or linear_model(0)
        student = student or linear_model(1)
        distiller = BetaKDDistiller(teacher, student, energy or ForwardKLEnergy())
        distiller.compile(optimizer=optimizer)
        return distiller

    x, y, weight = token_batch()
    before = linear_model(0)
    energy, optimizer = TAIDEnergy(total_steps=9), keras.optimizers.SGD(0.1)
    alone = made()
    spread(devices)
    for part, arguments in {
        "teacher": {"teacher": before},
        "student": {"student": before},
        "energies": {"energy": energy},
        "optimizer": {"optimizer": optimizer},
    }.items():
        message = f"the {part} are not on .*`keras.distribution.set_distribution` first"
        with pytest.raises(ValueError, match=message):
            made(**arguments)
    for step in (
        lambda: alone.fit(x, y, sample_weight=weight, verbose=0),
        lambda: alone.evaluate(x, y, sample_weight=weight, verbose=0),
        lambda: alone.predict(x, verbose=0),
        lambda: alone.train_on_batch(x, y, weight),
    ):
        with pytest.raises(ValueError, match="on cpu:0; the current .* has cpu:0, cpu"):
            step()
    together = made()
    expected = together.evaluate(x, y, sample_weight=weight, verbose=0)
    for some in (devices[:2], devices[::-1]):  # changed, and in another order
        spread(some)
        with pytest.raises(ValueError, match="the teacher are not on"):
            together.evaluate(x, y, sample_weight=weight, verbose=0)
    two = linear_model(0)
    current(None)
    for distiller in (alone, together):  # one device again; all four still
        received = distiller.evaluate(x, y, sample_weight=weight, verbose=0)
        np.testing.assert_allclose(received, expected, rtol=1e-5)
        distiller.fit(x, y, sample_weight=weight, verbose=0)
    with pytest.raises(ValueError, match="student are not on the devices of the teach"):
        made(teacher=two, student=together.student)


if __name__ == "__main__":
    main()
