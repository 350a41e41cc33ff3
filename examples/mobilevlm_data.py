"""Writes random checkpoints and generated images for `mobilevlm.py small`.

The checkpoints have the layout, the names and the files of the public ones, and the
data is in LLaVA's format, so that all steps of a full run are executed.
"""

import io
import json
import random

import numpy as np
import sentencepiece
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

# LLaVA's system prompt, which the preprocessor puts before each conversation.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions."
)
COLORS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square")
SIZES = {
    "vocab_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "mm_vision_select_layer": -2,
    "image_aspect_ratio": "pad",
}
CLIP = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 28,
    "patch_size": 2,
}


def write_data(folder, count, seed=0):
    """Writes captions and conversations about `count` images of a coloured shape."""
    rng = random.Random(seed)
    captions, conversations = [], []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        color, shape = rng.choice(COLORS), rng.choice(SHAPES)
        name = f"{i}.png"
        _draw(color, shape, rng).save(folder / "images" / name)
        captions.append(
            _record(i, name, ("Describe it.", f"a {color} {shape} on white"))
        )
        turns = ("What color is it?", color), ("And what shape?", shape)
        conversations.append(_record(i, name, *turns))
    texts = ("Is ice cold?", "yes"), ("Is fire cold?", "no")
    conversations += [_record(count + i, None, texts[i % 2]) for i in range(count // 8)]
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "conversations.json").write_text(json.dumps(conversations))


def _record(number, image, *turns):
    said = []
    for question, answer in turns:
        said.append({"from": "human", "value": question})
        said.append({"from": "gpt", "value": answer})
    if image is None:
        return {"id": str(number), "conversations": said}
    said[0]["value"] = f"<image>\n{said[0]['value']}"
    return {"id": str(number), "image": image, "conversations": said}


def _draw(color, shape, rng):
    image = Image.new("RGB", (40, 32), "white")
    draw = ImageDraw.Draw(image)
    left, top = rng.randrange(2, 18), rng.randrange(2, 10)
    box = left, top, left + 18, top + 18
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=color)
    return image


def write_checkpoints(folder, seed=0):
    """Writes a CLIP, a MobileVLM around it, and a language model without vision."""
    rng = np.random.default_rng(seed)
    tower = _tower(rng)
    _write(folder / "clip", {"vision_config": CLIP}, tower)
    named = {**SIZES, "mm_vision_tower": str(folder / "clip")}
    for name, width, has_vision in (
        ("teacher", 96, True),
        ("language_model", 48, False),
    ):
        config = {**named, "hidden_size": width, "intermediate_size": 2 * width}
        weights = _language_model(rng, config)
        if has_vision:
            config["mm_projector_type"] = "ldpnetv2"
            prefix = "model.vision_tower.vision_tower."
            weights |= {prefix + key: value for key, value in tower.items()}
            weights |= _projector(rng, CLIP["hidden_size"], width)
        _write(folder / name, config, weights)
        (folder / name / "tokenizer.model").write_bytes(_tokenizer())


def _write(folder, config, weights):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")


def _matrix(rng, *shape):
    scale = np.prod(shape[1:]) ** -0.5
    return rng.normal(0, scale, shape).astype("float32")


def _tower(rng):
    width, inner, layers = (
        CLIP[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    side = CLIP["patch_size"]
    places = (CLIP["image_size"] // side) ** 2 + 1
    found = {
        "embeddings.class_embedding": _matrix(rng, width),
        "embeddings.patch_embedding.weight": _matrix(rng, width, 3, side, side),
        "embeddings.position_embedding.weight": _matrix(rng, places, width),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    for i in range(layers):
        block = f"encoder.layers.{i}."
        norms += [f"{block}layer_norm1", f"{block}layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _dense(rng, f"{block}self_attn.{name}", width, width)
        found |= _dense(rng, f"{block}mlp.fc1", width, inner)
        found |= _dense(rng, f"{block}mlp.fc2", inner, width)
    for name in norms:
        found[f"{name}.weight"] = np.ones(width, "float32")
        found[f"{name}.bias"] = np.zeros(width, "float32")
    return {f"vision_model.{name}": value for name, value in found.items()}


def _dense(rng, name, inputs, outputs):
    bias = np.zeros(outputs, "float32")
    return {f"{name}.weight": _matrix(rng, outputs, inputs), f"{name}.bias": bias}


def _projector(rng, inputs, width):
    prefix = "model.mm_projector."
    return {
        **_dense(rng, f"{prefix}mlp.mlp.0", inputs, width),
        **_dense(rng, f"{prefix}mlp.mlp.2", width, width),
        f"{prefix}peg.peg.0.weight": _matrix(rng, width, 1, 3, 3),
        f"{prefix}peg.peg.0.bias": np.zeros(width, "float32"),
    }


def _language_model(rng, config):
    width, inner = config["hidden_size"], config["intermediate_size"]
    vocabulary = config["vocab_size"], width
    found = {
        "model.embed_tokens.weight": _matrix(rng, *vocabulary),
        "lm_head.weight": _matrix(rng, *vocabulary),
        "model.norm.weight": np.ones(width, "float32"),
    }
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found[f"{block}self_attn.{name}.weight"] = _matrix(rng, width, width)
        for name, shape in (
            ("gate_proj", (inner, width)),
            ("up_proj", (inner, width)),
            ("down_proj", (width, inner)),
        ):
            found[f"{block}mlp.{name}.weight"] = _matrix(rng, *shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{block}{name}.weight"] = np.ones(width, "float32")
    return found


def _tokenizer():
    """A SentencePiece model of Llama's type, trained on the words of the data."""
    words = [*COLORS, *SHAPES, *SYSTEM.split(), *"USER: ASSISTANT:".split()]
    words += (
        "What color is it? And what shape? a on white Is ice fire cold? yes no".split()
    )
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        character_coverage=1.0,
        model_writer=file,
        model_type="bpe",
        vocab_size=SIZES["vocab_size"],
        hard_vocab_limit=False,
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return file.getvalue()
