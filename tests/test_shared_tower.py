"""One frozen vision tower in both models: it computes once."""

import keras
import numpy as np
import pytest
from marks import kept
from tiny_families import FAMILIES, tiny_mobilevlm
from tiny_models import tiny_gemma3, tiny_pali_gemma, vqa_records

from keras_betakd import BetaKDDistiller, CosineProbsEnergy, TaskBeta
from keras_betakd.distillation.shared_tower import computed_once, same_frozen_tower
from keras_betakd.models.views import view_of

pytestmark = pytest.mark.backends

EXAMPLES = 3


def pair(make=tiny_gemma3, same=True, **kwargs):
    keras.utils.set_random_seed(5)
    teacher, student = make(width=12), make()
    if same:
        ours, theirs = (view_of(m).vision_tower()[0] for m in (student, teacher))
        ours.set_weights(theirs.get_weights())
    distiller = BetaKDDistiller(
        teacher, student, CosineProbsEnergy(), TaskBeta(), **kwargs
    )
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    return distiller


def counted_calls(layer):
    """A list that grows by one each time `layer` computes."""
    calls, compute = [], layer.call

    def call(*args, **kwargs):
        calls.append(1)
        return compute(*args, **kwargs)

    layer.call = call
    return calls


def runs_of(distiller):
    """Whether an evaluation runs the tower of the student, and of the teacher."""
    towers = [
        view.vision_tower()[0]
        for view in (distiller.student_view, distiller.teacher_parts[0].view)
    ]
    layers = [tower.patch_embedding for tower in map(_embeddings, towers)]
    calls = [counted_calls(layer) for layer in layers]
    distiller.evaluate(vqa_records(EXAMPLES), batch_size=EXAMPLES, verbose=0)
    return [len(c) > 0 for c in calls]


def _embeddings(tower):
    encoder = getattr(tower, "encoder", None)
    return encoder.embedding if encoder else getattr(tower, "vision_embeddings", tower)


TOWERS = [tiny_gemma3, tiny_pali_gemma, tiny_mobilevlm, FAMILIES["Qwen3VL"]]


@pytest.mark.parametrize("make", kept(TOWERS, tiny_gemma3))
def test_the_same_tower_computes_once(make):
    assert runs_of(pair(make)) == [False, True]  # the teacher runs first
    assert runs_of(pair(make, same=False)) == [True, True]


def test_a_tower_that_trains_is_not_shared():
    assert runs_of(pair(freeze=None)) == [True, True]


def test_training_gives_the_same_numbers_as_with_two_towers():
    shared, apart = pair(), pair()
    records = vqa_records(EXAMPLES)
    # Images for each model by itself: no longer known to be the same.
    x, y, weights = apart.preprocessor(records)
    x["teacher"]["images"] = x["student"]["images"].copy()
    for _ in range(2):
        ours = shared.train_on_batch(records, return_dict=True)
        theirs = apart.train_on_batch(x, y, weights, return_dict=True)
    assert shared.teacher_parts[0].tower.shared
    for name, value in theirs.items():
        assert float(ours[name]) == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.traced
@pytest.mark.parametrize("entry", kept(["train_on_batch", "evaluate"], "evaluate"))
@pytest.mark.one_of_two("jax")
def test_weights_loaded_later_part_the_towers(entry):
    """What was compiled for one tower would keep giving both models its features."""
    distiller, records = pair(), vqa_records(EXAMPLES)
    distiller.test_on_batch(records)
    distiller.train_on_batch(records)
    tower = distiller.student_view.vision_tower()[0]
    tower.set_weights([w + 0.1 for w in tower.get_weights()])
    expected = pair(same=False)
    for name in ("student", "teacher"):
        weights = getattr(distiller, name).get_weights()
        getattr(expected, name).set_weights(weights)
    results = [
        getattr(model, entry)(records, return_dict=True)
        for model in (distiller, expected)
    ]
    name = "cosine_probs"
    assert float(results[0][name]) == pytest.approx(float(results[1][name]), rel=1e-5)


def test_the_layers_are_whole_again_afterwards():
    distiller = pair()
    views = distiller.student_view, distiller.teacher_parts[0].view
    assert same_frozen_tower(*views)
    towers = [view.vision_tower()[0] for view in views]
    images = np.zeros((1, 1, 16, 16, 3), "float32")
    with pytest.raises(RuntimeError), computed_once(*towers):
        first = towers[0](images)
        assert towers[1](images) is first
        raise RuntimeError
    assert all("call" not in vars(tower) for tower in towers)
