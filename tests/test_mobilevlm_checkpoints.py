"""Public checkpoints of MobileVLM V2 and LLaVA-1.5, written here in their layouts."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch
from keras import ops
from mobilevlm_golden import GOLDEN, batch, golden, golden_model, tensors
from safetensors.numpy import save_file

from keras_betakd.mobilevlm import MobileVLMCausalLM, load_mobilevlm
from keras_betakd.mobilevlm.configurations import backbone_arguments
from keras_betakd.models import load_model

TOWER = "model.vision_tower.vision_tower.vision_model."
CLIP = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "image_size": 56,
    "patch_size": 14,
}
LLAMA = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
ORIGINAL = {
    **LLAMA,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_start_end": False,
    "image_aspect_ratio": "pad",
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
PORT = {"text_config": LLAMA, "vision_config": CLIP, "projector_hidden_act": "gelu"}
PORT_NAMES = (  # as published, and as newer versions of transformers save it
    {
        TOWER: "vision_tower.vision_model.",
        "model.mm_projector.0": "multi_modal_projector.linear_1",
        "model.mm_projector.2": "multi_modal_projector.linear_2",
        "lm_head.": "language_model.lm_head.",
        "model.": "language_model.model.",
    },
    {
        TOWER: "model.vision_tower.vision_model.",
        "model.mm_projector.0": "model.multi_modal_projector.linear_1",
        "model.mm_projector.2": "model.multi_modal_projector.linear_2",
        "lm_head.": "lm_head.",
        "model.": "model.language_model.",
    },
)
# What the public files hold beside the weights.
BUFFERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(6, "float32"),
    TOWER + "embeddings.position_ids": np.arange(17)[None],
    "distill_adapter.weight": np.ones((2, 2), "float32"),
}


def renamed(weights, names):
    def rename(name):
        prefix = next(p for p in names if name.startswith(p))
        return names[prefix] + name.removeprefix(prefix)

    return {rename(name): value for name, value in weights.items()}


def write(folder, weights, config, kind="safetensors", shards=2, dtype="float32"):
    """A checkpoint folder as it is published."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes((GOLDEN / "llama_tiny.model").read_bytes())
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    names, index = sorted(weights), {}
    for i in range(shards):
        part = {name: weights[name] for name in names[i::shards]}
        number = f"-{i + 1:05}-of-{shards:05}" if shards > 1 else ""
        path = folder / f"{stem}{number}.{kind}"
        if kind == "bin":
            tensor_type = getattr(torch, dtype)
            torch.save(
                {k: torch.tensor(v).to(tensor_type) for k, v in part.items()}, path
            )
        else:
            kept = {k: np.ascontiguousarray(v.astype(dtype)) for k, v in part.items()}
            save_file(kept, path)
        index |= dict.fromkeys(part, path.name)
    if shards > 1:
        content = json.dumps({"weight_map": index})
        (folder / f"{stem}.{kind}.index.json").write_text(content)
    return folder


def write_clip(folder):
    """Writes all of CLIP: the text weights must not disturb the loading."""
    tower = {
        k.removeprefix("model.vision_tower.vision_tower."): v
        for k, v in tensors("llava").items()
        if k.startswith(TOWER)
    }
    tower |= {"logit_scale": np.ones((), "float32")}
    tower |= {"text_model.final_layer_norm.weight": np.ones(4, "float32")}
    return write(folder, tower, {"vision_config": CLIP}, shards=1)


def without_tower(weights):
    return {k: v for k, v in weights.items() if not k.startswith(TOWER)}


def layouts(tmp_path):
    weights = tensors("llava")
    clip = write_clip(tmp_path / "clip")
    named = {**ORIGINAL, "mm_vision_tower": str(clip)}
    return {
        "safetensors": write(tmp_path / "a", weights | BUFFERS, named),
        "bin": write(tmp_path / "b", weights | BUFFERS, named, kind="bin"),
        "one file": write(tmp_path / "c", weights, named, kind="bin", shards=1),
        "port": write(tmp_path / "d", renamed(weights, PORT_NAMES[0]), PORT),
        "newer port": write(tmp_path / "e", renamed(weights, PORT_NAMES[1]), PORT),
        "no tower": (write(tmp_path / "f", without_tower(weights), ORIGINAL), clip),
    }


def test_every_public_layout_loads_to_the_same_numbers(tmp_path):
    inputs = batch("B", 16)
    kept = inputs["padding_mask"]
    for name, folder in layouts(tmp_path).items():
        folder, tower = folder if isinstance(folder, tuple) else (folder, None)
        model = load_mobilevlm(folder, vision_tower=tower)
        got = ops.convert_to_numpy(model(inputs))[kept]
        expected = golden()["llava/B/logits"][kept]
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5, err_msg=name)
        assert model.backbone.get_config()["projector_type"] == "mlp2x_gelu"
        # The original pads images; Hugging Face's port crops them.
        converter = model.preprocessor.image_converter
        assert converter.aspect_ratio == ("crop" if "port" in name else "pad")
        assert model.preprocessor.num_image_tokens == 16


def test_mobilevlm_loads_from_bfloat16(tmp_path):
    """Like the released files, with a grid of 12 x 12 where the golden one is 2 x 2."""
    clip = write_clip(tmp_path / "clip")
    config = {**ORIGINAL, "mm_projector_type": "ldpnetv2", "mm_vision_tower": str(clip)}
    folder = write(
        tmp_path / "a", tensors("mobilevlm"), config, "bin", dtype="bfloat16"
    )
    model = load_mobilevlm(folder, dtype="bfloat16", sequence_length=300)
    assert isinstance(model, MobileVLMCausalLM)
    assert model.backbone.num_image_tokens == 144
    assert model.preprocessor.sequence_length == 300
    assert {w.dtype for w in model.trainable_weights} == {"bfloat16"}
    expected = golden_model("mobilevlm").backbone.weights
    for got, exact in zip(model.backbone.weights, expected, strict=True):
        got, exact = (
            ops.convert_to_numpy(ops.cast(w, "float32")) for w in (got, exact)
        )
        rounded = exact.astype(ml_dtypes.bfloat16).astype("float32")
        np.testing.assert_array_equal(got, rounded)


def test_everything_that_does_not_agree_is_listed(tmp_path):
    clip = write_clip(tmp_path / "clip")
    weights = tensors("llava") | {
        "model.layers.2.mlp.up_proj.weight": np.ones((88, 48))
    }
    del weights["model.layers.1.mlp.up_proj.weight"]
    weights["lm_head.weight"] = weights["lm_head.weight"][:90]
    config = {**ORIGINAL, "mm_vision_tower": str(clip)}
    with pytest.raises(ValueError) as caught:
        load_mobilevlm(write(tmp_path / "a", weights, config))
    message = str(caught.value)
    assert "1 missing:\n  model.layers.1.mlp.up_proj.weight" in message
    assert "1 not known:\n  model.layers.2.mlp.up_proj.weight" in message
    assert "lm_head.weight: (90, 48) instead of (97, 48)" in message


def damaged(tmp_path, what):
    clip = write_clip(tmp_path / "clip")
    kind = "bin" if what in ("truncated .bin", "code") else "safetensors"
    config = {**ORIGINAL, "mm_vision_tower": str(clip)}
    folder = write(tmp_path / "a", tensors("llava"), config, kind)
    shard = sorted(folder.glob(f"*.{kind}"))[0]
    if "truncated" in what:
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    elif what == "code":
        shard.write_bytes(pickle.dumps(print))
    elif what == "index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": 3')
    elif what == "no weights":
        for path in folder.glob("*model*s*"):
            path.unlink()
    else:
        (folder / {"shard": shard.name}.get(what, what)).unlink()
    return folder


@pytest.mark.parametrize(
    "what, error, message",
    [
        ("truncated", ValueError, "cannot be read: it is damaged"),
        ("truncated .bin", ValueError, "cannot be read: it is damaged"),
        ("code", ValueError, "could run any code"),
        ("index", ValueError, "index .* is damaged"),
        ("shard", FileNotFoundError, "names files that are not in .*00001-of-00002"),
        ("tokenizer.model", FileNotFoundError, "SentencePiece file"),
        ("config.json", FileNotFoundError, "There is no '.*config.json'"),
        ("no weights", FileNotFoundError, "holds no weights"),
    ],
)
def test_damage_is_told_with_the_file(what, error, message, tmp_path):
    with pytest.raises(error, match=message):
        load_mobilevlm(damaged(tmp_path, what))


def test_a_checkpoint_without_its_tower(tmp_path):
    folder = write(tmp_path / "a", without_tower(tensors("llava")), ORIGINAL)
    with pytest.raises(
        ValueError, match="Download 'openai/clip-vit-large-patch14-336'"
    ):
        load_mobilevlm(folder)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling="),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end=True"),
        ({"mm_vision_select_feature": "cls_patch"}, "Expected: 'patch'"),
        ({"mm_vision_tower": "google/siglip"}, "sizes of the vision tower"),
        ({"hidden_size": None}, "no 'hidden_size'"),
    ],
)
def test_other_architectures_are_refused(wrong, message):
    config = {k: v for k, v in {**ORIGINAL, **wrong}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        backbone_arguments(config)


def test_configurations_of_the_published_models():
    """Values missing in Hugging Face's files are the defaults of its classes."""
    port = {
        "text_config": {"vocab_size": 32064, "rms_norm_eps": 1e-5},
        "vision_config": {**CLIP, "hidden_size": 1024, "num_hidden_layers": 24},
        "vision_feature_layer": -2,
    }
    found = backbone_arguments(port)
    assert (found["hidden_dim"], found["num_layers"]) == (4096, 32)
    assert found["num_key_value_heads"] == found["num_query_heads"] == 32
    assert (found["vocabulary_size"], found["layer_norm_epsilon"]) == (32064, 1e-5)
    assert found["projector_type"] == "mlp2x_gelu"
    found = backbone_arguments({**ORIGINAL, "mm_projector_type": "ldpnetv2"})
    tower = {key: found[key] for key in found if key.startswith("vision_num")}
    assert tower == {"vision_num_layers": 24, "vision_num_heads": 16}
    assert (found["image_size"], found["patch_size"]) == (336, 14)
    assert found["projector_type"] == "ldpnetv2"


def test_any_loader_of_presets_takes_a_public_checkpoint(tmp_path):
    config = {**PORT, "model_type": "llava"}
    weights = renamed(tensors("llava"), PORT_NAMES[0])
    model = load_model(write(tmp_path / "a", weights, config), sequence_length=300)
    assert isinstance(model, MobileVLMCausalLM)
    assert model.preprocessor.sequence_length == 300


def test_a_language_model_gets_a_new_projector(tmp_path):
    """Alignment pre-training starts from MobileLLaMA, which takes no images."""
    clip = write_clip(tmp_path / "clip")
    weights = without_tower(tensors("llava"))
    weights = {k: v for k, v in weights.items() if "mm_projector" not in k}
    folder = write(tmp_path / "a", weights, LLAMA)
    with pytest.raises(ValueError, match="needs a `new_projector`"):
        load_mobilevlm(folder, vision_tower=clip)
    model = load_mobilevlm(folder, vision_tower=clip, new_projector="ldpnetv2")
    pairs = zip(model.backbone.weights, golden_model("mobilevlm").weights, strict=True)
    for got, expected in pairs:
        if "projector" not in got.path:
            got, expected = (ops.convert_to_numpy(w) for w in (got, expected))
            np.testing.assert_array_equal(got, expected)
