"""Run by `wheel.sh` in a clean environment: the README's first lines, in miniature.

Not a pytest module: it must run where only the wheel, keras-hub and one backend are.
"""

import pathlib
import sys
import tempfile

import keras
import keras_hub
import numpy as np
from PIL import Image
from tiny_models import random_image, tiny_gemma3

import keras_betakd
from keras_betakd import BetaKDDistiller, CosineProbsEnergy, InstanceBeta, TaskBeta
from keras_betakd.models import load_model, save_preset


def check_installation(backend):
    assert keras.backend.backend() == backend, keras.backend.backend()
    package = pathlib.Path(keras_betakd.__file__).parent
    assert package.is_relative_to(sys.prefix), f"not the installed wheel: {package}"
    assert (package / "py.typed").exists(), "the wheel is not typed"


def check_logs(distiller, history):
    assert int(distiller.optimizer.iterations) == 2
    logs = history.history
    assert all(np.isfinite(value[-1]) for value in logs.values()), logs
    return logs


def fit_plain_models():
    """Two steps of a pair that keras-hub knows nothing of."""
    teacher, student = (
        keras.Sequential([keras.Input((3, 4)), keras.layers.Dense(5)]) for _ in range(2)
    )
    distiller = BetaKDDistiller(teacher, student, CosineProbsEnergy(), TaskBeta())
    distiller.compile(optimizer=keras.optimizers.Adam(0.01))
    x = np.random.default_rng(0).normal(size=(8, 3, 4)).astype("float32")
    y = np.zeros((8, 3), "int32")
    return check_logs(distiller, distiller.fit(x, y, batch_size=4, verbose=0))


def fit_presets(folder):
    """The README's first lines: presets in, two steps, an answer, a preset out."""
    tiny_gemma3(width=16, num_layers=2).save_to_preset(str(folder / "teacher"))
    tiny_gemma3().save_to_preset(str(folder / "student"))
    image = folder / "image.png"
    Image.fromarray(random_image(0)).save(image)
    images = [image, Image.open(image), random_image(1), random_image(2)]
    prompts = ["<image>\nwhat color is it?"] * 4
    responses = ["red", "blue", "green", "teal"]

    teacher = load_model(str(folder / "teacher"))
    student = load_model(str(folder / "student"))
    distiller = BetaKDDistiller(
        teacher,
        student,
        energies=CosineProbsEnergy(),
        beta=InstanceBeta(),
        task_beta=True,
    )
    distiller.compile(optimizer=keras.optimizers.AdamW(1e-3))
    records = {"images": images, "prompts": prompts, "responses": responses}
    logs = check_logs(distiller, distiller.fit(records, epochs=2, verbose=0))
    question = {"images": image, "prompts": prompts[0]}
    answer = distiller.generate(question, strip_prompt=True)
    assert isinstance(answer, str), answer

    save_preset(distiller.student, str(folder / "my_student"))
    loaded = keras_hub.models.CausalLM.from_preset(str(folder / "my_student"))
    for saved, read in zip(student.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (saved, read)))
    return logs


def main(backend):
    check_installation(backend)
    sys.stdout.write(f"{backend}, plain models: two steps, {fit_plain_models()}\n")
    with tempfile.TemporaryDirectory() as folder:
        logs = fit_presets(pathlib.Path(folder))
    sys.stdout.write(f"{backend}, presets: two steps, {logs}\n")


if __name__ == "__main__":
    main(sys.argv[1])
