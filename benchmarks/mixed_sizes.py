"""A training epoch of images of many sizes beside the same images at one size.

    python benchmarks/mixed_sizes.py
    python benchmarks/mixed_sizes.py --backends jax --images any

A Qwen2.5-VL-shaped pair (vision encoder and language model in the proportion of the 3B
model) trains on records of one image each, a question and an answer of 8 tokens. The
images are read at their own sizes, by `min_pixels` and `max_pixels`, or all at one
square of as many image tokens as they have on average, without any padding. `photos`
have the shapes of photos and more pixels than the limit, as most images of a data set
have; `any` are of any size between the limits.

Batches are made before; a run is one epoch. Both kinds take turns in one process, after
two epochs that compile. The ratio is the median over turns, with the range that holds
95 % of them when turns are drawn again.
"""

import argparse
import math
import sys

import numpy as np
from measure import compare, in_turns

QUESTION, ANSWER = "what is it " * 4, "red and blue"
TEXT_TOKENS = 128
MOST_TOKENS, FEWEST_TOKENS = 256, 64  # of an image
SIDE = 28  # pixels along a side of an image token


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "torch", "tensorflow"])
    parser.add_argument("--images", nargs="+", default=["photos", "any"])
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--worker", choices=["photos", "any"])
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker:
        work(options)
        return
    for kind in options.images:
        sizes = image_sizes(kind, options.records)
        counts = [tokens(size) for size in sizes]
        sys.stdout.write(
            f"{kind}: {min(counts)} to {max(counts)} image tokens, "
            f"{np.mean(counts):.0f} on average, batches of "
            f"{len(shapes(counts, options.batch))} shapes\n"
        )
        sys.stdout.flush()
        for backend in options.backends:
            names = "records", "batch", "turns"
            given = [x for n in names for x in (f"--{n}", getattr(options, n))]
            compare(backend, (__file__, ["--worker", kind, *given], backend))


def image_sizes(kind, count):
    """Heights and widths in pixels."""
    rng = np.random.default_rng(0)
    if kind == "photos":
        shapes = [(3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9), (1, 1)]
        most = math.sqrt(2 * MOST_TOKENS) * SIDE
        return [
            tuple(int(most * math.sqrt(a / b)) for a, b in ((h, w), (w, h)))
            for h, w in (shapes[i] for i in rng.integers(0, len(shapes), count))
        ]
    areas = np.exp(rng.uniform(np.log(FEWEST_TOKENS), np.log(MOST_TOKENS), count))
    ratios = np.exp(rng.uniform(-0.7, 0.7, count))
    sides = np.stack([np.sqrt(areas * ratios), np.sqrt(areas / ratios)], axis=1)
    return [tuple(int(n) for n in SIDE * pair) for pair in sides]


def shapes(counts, batch_size):
    """The numbers of tokens that batches are padded to: each compiles a step."""
    from keras_betakd.preprocessing.qwen_vl_format import rounded_up

    starts = range(0, len(counts), batch_size)
    return {rounded_up(max(counts[i : i + batch_size]), MOST_TOKENS) for i in starts}


def tokens(size):
    return math.prod(n // 2 for n in converter().grid(*size)[1:])


def converter(fewest=FEWEST_TOKENS, most=MOST_TOKENS):
    from keras_betakd.qwen_vl import QwenVLImageConverter

    return QwenVLImageConverter(min_pixels=fewest * SIDE**2, max_pixels=most * SIDE**2)


def work(options):
    sizes = image_sizes(options.worker, options.records)
    side = round(math.sqrt(np.mean([tokens(size) for size in sizes])))
    square = [(side * SIDE, side * SIDE)] * len(sizes)
    batches = {
        "one size": batches_of(square, options.batch, converter(side**2, side**2)),
        "mixed sizes": batches_of(sizes, options.batch, converter()),
    }
    makers = {name: lambda made=made: epoch_of(made) for name, made in batches.items()}
    in_turns(makers, copies=1, turns=options.turns, parts=len(sizes) / options.batch)


def batches_of(sizes, batch_size, image_converter):
    """`(x, y, sample_weight)` of all batches."""
    from keras_betakd import DistillationPreprocessor

    preprocessor = preprocessor_of(image_converter)
    pair = DistillationPreprocessor(preprocessor, preprocessor, 16)
    rng = np.random.default_rng(1)
    found = []
    for start in range(0, len(sizes), batch_size):
        some = sizes[start : start + batch_size]
        images = [rng.integers(0, 256, (*size, 3), dtype="uint8") for size in some]
        records = {
            "prompts": [f"<image>{QUESTION}"] * len(some),
            "responses": [ANSWER] * len(some),
            "images": images,
        }
        found.append(pair(records))
    return found


def preprocessor_of(image_converter):
    from keras_betakd.qwen_vl import QwenVLCausalLMPreprocessor, QwenVLTokenizer

    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>")
    marks += ("<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    pieces = [*marks, *(chr(c) for c in range(33, 127)), "Ġ", "Ċ"]
    tokenizer = QwenVLTokenizer({p: i for i, p in enumerate(pieces)}, [])
    length = MOST_TOKENS + TEXT_TOKENS
    return QwenVLCausalLMPreprocessor(
        tokenizer, image_converter, sequence_length=length
    )


def epoch_of(batches):
    """A function that trains a new pair for one epoch."""
    import keras

    from keras_betakd import BetaKDDistiller, ForwardKLEnergy, InstanceBeta

    keras.utils.set_random_seed(0)
    distiller = BetaKDDistiller(
        model_of(256, 4, 96, 4),
        model_of(128, 2, 64, 2),
        ForwardKLEnergy(),
        InstanceBeta(),
    )
    distiller.compile(optimizer=keras.optimizers.AdamW(1e-4))

    def run():
        for batch in batches:
            distiller.train_on_batch(*batch)
        # What runs ahead has to end.
        keras.ops.convert_to_numpy(distiller.student.trainable_weights[0])

    return run


def model_of(width, layers, vision_width, vision_layers):
    from keras_betakd.qwen_vl import QwenVLBackbone, QwenVLCausalLM

    backbone = QwenVLBackbone(
        "qwen2_5_vl",
        vocabulary_size=8192,
        num_layers=layers,
        num_query_heads=width // 32,
        num_key_value_heads=2,
        head_dim=32,
        hidden_dim=width,
        intermediate_dim=4 * width,
        vision_num_layers=vision_layers,
        vision_num_heads=4,
        vision_hidden_dim=vision_width,
        vision_intermediate_dim=3 * vision_width,
        window_size=112,
        full_attention_layers=(vision_layers - 1,),
        rope_sections=(4, 6, 6),
    )
    return QwenVLCausalLM(backbone, preprocessor_of(converter()))


if __name__ == "__main__":
    main()
