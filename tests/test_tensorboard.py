"""TensorBoard through Keras' own callback: every energy and beta, as in History."""

import keras
import pytest
from plain_models import ConstantEnergy, linear_model, token_batch

from keras_betakd import BetaKDDistiller, ForwardKLEnergy, TaskBeta


def scalars(folder):
    """`{tag: [value of each epoch]}` of the event files in a folder."""
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    return {
        tag: [
            float(tensor_util.make_ndarray(event.tensor_proto))
            for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }


def test_every_energy_and_beta_is_written_with_its_value(tmp_path):
    distiller = BetaKDDistiller(
        linear_model(1),
        linear_model(2),
        {"kl": ForwardKLEnergy(), "constant": ConstantEnergy()},
        TaskBeta(),
        task_beta=True,
    )
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    x, y, weight = token_batch()
    history = distiller.fit(
        x,
        y,
        sample_weight=weight,
        batch_size=2,
        epochs=2,
        verbose=0,
        validation_data=(x, y, weight),
        callbacks=[keras.callbacks.TensorBoard(tmp_path)],
    ).history
    names = ["loss", "task_loss", "objective", "accuracy", "task_beta"]
    names += ["kl", "kl_beta", "constant", "constant_beta"]
    written = {"train": scalars(tmp_path / "train")}
    written["validation"] = scalars(tmp_path / "validation")
    for part, prefix in (("train", ""), ("validation", "val_")):
        for name in names:
            found = written[part].get(f"epoch_{name}")
            assert found is not None, f"{part} has {sorted(written[part])}, not {name}"
            assert found == pytest.approx(history[prefix + name]), (part, name)
