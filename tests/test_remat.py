"""`remat=True`: the same numbers from blocks that keep no activations."""

import concurrent.futures
import contextlib

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from marks import kept
from test_families import LORA_LAYERS, K, model_of, records
from tiny_families import FAMILIES, VISION
from tiny_models import tiny_gemma3

import keras_betakd as kd
from keras_betakd.models import ModelView, view_of
from keras_betakd.models.remat import BlockRemat

COMPILED = ["Gemma3"]
FROZEN = ["MobileVLM", "Gemma3n"]  # by its backbone; a tower without such blocks
torch_only = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="counts what PyTorch saves"
)


def distiller_of(student, remat=True, teacher=None, energies=None, **kwargs):
    keras.utils.set_random_seed(0)
    teacher = teacher or model_of("Llama", 1)
    preprocessor = kd.DistillationPreprocessor(
        teacher.preprocessor, student.preprocessor, K
    )
    distiller = kd.BetaKDDistiller(
        *(teacher, student, energies or kd.ForwardKLEnergy(), kd.FixedBeta()),
        **{"preprocessor": preprocessor, "remat": remat, **kwargs},
    )
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    return distiller


def trained(distiller, rows, steps=2):
    """The losses of some steps, and all numbers of the student after them."""
    keras.utils.set_random_seed(1)
    losses = []
    for _ in range(steps):
        history = distiller.fit(rows, batch_size=2, verbose=0).history
        losses.append(history["loss"][0])
    return losses, [ops.convert_to_numpy(v) for v in distiller.student.variables]


def expect_same_training(make, rows, steps=2, tolerance=1e-6):
    """Without and with `remat`, which `make` is given; it returns a new distiller."""
    runs = []
    for remat in (False, True):
        distiller = make(remat)
        before = [ops.convert_to_numpy(v) for v in distiller.student.variables]
        runs.append(trained(distiller, rows, steps))
        assert any((a != b).any() for a, b in zip(before, runs[-1][1], strict=True))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=tolerance)
    for plain, found in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_allclose(found, plain, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.traced
@pytest.mark.backends
@pytest.mark.parametrize("name", kept(list(FAMILIES), *COMPILED))
def test_every_block_of_a_family_runs_again_and_a_step_is_the_same(name, monkeypatch):
    teacher, student = model_of(name, 1), model_of(name)
    start, ran = student.get_weights(), counted(monkeypatch)

    def make(remat):
        student.set_weights(start)
        return distiller_of(student, remat, teacher, freeze=None)

    expect_same_training(make, records(name), steps=1)
    blocks = view_of(student).blocks()
    assert len({id(block) for block in blocks}) == len(blocks)
    trains = [b for b in blocks if any(v.trainable for v in b.variables)]
    assert len(ran) == len(trains) > (name in VISION and name not in FROZEN)


def test_blocks_of_a_frozen_tower_do_not_run_again(monkeypatch):
    ran = counted(monkeypatch)
    student = tiny_gemma3(num_layers=3)
    trained(distiller_of(student, True, model_of("Gemma3", 1)), records("Gemma3"), 1)
    assert len(ran) == 3
    assert len(view_of(student).blocks()) == 4


def counted(monkeypatch):
    """A list that gets an item for each block that `keras.remat` is applied to."""
    ran, remat = [], keras.remat
    monkeypatch.setattr(keras, "remat", lambda run: ran.append(run) or remat(run))
    return ran


# What the backends do.


@contextlib.contextmanager
def saved_bytes():
    """Counts the bytes of what PyTorch saves for gradients, weights not included."""
    import torch

    found = {}

    def pack(x):
        if not isinstance(x, torch.nn.Parameter):
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield found


def bytes_saved(distiller, rows):
    x, _, _ = distiller.preprocessor(rows)
    with saved_bytes() as found:
        kept = distiller(x, training=True)  # so that no memory is used twice
        del kept
    return sum(found.values())


@torch_only
def test_activations_within_blocks_are_not_saved():
    rows = records("Llama")
    sizes = [
        bytes_saved(distiller_of(deep_llama(layers), remat), rows)
        for remat in (False, True)
        for layers in (2, 6)
    ]
    growth, with_remat = sizes[1] - sizes[0], sizes[3] - sizes[2]
    assert 0 < with_remat < growth / 10


@torch_only
def test_the_second_run_may_come_in_another_thread():
    """As on a GPU, where PyTorch runs the backward pass in threads of its own."""
    found = []
    for in_thread in (False, True):
        keras.utils.set_random_seed(0)
        model = Trunk(True, "mixed_bfloat16")
        loss = ops.sum(model(np.ones((4, 6), "float32"), training=True))
        if in_thread:
            with concurrent.futures.ThreadPoolExecutor() as pool:
                pool.submit(loss.backward).result()
        else:
            loss.backward()
        found.append([v.value.grad.numpy() for v in model.trainable_variables])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@torch_only
def test_the_teacher_saves_nothing():
    rows = records("Llama")
    sizes = [
        bytes_saved(distiller_of(model_of("Llama"), False, deep_llama(layers)), rows)
        for layers in (2, 6)
    ]
    assert sizes[0] == sizes[1]


def deep_llama(layers):
    model = model_of("Llama")
    config = {**model.backbone.get_config(), "num_layers": layers}
    backbone = keras_hub.models.LlamaBackbone.from_config(config)
    return keras_hub.models.LlamaCausalLM(backbone, model.preprocessor)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="counts what JAX keeps")
@pytest.mark.backends
def test_activations_within_blocks_are_not_kept_on_jax():
    sizes = [kept_bytes(layers, remat) for remat in (False, True) for layers in (2, 6)]
    growth, with_remat = sizes[1] - sizes[0], sizes[3] - sizes[2]
    assert 0 < with_remat < growth / 2  # weights and inputs of four blocks


def kept_bytes(layers, remat):
    """Of what a forward pass of a student keeps for its gradient, weights included."""
    import jax

    model = deep_llama(layers)
    ids = np.ones((2, 64), "int32")
    x = {"token_ids": ids, "padding_mask": ids}
    context = BlockRemat(view_of(model)).applied if remat else contextlib.nullcontext

    def pull_back(weights):
        def hidden(weights):
            with context():
                return model.backbone.stateless_call(weights, [], x, training=True)[0]

        return jax.vjp(hidden, weights)[1]

    weights = [v.value for v in model.backbone.trainable_variables]
    kept = jax.tree.leaves(jax.eval_shape(pull_back, weights))
    return sum(a.size * a.dtype.itemsize for a in kept)


# What a second run must not change.


@keras.saving.register_keras_serializable(package="tests")
class Branch(keras.layers.Layer):
    """A block with all that could go wrong: its call takes no `training`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(6, activation="tanh", dtype=self.dtype_policy)
        self.dropout = keras.layers.Dropout(0.5, seed=3, dtype=self.dtype_policy)

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.dense.build(shape)
        self.dropout.build(shape)

    def call(self, x, shared, mask=None, places=None):
        assert mask is None
        y = self.dropout(self.dense(x) * self.scale) + shared[0]
        self.dense.add_loss(ops.mean(ops.square(ops.cast(y, "float32"))))
        return x + y * ops.cast(places, y.dtype), None


class Branches(keras.layers.Layer):
    """Runs its two blocks, the first of them twice."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Branch(dtype=self.dtype_policy) for _ in range(2)]
        for block in self.blocks:
            block.build((None, 6))

    def call(self, x, training=None):
        places = ops.arange(6, dtype="int32") % 2
        for block in (*self.blocks, self.blocks[0]):
            x, nothing = block(x, (x * 0.5,), places=places)
            assert nothing is None
        return x


class Trunk(keras.Model):
    def __init__(self, remat, dtype):
        super().__init__(dtype=dtype)
        self.branches = Branches(dtype=dtype)
        self.head = keras.layers.Dense(1, dtype="float32")
        self._remat = BlockRemat(BranchView(self)) if remat else None

    def call(self, x, training=None):
        context = contextlib.nullcontext()
        if self._remat is not None and training:
            context = self._remat.applied()
        with context:
            x = self.branches(x, training=training)
        return self.head(x)


class BranchView(ModelView):
    def blocks(self):
        return self.model.branches.blocks


@pytest.mark.traced
@pytest.mark.backends
@pytest.mark.parametrize("dtype", kept(["float32", "mixed_bfloat16"], "float32"))
def test_dropout_losses_and_precision_are_those_of_one_run(dtype):
    """A seeded mask drawn again, a loss added once, a state that goes on as before."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 6)).astype("float32"), rng.normal(size=(4, 1))
    found = []
    for remat in (False, True):
        keras.utils.set_random_seed(0)
        model = Trunk(remat, dtype)
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
        losses = [model.fit(x, y, verbose=0).history["loss"][0] for _ in range(3)]
        states = [b.dropout.seed_generator.state for b in model.branches.blocks]
        values = [ops.convert_to_numpy(v) for v in (*model.weights, *states)]
        found.append((losses, values))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-6)
    for plain, value in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(value, plain, rtol=1e-5, atol=1e-6)
    assert [int(state[1]) for state in values[-2:]] == [6, 3]  # masks drawn


@keras.saving.register_keras_serializable(package="tests")
class Attending(keras.layers.Layer):
    """A block that reads the mask which Keras attaches to its input."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = keras.layers.MultiHeadAttention(1, 4)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return x + self.attention(x, x)


@pytest.mark.backends
@pytest.mark.traced
def test_attached_masks_are_seen_within_blocks():
    block = Attending()
    inputs = keras.Input((5,), dtype="int32")
    x = block(keras.layers.Embedding(7, 4, mask_zero=True)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    view = ModelView(model)
    view.blocks = lambda: [block]
    ids = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 1, 0]])
    plain = ops.convert_to_numpy(model(ids))
    with BlockRemat(view).applied():
        found = ops.convert_to_numpy(model(ids))
        # A class that is computed whatever its mask would differ.
        other = ops.convert_to_numpy(model(np.where(ids == 0, 3, ids)))
    np.testing.assert_allclose(found, plain, rtol=1e-6)
    assert np.abs(other - plain)[:, 0].max() > 1e-3


def test_a_family_with_dropout_trains_the_same():
    """Masks without a seed, which PyTorch draws from its own generator."""
    rows = records("GPT2")

    def make(remat):
        teacher = model_of("GPT2", 1)
        return distiller_of(with_dropout(model_of("GPT2")), remat, teacher)

    expect_same_training(make, rows)


def with_dropout(model):
    config = {**model.backbone.get_config(), "dropout": 0.5}
    backbone = keras_hub.models.GPT2Backbone.from_config(config)
    backbone.set_weights(model.backbone.get_weights())
    return keras_hub.models.GPT2CausalLM(backbone, model.preprocessor)


def test_lora_in_mixed_precision_with_parts_of_a_step():
    rows = records("Gemma3", images=(1, 1, 1, 1))

    def make(remat):
        keras.utils.set_random_seed(0)
        student = tiny_gemma3(num_layers=2, dtype="mixed_bfloat16")
        student.backbone.quantize("int8", filters=".*decoder_block.*ffw.*")
        student.backbone.enable_lora(2, LORA_LAYERS.get("Gemma3"))
        distiller = distiller_of(student, remat, model_of("Gemma3", 1))
        optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
        distiller.compile(optimizer=optimizer)
        return distiller

    # XLA rounds to bfloat16 in other places of another program.
    eager = keras.backend.backend() == "torch"
    expect_same_training(make, rows, tolerance=1e-6 if eager else 1e-3)


def test_blocks_that_are_read_within_keep_what_they_compute():
    """The energies' gradients reach the blocks through what was read."""
    rows = records("Gemma3")

    def make(remat):
        keras.utils.set_random_seed(0)
        student = tiny_gemma3(num_layers=3, max_images=2)
        energies = {
            "attention": kd.AttentionEnergy(),
            "block": kd.FeatureMSEEnergy(
                "layers",
                teacher_layer="decoder_block_0",
                student_layer="decoder_block_2",
            ),
            "kl": kd.ForwardKLEnergy(),
        }
        return distiller_of(student, remat, model_of("Gemma3", 1), energies)

    expect_same_training(make, rows)


# Refusals, settings.


def test_nothing_left_to_compute_again_is_refused():
    energy = kd.AttentionEnergy()
    with pytest.raises(ValueError, match="would change nothing"):
        distiller_of(model_of("Gemma3"), True, model_of("Gemma3", 1), energy)


def test_unknown_blocks_are_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    teacher = keras.models.clone_model(model)
    with pytest.raises(ValueError, match="keras.RematScope"):
        kd.BetaKDDistiller(teacher, model, kd.ForwardKLEnergy(), remat=True)
    with pytest.raises(ValueError, match="Received: remat=full"):
        kd.BetaKDDistiller(teacher, model, kd.ForwardKLEnergy(), remat="full")


def test_batch_normalisation_within_blocks_is_refused():
    block = keras.Sequential([keras.layers.BatchNormalization()], name="stem")
    model = keras.Sequential([keras.Input((4,)), block, keras.layers.Dense(3)])
    view = ModelView(model)
    view.blocks = lambda: [block]
    with pytest.raises(ValueError, match="moving means of `.*batch_norm"):
        BlockRemat(view)


def test_it_is_a_part_of_the_config():
    """Archives of earlier versions have no such key."""
    distiller = distiller_of(model_of("Llama"))
    config = distiller.get_config()
    assert kd.BetaKDDistiller.from_config(dict(config)).remat is True
    del config["remat"]
    assert kd.BetaKDDistiller.from_config(config).remat is False


def test_evaluation_and_prediction_run_once(monkeypatch):
    ran = counted(monkeypatch)
    distiller, rows = distiller_of(model_of("Llama")), records("Llama")
    distiller.evaluate(rows, verbose=0)
    distiller.predict(rows, verbose=0)
    assert not ran
