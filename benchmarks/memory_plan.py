"""The memory plan of a training step beside what the step takes.

    python benchmarks/memory_plan.py                 # every pair and backend
    python benchmarks/memory_plan.py --backends jax --pairs text images

Pairs of Gemma 3's shape (keras-hub's classes), a batch of one record unless it says
otherwise. `text` trains all of the student, `remat` does so with
`BetaKDDistiller(remat=True)`, `cached` with a cache in the teacher's place: a teacher
of width 128 and a student of 64, four blocks each, 4,096 positions. `images` has a
picture of 224 x 224 in each of two records of 2,048 positions. `medium` is a teacher
and a student of width 512 and eight blocks, 1,024 positions.

Plan and step run in processes of their own. Measured is the peak of a step above what
is held before it, to which the table adds what variables and batch take; on PyTorch and
JAX after two steps, and on TensorFlow, which keeps the memory of its first step, in
that step, and so with what the runtime takes for the program. glibc is told to give
back what is free (`MALLOC_MMAP_THRESHOLD_`), which it keeps otherwise, and XLA to leave
YNNPACK out on a CPU, whose memory it does not know of; `--ynnpack` lets it in.
"""

import argparse
import json
import os
import sys

import activations
from measure import in_fresh_process, report
from tiny_tokenizer import tokenizer_proto

PAIRS = ("text", "remat", "cached", "images", "medium")
IMAGE = 224


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=PAIRS, choices=PAIRS)
    parser.add_argument("--backends", nargs="+", default=["torch", "jax", "tensorflow"])
    parser.add_argument("--worker", choices=("plan", "step"))
    parser.add_argument("--ynnpack", action="store_true")
    parser.add_argument("--length", type=int, default=4096, help="of the text pairs")
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.pairs[0], options.length)
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    if not options.ynnpack:
        os.environ["XLA_FLAGS"] = "--xla_cpu_experimental_ynn_fusion_type="
    write(
        "backend",
        "pair",
        "plan MB",
        "measured",
        "ratio",
        "step MB",
        "measured",
        "ratio",
    )
    for backend in options.backends:
        for pair in options.pairs:
            write(backend, pair, *compared(backend, pair, options.length))


def write(*texts):
    line = "{:<11} {:<8}" + 6 * " {:>9}" + "\n"
    sys.stdout.write(line.format(*texts, *[""] * (8 - len(texts))))
    sys.stdout.flush()


def compared(backend, pair, length):
    """Plan, measured and ratio, of the peak and of what a step adds to what is held."""
    shared = ["--pairs", pair, "--length", length]
    plan, step = (
        in_fresh_process(__file__, ["--worker", worker, *shared], backend)
        for worker in ("plan", "step")
    )
    if "failed" in plan or "failed" in step:
        return [plan.get("failed") or step["failed"]]
    # Keras' trainer keeps the gradients on PyTorch.
    kept = plan["gradients"] if backend == "torch" else 0
    found = step["megabytes"] + kept
    pairs = (plan["peak"], plan["held"] + found), (plan["peak"] - plan["held"], found)
    texts = [(f"{a:,.0f}", f"{b:,.0f}", f"{a / b:.2f}") for a, b in pairs]
    return [text for triple in texts for text in triple]


def work(worker, pair, length):
    import keras

    model, data = made(pair, length)
    if worker == "plan":
        plan = model.memory_plan(data, savings=False)
        sizes = {"peak": plan.peak, "held": plan.held, "gradients": plan.gradients}
        sys.stdout.write(json.dumps({k: v / 2**20 for k, v in sizes.items()}) + "\n")
        return
    batch = model.preprocessor(data)

    def step():
        model.train_on_batch(*batch)

    if keras.backend.backend() != "tensorflow":
        step()
        step()
    report(step, repeats=0)


def made(pair, length):
    """A distiller, and the records of its batch."""
    import keras

    keras.utils.set_random_seed(0)
    if pair == "images":
        models = with_images(128), with_images(64)
        return activations.distiller(*models, remat=False), image_records()
    if pair == "medium":
        teacher, student = (activations.gemma3(512, 8, 1024) for _ in range(2))
        return activations.distiller(teacher, student, remat=False), activations.DATA
    path = {"text": "full", "remat": "full + remat"}.get(pair, pair)
    shape = argparse.Namespace(worker=path, lengths=[length], layers=4)
    return activations.make_step(shape)[0], activations.DATA


def image_records():
    import numpy as np

    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (2, IMAGE, IMAGE, 3)).astype("uint8")
    texts = {
        "prompts": ["<image>\n" + activations.QUESTION] * 2,
        "responses": [activations.ANSWER] * 2,
    }
    return {**texts, "ids": ["0", "1"], "images": images}


def with_images(width, length=2048):
    import keras_hub

    tower = keras_hub.models.Gemma3VisionEncoder(
        image_size=IMAGE,
        patch_size=14,
        num_heads=4,
        hidden_dim=width,
        num_layers=2,
        intermediate_dim=4 * width,
        output_dim=width,
        pool_size=2,
    )
    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=8192,
        image_size=IMAGE,
        num_layers=4,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=width,
        intermediate_dim=4 * width,
        head_dim=64,
        vision_encoder=tower,
    )
    texts = activations.QUESTION, activations.ANSWER
    preprocessor = keras_hub.models.Gemma3CausalLMPreprocessor(
        tokenizer=keras_hub.models.Gemma3Tokenizer(proto=tokenizer_proto(texts)),
        image_converter=keras_hub.layers.Gemma3ImageConverter(
            image_size=(IMAGE, IMAGE), scale=1 / 127.5, offset=-1.0
        ),
        sequence_length=length,
        max_images_per_prompt=1,
        num_vision_tokens_per_image=backbone.num_vision_tokens_per_image,
    )
    return keras_hub.models.Gemma3CausalLM(preprocessor, backbone)


if __name__ == "__main__":
    main()
