"""A tiny model of every other family of keras-hub, with its own preprocessor."""

import functools
import pathlib

import keras
import keras_hub
from tiny_models import IMAGE_SIZE, tiny_gemma3, tiny_pali_gemma, tokenizer_proto

from keras_betakd.mobilevlm import (
    MobileVLMBackbone,
    MobileVLMCausalLM,
    MobileVLMCausalLMPreprocessor,
    MobileVLMImageConverter,
    MobileVLMTokenizer,
)
from keras_betakd.qwen_vl import (
    QwenVLBackbone,
    QwenVLCausalLM,
    QwenVLCausalLMPreprocessor,
    QwenVLImageConverter,
    QwenVLTokenizer,
)

GEMMA3N_PIECES = (
    "<image_soft_token>",
    "<audio_soft_token>",
    "<start_of_image>",
    "<end_of_image>",
    "<start_of_audio>",
    "<end_of_audio>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<mask>",
    "[multimodal]",
)
GEMMA4_PIECES = ("<|image|>", "<|image>", "<image|>", "<|video|>", "<turn|>")
QWEN_PIECES = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def byte_pairs(special, merges=("r e", "re d", "y e", "ye s")):
    """Vocabulary and merges of a byte-level tokenizer for ASCII text."""
    pieces = [*special, *(chr(c) for c in range(33, 127)), "Ġ", "Ċ"]
    pieces += [merge.replace(" ", "") for merge in merges]
    return {piece: i for i, piece in enumerate(pieces)}, list(merges)


def tiny_gemma3n(width=8, sequence_length=96, max_images=2, vision=True):
    """A Gemma 3n; an image becomes 4 tokens."""
    tokenizer = keras_hub.models.Gemma3nTokenizer(
        proto=tokenizer_proto(symbols=GEMMA3N_PIECES)
    )
    size = tokenizer.vocabulary_size()
    tower = _mobilenet().get_config() if vision else None
    backbone = keras_hub.models.Gemma3nBackbone(
        text_vocab_size=size,
        text_hidden_size=width,
        num_hidden_layers=2,
        pad_token_id=0,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=[16, 16],
        hidden_activation="gelu_approximate",
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=64,
        rope_theta=10000.0,
        max_position_embeddings=256,
        vocab_size_per_layer_input=size,
        hidden_size_per_layer_input=4,
        altup_num_inputs=2,
        laurel_rank=2,
        final_logit_soft_cap=30.0,
        vision_encoder_config=tower,
        vision_hidden_size=16,
        vision_vocab_size=8,
        vision_vocab_offset=size,
        vision_soft_tokens_per_image=4,
        image_token_id=tokenizer.image_placeholder_id,
    )
    converter = keras_hub.layers.Gemma3nImageConverter(
        image_size=(IMAGE_SIZE, IMAGE_SIZE), scale=1 / 255
    )
    preprocessor = keras_hub.models.Gemma3nCausalLMPreprocessor(
        tokenizer=tokenizer,
        image_converter=converter if vision else None,
        sequence_length=sequence_length,
        max_images_per_prompt=max_images,
        num_vision_tokens_per_image=4,
        max_audios_per_prompt=0,
    )
    return keras_hub.models.Gemma3nCausalLM(
        preprocessor=preprocessor, backbone=backbone
    )


def _mobilenet():
    """Maps 16 x 16 images to 2 x 2 positions."""
    blocks = {
        "stackwise_block_types": [["er"], ["er"]],
        "stackwise_num_filters": [[16], [16]],
        "stackwise_strides": [[2], [2]],
        "stackwise_act_layers": [["gelu"], ["gelu"]],
        "stackwise_exp_ratios": [[1.0], [1.0]],
        "stackwise_se_ratios": [[0.0], [0.0]],
        "stackwise_exp_kernel_sizes": [[3], [3]],
        "stackwise_pw_kernel_sizes": [[1], [1]],
        "stackwise_use_cpe": [[False], [False]],
    }
    unused = "dw_kernel_sizes dw_start_kernel_sizes dw_end_kernel_sizes num_heads"
    unused += " key_dims value_dims kv_strides"
    blocks.update({f"stackwise_{name}": [[0], [0]] for name in unused.split()})
    return keras_hub.models.MobileNetV5Backbone(
        **blocks,
        stackwise_num_blocks=[1, 1],
        num_features=16,
        use_msfa=False,
        image_shape=(IMAGE_SIZE, IMAGE_SIZE, 3),
    )


def tiny_gemma4(width=8, sequence_length=96, max_images=2, soft_tokens=4, **kwargs):
    """A Gemma 4; an image becomes up to `soft_tokens` tokens, by its shape."""
    tokenizer = keras_hub.models.Gemma4Tokenizer(
        proto=tokenizer_proto(symbols=GEMMA4_PIECES)
    )
    vision_encoder = keras_hub.models.Gemma4VisionEncoder(
        image_size=16,
        patch_size=4,
        num_heads=2,
        hidden_dim=8,
        num_layers=1,
        intermediate_dim=16,
        head_dim=4,
        output_dim=width,
        pool_size=2,
        position_embedding_size=64,
    )
    backbone = keras_hub.models.Gemma4Backbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        image_size=16,
        num_layers=2,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=width,
        intermediate_dim=16,
        head_dim=4,
        vision_encoder=vision_encoder,
        hidden_size_per_layer_input=4,
        sliding_window_pattern=2,
        final_logit_soft_cap=30.0,
        **kwargs,
    )
    preprocessor = keras_hub.models.Gemma4CausalLMPreprocessor(
        tokenizer=tokenizer,
        image_converter=keras_hub.layers.Gemma4ImageConverter(
            patch_size=4,
            max_soft_tokens=soft_tokens,
            pooling_kernel_size=2,
            scale=1 / 255,
        ),
        sequence_length=sequence_length,
        max_images_per_prompt=max_images,
        num_vision_tokens_per_image=soft_tokens,
    )
    return keras_hub.models.Gemma4CausalLM(preprocessor=preprocessor, backbone=backbone)


def tiny_qwen3_5(
    width=8, sequence_length=160, vision=True, layer_types=("full_attention",)
):
    """A Qwen3.5 with images of any shape; linear attention takes long to compile."""
    vocabulary, merges = byte_pairs(QWEN_PIECES)
    tokenizer = keras_hub.models.Qwen3_5Tokenizer(vocabulary=vocabulary, merges=merges)
    backbone = keras_hub.models.Qwen3_5Backbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=len(layer_types),
        num_query_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        hidden_dim=width,
        intermediate_dim=16,
        layer_types=list(layer_types),
        partial_rotary_factor=0.75,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        linear_key_head_dim=4,
        linear_value_head_dim=4,
        vision_encoder=_qwen_vision(width) if vision else None,
        mrope_section=[1, 1, 1],
    )
    converter = keras_hub.layers.Qwen3_5ImageConverter(
        patch_size=4, min_pixels=64, max_pixels=256, scale=1 / 255
    )
    preprocessor = keras_hub.models.Qwen3_5CausalLMPreprocessor(
        tokenizer=tokenizer,
        image_converter=converter if vision else None,
        sequence_length=sequence_length,
    )
    return keras_hub.models.Qwen3_5CausalLM(
        backbone=backbone, preprocessor=preprocessor
    )


def _qwen_vision(width):
    """A vision encoder that keras-hub does not export: it is looked up by its name."""
    sizes = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "in_channels": 3,
        "patch_size": 4,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": width,
        "num_position_embeddings": 9,
    }
    name = "Qwen3_5VisionEncoder"
    folder = "keras_hub.src.models.qwen3_5.qwen3_5_vision_encoder"
    config = {"module": folder, "class_name": name, "config": sizes}
    encoder = keras.saving.deserialize_keras_object({**config, "registered_name": name})
    encoder.build()
    return encoder


def _blip2_vision(width):
    vision_encoder = keras_hub.models.BLIP2VisionEncoder(
        image_size=IMAGE_SIZE,
        patch_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        use_patch_bias=True,
        use_class_token=True,
        use_mha_bias=True,
        use_mlp_bias=True,
        dropout_rate=0.0,
        layer_norm_epsilon=1e-6,
        initializer_range=0.02,
    )
    qformer = keras_hub.models.BLIP2QFormer(
        num_query_tokens=3,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        vision_dim=8,
        cross_attention_frequency=1,
        dropout=0.0,
        layer_norm_epsilon=1e-6,
    )
    return {"vision_encoder": vision_encoder, "qformer": qformer}


def _blip2_converter():
    return keras_hub.layers.BLIP2ImageConverter(image_size=(IMAGE_SIZE, IMAGE_SIZE))


def tiny_blip2_opt(width=8, sequence_length=96):
    """A BLIP-2 with OPT: 3 query tokens in front of the text."""
    vocabulary, merges = byte_pairs(("</s>", "<pad>", "<image>"))
    tokenizer = keras_hub.models.BLIP2OPTTokenizer(vocabulary=vocabulary, merges=merges)
    language_model = keras_hub.models.BLIP2CustomOPT(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_heads=2,
        hidden_dim=width,
        intermediate_dim=16,
        num_query_tokens=3,
        dropout=0.0,
        max_sequence_length=128,
        qformer_hidden_dim=8,
    )
    backbone = keras_hub.models.BLIP2Backbone(
        **_blip2_vision(width), language_model=language_model
    )
    preprocessor = keras_hub.models.BLIP2CausalLMPreprocessor(
        tokenizer=tokenizer,
        image_converter=_blip2_converter(),
        sequence_length=sequence_length,
    )
    return keras_hub.models.BLIP2CausalLM(preprocessor=preprocessor, backbone=backbone)


def tiny_blip2_t5(width=8, sequence_length=64):
    """A BLIP-2 with Flan-T5: an encoder reads image and prompt."""
    tokenizer = keras_hub.models.BLIP2FlanT5Tokenizer(
        proto=tokenizer_proto(end_piece="</s>")
    )
    language_model = keras_hub.models.BLIP2FlanT5(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_heads=2,
        hidden_dim=width,
        intermediate_dim=16,
        num_query_tokens=3,
        qformer_hidden_dim=8,
        dropout=0.0,
    )
    backbone = keras_hub.models.BLIP2Backbone(
        **_blip2_vision(width), language_model=language_model
    )
    preprocessor = keras_hub.models.BLIP2Seq2SeqLMPreprocessor(
        tokenizer=tokenizer,
        image_converter=_blip2_converter(),
        encoder_sequence_length=sequence_length,
        decoder_sequence_length=16,
    )
    return keras_hub.models.BLIP2Seq2SeqLM(backbone=backbone, preprocessor=preprocessor)


def tiny_mobilevlm(
    width=8, sequence_length=128, max_images=2, projector_type="ldpnetv2", **kwargs
):
    """A MobileVLM V2; an image becomes 4 tokens, those of a LLaVA would be 16."""
    proto = pathlib.Path(__file__).parent / "golden" / "llama_tiny.model"
    tokenizer = MobileVLMTokenizer(str(proto))
    backbone = MobileVLMBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=width,
        intermediate_dim=2 * width,
        vision_num_layers=2,
        vision_num_heads=2,
        vision_hidden_dim=8,
        vision_intermediate_dim=16,
        image_size=IMAGE_SIZE,
        patch_size=4,
        projector_type=projector_type,
        image_grid_size=2,
        **kwargs,
    )
    preprocessor = MobileVLMCausalLMPreprocessor(
        tokenizer,
        MobileVLMImageConverter((IMAGE_SIZE, IMAGE_SIZE)),
        num_image_tokens=backbone.num_image_tokens,
        sequence_length=sequence_length,
        max_images_per_prompt=max_images,
    )
    return MobileVLMCausalLM(backbone, preprocessor)


_QWEN_VL = {
    "qwen2_vl": {},
    "qwen2_5_vl": {"window_size": 16, "full_attention_layers": (1,)},
    "qwen3_vl": {"num_position_embeddings": 9, "deepstack_layers": (0,)},
}


def tiny_qwen_vl(family, width=8, sequence_length=160, max_pixels=256, **kwargs):
    """A Qwen2-VL, Qwen2.5-VL or Qwen3-VL; an image becomes 1 to 4 tokens."""
    tokenizer = QwenVLTokenizer(*byte_pairs(QWEN_PIECES))
    backbone = QwenVLBackbone(
        family,
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=2,
        num_query_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        hidden_dim=width,
        intermediate_dim=2 * width,
        vision_num_layers=2,
        vision_num_heads=2,
        vision_hidden_dim=16,
        vision_intermediate_dim=16,
        patch_size=4,
        rope_sections=(2, 1, 1),
        **_QWEN_VL[family],
        **kwargs,
    )
    converter = QwenVLImageConverter(4, min_pixels=64, max_pixels=max_pixels)
    preprocessor = QwenVLCausalLMPreprocessor(
        tokenizer, converter, sequence_length=sequence_length
    )
    return QwenVLCausalLM(backbone, preprocessor)


# Text families: the name in keras-hub, special tokens, and what its backbone wants.
_GROUPED = {"num_query_heads": 2, "num_key_value_heads": 1}
_TEXT = {
    "GPT2": (("<|endoftext|>",), {"num_heads": 2, "dropout": 0.0}),
    "Llama3": (
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|eot_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
        ),
        _GROUPED,
    ),
    "Qwen": (("<|endoftext|>",), _GROUPED),
    "Qwen3": (
        ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
        {**_GROUPED, "head_dim": 4},
    ),
    "SmolLM3": (
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|im_start|>",
            "<|im_end|>",
            "<think>",
            "</think>",
        ),
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "rope_layer_enabled_list": [True],
            "layer_types": ["full_attention"],
            "mlp_bias": False,
            "layer_norm_epsilon": 1e-6,
            "max_position_embeddings": 128,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
        },
    ),
    "Llama": (None, _GROUPED),
    "Mistral": (None, _GROUPED),
    "Phi3": (None, _GROUPED),
    "Gemma": (None, {**_GROUPED, "head_dim": 4}),
}


def tiny_text(name, width=8, sequence_length=96, num_layers=1, **kwargs):
    """A text family of keras-hub by its name, e.g. "Llama3"."""
    special, sizes = _TEXT[name]
    models = keras_hub.models
    tokenizer_class = getattr(models, f"{name}Tokenizer")
    if special:
        vocabulary, merges = byte_pairs(special)
        tokenizer = tokenizer_class(vocabulary=vocabulary, merges=merges)
    else:
        ends = {} if name == "Gemma" else {"end_piece": "</s>", "start_piece": "<s>"}
        ends |= {"symbols": ("<|endoftext|>",)} if name == "Phi3" else {}
        tokenizer = tokenizer_class(proto=tokenizer_proto(**ends))
    backbone = getattr(models, f"{name}Backbone")(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=num_layers,
        hidden_dim=width,
        intermediate_dim=2 * width,
        **sizes,
        **kwargs,
    )
    preprocessor = getattr(models, f"{name}CausalLMPreprocessor")(
        tokenizer=tokenizer, sequence_length=sequence_length
    )
    return getattr(models, f"{name}CausalLM")(
        backbone=backbone, preprocessor=preprocessor
    )


FAMILIES = {
    "PaliGemma": tiny_pali_gemma,
    "Gemma3": functools.partial(tiny_gemma3, max_images=2),
    "Gemma3n": tiny_gemma3n,
    "Gemma4": tiny_gemma4,
    "Qwen3_5": tiny_qwen3_5,
    "BLIP2_OPT": tiny_blip2_opt,
    "BLIP2_FlanT5": tiny_blip2_t5,
    "MobileVLM": tiny_mobilevlm,
    "Qwen2_5VL": functools.partial(tiny_qwen_vl, "qwen2_5_vl"),
    "Qwen3VL": functools.partial(tiny_qwen_vl, "qwen3_vl"),
    **{name: functools.partial(tiny_text, name) for name in _TEXT},
}
VISION = list(FAMILIES)[:10]
SEVERAL_IMAGES = ["Gemma3", "Gemma3n", "Gemma4", "Qwen3_5", "MobileVLM"]
SEVERAL_IMAGES += ["Qwen2_5VL", "Qwen3VL"]
FEATURES = [name for name in VISION if name not in ("Qwen3_5", "BLIP2_FlanT5")]

EVERYWHERE = "PyTorch, JAX, TensorFlow"
# Where `keras.Model.export` writes what answers as the student does. The logits of
# keras-hub's own call are not those that its `generate` and this library use for
# images of Gemma 3n (it takes padding for the next record's) and Qwen3.5 (it leaves
# out their rotary positions); `torch.export` cannot trace Gemma 4's pooling.
EXPORTED = {n: EVERYWHERE for n in FAMILIES if n not in ("Gemma3n", "Qwen3_5")}
EXPORTED["Gemma4"] = "JAX, TensorFlow"

# What a family can do, and where, if not everywhere; each column is what a test of
# `test_families.py` or `test_export.py` runs on.
SUPPORT = {
    "trains": list(FAMILIES),
    "generates": list(FAMILIES),
    "saved, as preset": list(FAMILIES),
    "`Model.export`": EXPORTED,
    "LoRA": list(FAMILIES),
    "int8 teacher": list(FAMILIES),  # with LoRA, in one test
    "0 to N images": SEVERAL_IMAGES,
    "image features": FEATURES,
    "attention": ["PaliGemma", "Gemma3", "Qwen2_5VL", "Qwen3VL"],
}
_NAMES = {
    "PaliGemma": "PaliGemma, PaliGemma 2",
    "Gemma3": "Gemma 3",
    "Gemma3n": "Gemma 3n",
    "Gemma4": "Gemma 4",
    "Qwen3_5": "Qwen3.5",
    "BLIP2_OPT": "BLIP-2 (OPT)",
    "BLIP2_FlanT5": "BLIP-2 (Flan-T5)",
    "MobileVLM": "MobileVLM V2, LLaVA-1.5",
    "Qwen2_5VL": "Qwen2-VL, Qwen2.5-VL",
    "Qwen3VL": "Qwen3-VL",
    "GPT2": "GPT-2",
    "Llama3": "Llama 3",
    "Phi3": "Phi-3",
    "Gemma": "Gemma, Gemma 2",
}
LORA_LAYERS = {  # where keras-hub's default finds no layer of the language model
    "Gemma3n": ["q_proj", "v_proj"],
    "BLIP2_FlanT5": ["query_projector", "value_projector"],
    "SmolLM3": ["q_proj", "v_proj"],
}
# What of a model can be quantised, where it is not all: layers of these two vision
# encoders have weights that Keras' quantisation does not know.
_LANGUAGE = r".*(decoder_block_|transformer_layer_|token_embedding).*"
QUANTIZED = {"Gemma4": _LANGUAGE, "Qwen3_5": _LANGUAGE}


def support_table():
    """The table of docs/models.md."""
    lines = ["| family | " + " | ".join(SUPPORT) + " |"]
    lines.append("|---" * (len(SUPPORT) + 1) + "|")
    for name in FAMILIES:
        cells = [_cell(name, names) for names in SUPPORT.values()]
        lines.append(f"| {_NAMES.get(name, name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(name, names):
    if name not in names:
        return ""
    where = names[name] if isinstance(names, dict) else EVERYWHERE
    return "yes" if where == EVERYWHERE else where
