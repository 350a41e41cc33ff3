"""Measures answers a second, from texts and images to texts, beside other libraries.

    python benchmarks/answering.py

Greedy answers of a Gemma-3-shaped model with random weights to prompts of 10 to 100
words, with or without an image of 256 tokens. Each ends by itself or after `--tokens`:
`keras_hub` by its own `generate`, compiled greedily, `ours` by `generate_answers`, and
on PyTorch `transformers` by `generate` of the model that keras-hub exports to it, where
it is installed (this library does not need it). All three take the prompts as they
come, in batches of one size. keras-hub has no limit of tokens for each answer: its
length is the longest prompt and answer, of the batch on PyTorch and of all prompts
where lengths are compiled for. The paths run in one process, in turns of a random order
after two runs that are not timed; the milliseconds are those of one answer.
"""

import argparse
import functools
import importlib.util
import sys
import tempfile

import numpy as np
from measure import compare, in_turns
from tiny_tokenizer import tokenizer_proto
from train_step import IMAGE_TOKENS, gemma3

WORDS = "a small large red blue square shape color here what is the of and".split()
# Width, blocks and classes; the classes beyond those of the tokenizer are no tokens.
MODELS = {"tiny": (64, 2, 1000), "medium": (384, 4, 32000)}
PROMPTS = {1: 4, 8: 16, 32: 64}  # how many, by the size of a batch
ENDS = (1, 8)  # the ids of the ends of texts and of turns


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "torch", "tensorflow"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--kinds", nargs="+", default=["text", "image"])
    parser.add_argument("--batches", nargs="+", type=int, default=list(PROMPTS))
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=PATHS)
    parser.add_argument("--tokens", type=int, default=32, help="most of an answer")
    parser.add_argument("--turns", type=int, default=3)
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
    title = f"{backend}, {model}, {kind}, batch {batch}"
    paths = list(options.paths)
    if "transformers" in paths and backend != "torch":
        paths.remove("transformers")
    elif "transformers" in paths and importlib.util.find_spec("transformers") is None:
        paths.remove("transformers")
        sys.stdout.write(f"{title}: transformers is not installed\n")
    compare(title, (__file__, [*worker, "--paths", *paths], backend))


def work(options):
    size = options.batches[0]
    shown = prompts(PROMPTS[size], options.kinds[0])
    model = answering_model(options.models[0], options.kinds[0])
    makers = {p: PATHS[p](model, shown, size, options.tokens) for p in options.paths}
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
    config = gemma3(classes, width, layers).backbone.get_config()
    config["vision_encoder"] = config["vision_encoder"] if kind == "image" else None
    config |= {"use_post_ffw_norm": True, "use_post_attention_norm": True}
    backbone = keras_hub.models.Gemma3Backbone.from_config(config)
    model = keras_hub.models.Gemma3CausalLM(preprocessor(kind), backbone)
    for variable in backbone.weights:
        if "post_" in variable.path:
            # Or the last token would be the next one, again and again.
            variable.assign(np.full(variable.shape, 9.0))
    rng = np.random.default_rng(0)
    values = rng.normal(0, width**-0.5, (classes, width))
    first, last = 10, model.preprocessor.tokenizer.vocabulary_size()
    values[:first] = values[last:] = 0
    values[list(ENDS)] = rng.normal(0, END_SCALE[name] * width**-0.5, (2, width))
    backbone.token_embedding.embeddings.assign(values)
    model.compile(sampler="greedy")
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


def keras_hub_path(model, shown, size, tokens):
    import keras

    groups = groups_of(shown, size)
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


def groups_of(shown, size):
    """Batches as keras-hub takes them."""
    prompts = [p.replace("<image>", "<start_of_image>") for p in shown["prompts"]]
    parts = [slice(i, i + size) for i in range(0, len(prompts), size)]
    if "images" not in shown:
        return [prompts[part] for part in parts]
    images = shown["images"]
    return [{"prompts": prompts[part], "images": images[part]} for part in parts]


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
    """Greedy answers of the exported model, prompts padded on the left."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        model.export_to_transformers(folder)
        name = "Gemma3ForCausalLM"
        if "images" in shown:
            name = "Gemma3ForConditionalGeneration"
        other = getattr(transformers, name).from_pretrained(folder).eval()
    other.config.image_token_id = model.preprocessor.tokenizer.token_to_id("<img>")
    groups = groups_of(shown, size)

    def run():
        found = []
        for group in groups:
            inputs = left_padded(model.preprocessor, group)
            inputs = {name: torch.from_numpy(x) for name, x in inputs.items()}
            ids = other.generate(
                **inputs,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=list(ENDS),
            )
            ids = ids[:, inputs["input_ids"].shape[1] :].numpy()
            found += model.preprocessor.tokenizer.detokenize(ids)
        return found

    return lambda: run


def left_padded(preprocessor, group):
    """What `generate` of transformers takes, of keras-hub's own preprocessing."""
    packed = preprocessor.generate_preprocess(group, sequence_length=512)
    packed = {name: np.asarray(x) for name, x in packed.items()}
    mask = packed["padding_mask"].astype(bool)
    length = mask.sum(axis=1).max()
    ids, present = np.zeros((2, len(mask), length), "int64")
    for row, is_token in enumerate(mask):
        count = is_token.sum()
        ids[row, length - count :] = packed["token_ids"][row, is_token]
        present[row, length - count :] = 1
    inputs = {"input_ids": ids, "attention_mask": present}
    if not isinstance(group, dict):
        return inputs
    images = packed["images"].reshape(-1, 64, 64, 3).transpose(0, 3, 1, 2)
    image = preprocessor.tokenizer.token_to_id("<img>")
    is_image = (ids == image).astype("int64")
    return {
        **inputs,
        "pixel_values": np.ascontiguousarray(images),
        "token_type_ids": is_image,
    }


PATHS = {
    "keras_hub": keras_hub_path,
    "ours": ours_path,
    "transformers": transformers_path,
}


if __name__ == "__main__":
    main()
