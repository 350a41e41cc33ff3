"""Measures answers a second, from texts and images to texts, beside other libraries.

    python benchmarks/answering.py

Greedy answers of a Gemma-3-shaped model with random weights to prompts of 12 to 100
tokens, with or without an image of 256. Each ends by itself or after `--tokens`:
`keras_hub` by its own `generate`, compiled greedily, `ours` by `generate_answers`, and
on PyTorch `transformers` by `generate` of the model that keras-hub exports to it, where
it is installed (this library does not need it). All three take the prompts as they
come, in batches of one size. keras-hub has no limit of tokens for each answer: its
length is the longest prompt and answer, of the batch on PyTorch and of all prompts
where lengths are compiled for. The paths run in one process, in turns of a random order
after two runs that are not timed; the milliseconds are those of one answer.
"""

import argparse
import collections
import functools
import os
import sys
import tempfile

import numpy as np
from measure import compare, in_turns
from tiny_tokenizer import tokenizer_proto
from train_step import IMAGE_TOKENS, gemma3

WORDS = "a small large red blue square shape color here what is the of and".split()
# Width, blocks and classes; the classes beyond those of the tokenizer are no tokens.
MODELS = {"tiny": (64, 2, 1000), "medium": (512, 6, 32000)}
PROMPTS = {1: 8, 8: 32, 32: 64}
ENDS = (1, 8)  # the ids of the ends of texts and of turns


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "torch", "tensorflow"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--kinds", nargs="+", default=["text", "image"])
    parser.add_argument("--batches", nargs="+", type=int, default=list(PROMPTS))
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=PATHS)
    parser.add_argument("--tokens", type=int, default=32, help="most of an answer")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--worker", action="store_true")
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker:
        work(options)
        return
    for backend in options.backends:
        for model in options.models:
            for kind in options.kinds:
                for batch in options.batches:
                    compare_paths(options, backend, model, kind, batch)


def compare_paths(options, backend, model, kind, batch):
    worker = ["--worker", "--models", model, "--kinds", kind, "--batches", batch]
    worker += ["--tokens", options.tokens, "--turns", options.turns]
    paths = [p for p in options.paths if p != "transformers" or backend == "torch"]
    title = f"{backend}, {model}, {kind}, batch {batch}"
    compare(title, (__file__, [*worker, "--paths", *paths], backend))


def work(options):
    size = options.batches[0]
    shown = prompts(PROMPTS[size], options.kinds[0])
    model = answering_model(options.models[0], options.kinds[0])
    makers = {}
    for path in options.paths:
        make = PATHS[path](model, shown, size, options.tokens)
        if make is None:
            sys.stderr.write("transformers: not installed\n")
            continue
        makers[path] = make
    tokens = lengths(model, makers["ours"]()()) if "ours" in makers else {}
    sys.stderr.write(f"tokens of answers: {tokens}\n")
    in_turns(makers, copies=1, turns=options.turns, parts=len(shown["prompts"]))


def prompts(count, kind):
    rng = np.random.default_rng(0)
    texts = [
        " ".join(rng.choice(WORDS, int(10 * 10 ** rng.uniform()))) for _ in range(count)
    ]
    if kind == "text":
        return {"prompts": texts}
    images = rng.integers(0, 256, (count, 1, 64, 64, 3), dtype="uint8")
    return {"prompts": [f"<image>\n{text}" for text in texts], "images": list(images)}


def answering_model(name, kind):
    """A model whose greedy answers depend on all that it reads and end now and then."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    width, layers, classes = MODELS[name]
    model = gemma3(classes, width, layers, vision=kind == "image")
    model.preprocessor = preprocessor(kind)
    for variable in model.backbone.weights:
        if "attention_output" in variable.path or "ffw_linear" in variable.path:
            # Or the last token would be the next one, again and again.
            variable.assign(variable * 30.0)
    rng = np.random.default_rng(0)
    values = rng.normal(0, width**-0.5, (classes, width))
    first, last = 10, model.preprocessor.tokenizer.vocabulary_size()
    values[:first] = values[last:] = 0
    values[list(ENDS)] = rng.normal(0, END_SCALE[name] * width**-0.5, (2, width))
    model.backbone.token_embedding.embeddings.assign(values)
    model.compile(sampler=keras_hub.samplers.GreedySampler())
    return model


END_SCALE = {"tiny": 1.6, "medium": 2.2}


def preprocessor(kind):
    import keras_hub

    proto = tokenizer_proto(("<image>\n", *WORDS, " ".join(WORDS)))
    converter = keras_hub.layers.Gemma3ImageConverter(
        image_size=(64, 64), scale=1 / 127.5, offset=-1.0
    )
    return keras_hub.models.Gemma3CausalLMPreprocessor(
        tokenizer=keras_hub.models.Gemma3Tokenizer(proto=proto),
        image_converter=converter if kind == "image" else None,
        sequence_length=512,
        max_images_per_prompt=1,
        num_vision_tokens_per_image=IMAGE_TOKENS,
    )


def lengths(model, answers):
    """How many answers have how many tokens, by the tokens of their texts."""
    tokenizer = model.preprocessor.tokenizer
    found = collections.Counter(len(tokenizer(text)) for text in answers.values())
    return dict(sorted(found.items()))


def keras_hub_path(model, shown, size, tokens):
    import keras

    prompts = [p.replace("<image>", "<start_of_image>") for p in shown["prompts"]]
    parts = [slice(i, i + size) for i in range(0, len(prompts), size)]
    groups = [
        {"prompts": prompts[part], "images": shown["images"][part]}
        if "images" in shown
        else prompts[part]
        for part in parts
    ]
    lengths = [prompt_length(model, group) + tokens for group in groups]
    if keras.backend.backend() != "torch":
        lengths = [max(lengths)] * len(lengths)

    def run():
        found = []
        for group, length in zip(groups, lengths, strict=True):
            group = dict(group) if isinstance(group, dict) else group
            found += model.generate(group, max_length=length, strip_prompt=True)
        return found

    return lambda: run


def prompt_length(model, group):
    """The tokens of the longest prompt."""
    packed = model.preprocessor.generate_preprocess(group, sequence_length=512)
    return int(np.asarray(packed["padding_mask"]).sum(axis=1).max())


def ours_path(model, shown, size, tokens):
    from keras_betakd.evaluation import generate_answers

    run = functools.partial(
        generate_answers,
        model,
        shown,
        batch_size=size,
        max_new_tokens=tokens,
        progress=False,
    )
    return lambda: run


def transformers_path(model, shown, size, tokens):
    try:
        import transformers
    except ImportError:
        return None
    folder = tempfile.mkdtemp()
    model.export_to_transformers(folder)
    raise NotImplementedError(transformers, os)


PATHS = {
    "keras_hub": keras_hub_path,
    "ours": ours_path,
    "transformers": transformers_path,
}


if __name__ == "__main__":
    main()
