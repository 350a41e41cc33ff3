"""What `qwen_vl.py small` runs on: tiny checkpoints, drawn images, a trained teacher.

The checkpoints have the layout, the names and the files of the published Qwen2.5-VL,
and the data is in chat format, so that all steps of a full run are executed. Both
models start from random weights; `train_teacher` lets the larger one learn the labels.
"""

import json
import random

import keras
import ml_dtypes
import numpy as np
import tokenizers
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

from keras_betakd.data import LlavaDataset, load_chat
from keras_betakd.models import save_preset
from keras_betakd.qwen_vl import load_qwen_vl

COLORS = ("red", "green", "blue", "yellow", "black", "purple")
BACKGROUNDS = ("white", "gray", "pink", "orange")
SIDES = {"small": (10, 14), "large": (22, 28)}  # pixels of a shape
QUESTIONS = {
    "what color is the shape?": COLORS,
    "what color is the background?": BACKGROUNDS,
    "is the shape large or small?": tuple(SIDES),
}
# Width and height of the drawn images.
SIZES = ((64, 32), (56, 40), (48, 48), (40, 52), (32, 60))
# Special or not, in the order of their published ids.
SPECIAL = "endoftext im_start im_end object_ref_start object_ref_end box_start box_end"
SPECIAL += " quad_start quad_end vision_start vision_end vision_pad image_pad video_pad"
PLAIN = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>")
PLAIN += ("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
PATCH, FRAMES, MERGE = 8, 2, 2
VISION_WIDTH, VISION_LAYERS = 32, 2
MODELS = {
    "teacher": {"width": 64, "layers": 2, "tied": False},
    "student": {"width": 32, "layers": 1, "tied": True},
}


def write_data(folder, name, count, seed=0):
    """Writes `NAME.jsonl`, a question about each of `count` images of a shape."""
    rng = random.Random(f"{name}/{seed}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        shown = [rng.choice(answers) for answers in QUESTIONS.values()]
        path = f"images/{name}_{i}.png"
        _draw(*shown, rng).save(folder / path)
        question, answer = rng.choice(list(zip(QUESTIONS, shown, strict=True)))
        asked = [{"type": "image", "image": path}, {"type": "text", "text": question}]
        messages = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        lines.append(json.dumps({"id": f"{name}-{i}", "messages": messages}) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _draw(color, background, size, rng):
    """An image of a circle, a square or a triangle somewhere in it."""
    width, height = rng.choice(SIZES)
    image = Image.new("RGB", (width, height), background)
    draw = ImageDraw.Draw(image)
    side = rng.randint(*SIDES[size])
    left, top = rng.randint(1, width - side - 2), rng.randint(1, height - side - 2)
    right, bottom = left + side, top + side
    shape = rng.choice(("circle", "square", "triangle"))
    if shape == "triangle":
        corners = (left, bottom), (left + side // 2, top), (right, bottom)
        draw.polygon(corners, fill=color)
    else:
        draws = draw.ellipse if shape == "circle" else draw.rectangle
        draws((left, top, right, bottom), fill=color)
    return image


def write_checkpoints(folder, seed=0):
    """Writes the folders `teacher` and `student`, as published, of random weights."""
    rng = np.random.default_rng(seed)
    vocabulary = _tokenizer()
    for name, sizes in MODELS.items():
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        # The rows of the embedding are more than the tokens, and not as many in both.
        rows = _rows(vocabulary.get_vocab_size() + len(_added()), name)
        vocabulary.model.save(str(path))
        config = _config(sizes, rows, vocabulary.get_vocab_size())
        _write(path / "config.json", config)
        _write(path / "tokenizer_config.json", _tokenizer_config(vocabulary))
        _write(path / "preprocessor_config.json", _image_settings())
        _save(_weights(rng, config), path)


def _rows(tokens, name):
    return -(-tokens // 64) * 64 + (64 if name == "teacher" else 0)


def _write(path, value):
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _save(weights, folder):
    """Weights in bfloat16 in two parts, with the index of both."""
    names, index = list(weights), {}
    for i in range(2):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        part = {name: weights[name] for name in names[i::2]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    size = sum(array.nbytes for array in weights.values())
    content = {"metadata": {"total_size": size}, "weight_map": index}
    _write(folder / "model.safetensors.index.json", content)


def _tokenizer():
    """A byte-level BPE, trained on the words of the data and of the chat template."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = to_bytes
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=to_bytes.alphabet(), show_progress=False
    )
    texts = ["system", "user", "assistant", "You are a helpful assistant."]
    texts += [text for pair in QUESTIONS.items() for text in (pair[0], *pair[1])]
    tokenizer.train_from_iterator(texts * 8, trainer)
    return tokenizer


def _added():
    """Texts of the added tokens, and whether they are special."""
    special = {f"<|{name}|>": True for name in SPECIAL.split()}
    return special | dict.fromkeys(PLAIN, False)


def _tokenizer_config(vocabulary):
    start = vocabulary.get_vocab_size()
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    decoder = {
        str(start + i): {"content": text, **flags, "special": is_special}
        for i, (text, is_special) in enumerate(_added().items())
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
    }


def _image_settings():
    side = PATCH * MERGE
    return {
        "min_pixels": 6 * side**2,
        "max_pixels": 9 * side**2,
        "patch_size": PATCH,
        "temporal_patch_size": FRAMES,
        "merge_size": MERGE,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }


def _config(sizes, rows, first_added):
    """The config.json, flat as Qwen2.5-VL was published."""
    added = {text: first_added + i for i, text in enumerate(_added())}
    width, heads = sizes["width"], 4
    pairs = width // heads // 2
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "bos_token_id": added["<|endoftext|>"],
        "eos_token_id": added["<|im_end|>"],
        "vision_start_token_id": added["<|vision_start|>"],
        "vision_end_token_id": added["<|vision_end|>"],
        "vision_token_id": added["<|vision_pad|>"],
        "image_token_id": added["<|image_pad|>"],
        "video_token_id": added["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {
            "type": "mrope",
            "mrope_section": [pairs - pairs // 3 * 2, pairs // 3, pairs // 3],
        },
        "tie_word_embeddings": sizes["tied"],
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": rows,
        "vision_config": {
            "depth": VISION_LAYERS,
            "hidden_act": "silu",
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_heads": 2,
            "in_chans": 3,
            "out_hidden_size": width,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH,
            "temporal_patch_size": FRAMES,
            "window_size": 2 * PATCH * MERGE,
            "fullatt_block_indexes": [VISION_LAYERS - 1],
        },
    }


def _weights(rng, config):
    """Random weights by their published names."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shared = width * config["num_key_value_heads"] // config["num_attention_heads"]
    table = config["vocab_size"], width
    found = {"model.embed_tokens.weight": table, "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = table
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{block}{name}.weight"] = (width,)
        for name, size in (("q", width), ("k", shared), ("v", shared)):
            found |= _dense(f"{block}self_attn.{name}_proj", width, size)
        found[f"{block}self_attn.o_proj.weight"] = (width, width)
        for name in ("gate", "up"):
            found[f"{block}mlp.{name}_proj.weight"] = (inner, width)
        found[f"{block}mlp.down_proj.weight"] = (width, inner)
    found |= _vision_shapes(config["vision_config"])
    return {name: _random(rng, name, shape) for name, shape in found.items()}


def _vision_shapes(config):
    width, inner = config["hidden_size"], config["intermediate_size"]
    merged = width * MERGE**2
    found = {
        "visual.patch_embed.proj.weight": (width, 3, FRAMES, PATCH, PATCH),
        "visual.merger.ln_q.weight": (width,),
        **_dense("visual.merger.mlp.0", merged, merged),
        **_dense("visual.merger.mlp.2", merged, config["out_hidden_size"]),
    }
    for i in range(config["depth"]):
        block = f"visual.blocks.{i}."
        found |= {f"{block}norm{k}.weight": (width,) for k in (1, 2)}
        found |= _dense(f"{block}attn.qkv", width, 3 * width)
        found |= _dense(f"{block}attn.proj", width, width)
        found |= _dense(f"{block}mlp.gate_proj", width, inner)
        found |= _dense(f"{block}mlp.up_proj", width, inner)
        found |= _dense(f"{block}mlp.down_proj", inner, width)
    return found


def _dense(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _random(rng, name, shape):
    """One for the scales of normalisations, zero for biases, small random numbers."""
    if len(shape) == 1:
        value = np.full(shape, float(name.endswith("weight")))
    else:
        value = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    return value.astype(ml_dtypes.bfloat16)


def train_teacher(checkpoint, args, progress):
    """Trains the teacher on the labels alone, and saves it as a preset."""
    keras.utils.set_random_seed(args.seed)
    teacher = load_qwen_vl(
        checkpoint, dtype="float32", sequence_length=args.sequence_length
    )
    records = load_chat(args.data, args.images)
    x, y, weight = teacher.preprocessor(LlavaDataset(records, len(records))[0])
    # A plain model around the same weights, for `fit` takes its inputs as they are.
    model = keras.Model(teacher.input, teacher.output)
    epochs, batch_size = 6, 32
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        epochs * -(-len(records) // batch_size),
        alpha=0.02,
        warmup_target=5e-3,
        warmup_steps=20,
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=0.01, clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    )
    data = {"y": y, "sample_weight": weight, "batch_size": batch_size, "verbose": 2}
    progress.fit("teacher", model, x, epochs, **data)
    save_preset(teacher, args.teacher)
