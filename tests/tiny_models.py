"""Tiny but real keras-hub models, with a tokenizer trained on the spot.

Real classes at small size rather than mocks: what passes here runs the same code
as a checkpoint of seven billion parameters.
"""

import functools
import io

import keras_hub
import numpy as np
import sentencepiece

CORPUS = [
    "Context: N/A\nQuestion: what color is the shape?\nOptions: (A) red (B) blue",
    "Context: look at the picture\nQuestion: is there a circle? Options: (C) yes",
    "Question: which shape is present? (D) triangle (E) rectangle",
    "The answer is A. The answer is B. The answer is C. The answer is D.",
    "one two three four five six seven eight nine ten yes no green teal",
]
IMAGE_SIZE = 16
GEMMA_PIECES = (
    "<start_of_image>",
    "<end_of_image>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<img>",
)


@functools.lru_cache
def tokenizer_proto(
    extra_word="zebra",
    symbols=GEMMA_PIECES,
    start_piece="<bos>",
    end_piece="<eos>",
):
    """A SentencePiece model with a family's special pieces, as bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS, extra_word]),
        model_writer=model,
        vocab_size=160,
        model_type="BPE",
        hard_vocab_limit=False,
        byte_fallback=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece=end_piece,
        bos_piece=start_piece,
        unk_piece="<unk>",
        user_defined_symbols=[*symbols, "\n"],
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def tiny_gemma3(
    width=8,
    num_layers=1,
    image_size=IMAGE_SIZE,
    sequence_length=96,
    extra_word="zebra",
    dropout=0.0,
    dtype=None,
    grid=2,
    max_images=1,
    heads=2,
    **backbone_kwargs,
):
    """A Gemma 3 with a vision tower: an image becomes `grid` x `grid` tokens."""
    tokenizer = keras_hub.models.Gemma3Tokenizer(proto=tokenizer_proto(extra_word))
    vision_encoder = keras_hub.models.Gemma3VisionEncoder(
        image_size=image_size,
        patch_size=4,
        num_heads=2,
        hidden_dim=8,
        num_layers=1,
        intermediate_dim=16,
        output_dim=width,
        pool_size=image_size // (4 * grid),
        dtype=dtype,
    )
    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        image_size=image_size,
        num_layers=num_layers,
        num_query_heads=heads,
        num_key_value_heads=1,
        hidden_dim=width,
        intermediate_dim=2 * width,
        head_dim=4,
        vision_encoder=vision_encoder,
        dropout=dropout,
        dtype=dtype,
        **backbone_kwargs,
    )
    preprocessor = keras_hub.models.Gemma3CausalLMPreprocessor(
        tokenizer=tokenizer,
        image_converter=keras_hub.layers.Gemma3ImageConverter(
            image_size=(image_size, image_size), scale=1 / 127.5, offset=-1.0
        ),
        sequence_length=sequence_length,
        max_images_per_prompt=max_images,
        num_vision_tokens_per_image=backbone.num_vision_tokens_per_image,
    )
    return keras_hub.models.Gemma3CausalLM(backbone=backbone, preprocessor=preprocessor)


def tiny_pali_gemma(width=8, image_size=IMAGE_SIZE, sequence_length=80, **kwargs):
    """A PaliGemma: 16x16 images become 4 image tokens in front of the text."""
    tokenizer = keras_hub.models.PaliGemmaTokenizer(proto=tokenizer_proto())
    backbone = keras_hub.models.PaliGemmaBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        image_size=image_size,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=width,
        intermediate_dim=2 * width,
        head_dim=4,
        vit_patch_size=8,
        vit_num_heads=2,
        vit_hidden_dim=8,
        vit_num_layers=1,
        vit_intermediate_dim=16,
        **kwargs,
    )
    preprocessor = keras_hub.models.PaliGemmaCausalLMPreprocessor(
        tokenizer=tokenizer,
        image_converter=keras_hub.layers.PaliGemmaImageConverter(
            image_size=(image_size, image_size), scale=1 / 127.5, offset=-1.0
        ),
        sequence_length=sequence_length,
    )
    return keras_hub.models.PaliGemmaCausalLM(
        backbone=backbone, preprocessor=preprocessor
    )


def tiny_gemma_text(width=8, sequence_length=64, extra_word="zebra", heads=2, **kwargs):
    """A text-only Gemma."""
    tokenizer = keras_hub.models.GemmaTokenizer(proto=tokenizer_proto(extra_word))
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_query_heads=heads,
        num_key_value_heads=1,
        hidden_dim=width,
        intermediate_dim=4 * width,
        head_dim=4,
        **kwargs,
    )
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(
        tokenizer=tokenizer, sequence_length=sequence_length
    )
    return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=preprocessor)


def random_image(seed, height=IMAGE_SIZE, width=IMAGE_SIZE):
    return np.random.default_rng(seed).integers(
        0, 256, size=(height, width, 3), dtype="uint8"
    )


def vqa_records(size=4, image_size=IMAGE_SIZE):
    """Raw records as the ScienceQA loader yields them, every one with an image."""
    colors = ["red", "blue", "green", "teal"]
    return {
        "ids": [f"q{i}" for i in range(size)],
        "prompts": ["<image>\nQuestion: what color is the shape?"] * size,
        "responses": [colors[i % 4] for i in range(size)],
        "images": [[random_image(i, image_size, image_size)] for i in range(size)],
    }
