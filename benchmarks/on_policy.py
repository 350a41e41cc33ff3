"""Measures what it costs that a student answers its training prompts.

    python benchmarks/on_policy.py

A Gemma-3-shaped student answers prompts with an image each, from texts and images to
token ids: `keras_hub` by its own `generate` with a `RandomSampler`, compiled, to the
same length; `ours` by what `StudentAnswers` does at the beginning of an epoch. Both run
in one process, in turns of a random order, after two runs that are not timed. The
number of times that each was compiled is counted over all of them.
"""

import argparse
import sys

import numpy as np
from measure import compare, in_turns
from teacher_cache import TEXTS, records, with_preprocessor
from tiny_tokenizer import tokenizer_proto
from train_step import gemma3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "torch", "tensorflow"])
    defaults = {"prompts": 32, "batch": 8, "tokens": 32, "turns": 9}
    defaults |= {"width": 128, "layers": 4}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--worker", action="store_true")
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker:
        work(options)
        return
    for backend in options.backends:
        worker = ["--worker"]
        for name in ("prompts", "batch", "tokens", "turns", "width", "layers"):
            worker += [f"--{name}", getattr(options, name)]
        title = f"{backend}, {options.prompts} answers of {options.tokens} tokens"
        compare(title, (__file__, worker, backend))


def work(options):
    makers = {"keras_hub": make_keras_hub, "ours": make_ours}
    made = {name: lambda make=make: make(options) for name, make in makers.items()}
    in_turns(made, copies=1, turns=options.turns)


def student(options):
    """A student that never ends its answers: all have the same length."""
    import keras

    keras.utils.set_random_seed(0)
    classes = _tokenizer().vocabulary_size()
    model = with_preprocessor(gemma3(classes, options.width, options.layers))
    embedding = model.backbone.token_embedding.embeddings
    values = np.random.default_rng(0).normal(size=embedding.shape)
    values[[_tokenizer().end_token_id, 8]] = 0  # the ends of texts and of turns
    embedding.assign(values)
    model.preprocessor.sequence_length = 512
    return model


def _tokenizer():
    import keras_hub

    return keras_hub.models.Gemma3Tokenizer(proto=tokenizer_proto(TEXTS))


def make_keras_hub(options):
    import keras_hub

    from keras_betakd.preprocessing import model_inputs

    model, data = student(options), records(options.prompts)
    model.compile(sampler=keras_hub.samplers.RandomSampler(seed=0))
    counted(model, "keras_hub")
    inputs = model_inputs(model.preprocessor, without_answers(data))
    length = total_length(model, inputs, options)
    size = options.batch

    def run():
        for i in range(0, options.prompts, size):
            group = {k: v[i : i + size] for k, v in without_answers(data).items()}
            shown = model_inputs(model.preprocessor, group)
            model.generate(dict(shown), max_length=length)

    return run


def without_answers(data):
    return {key: data[key] for key in ("ids", "prompts", "images")}


def total_length(model, inputs, options):
    """The length that ours decodes in."""
    from keras_betakd.models.answer_function import decoded_length
    from keras_betakd.preprocessing import format_of

    lengths = format_of(model.preprocessor).prompt_lengths(inputs, 512)
    needed = max(lengths["sequence_length"]) + options.tokens
    return decoded_length(needed, model.preprocessor.sequence_length)


def make_ours(options):
    from keras_betakd.models import view_of
    from keras_betakd.on_policy.decoder import AnswerDecoder

    model, data = student(options), records(options.prompts)
    counted(model, "ours")
    decoder = AnswerDecoder(view_of(model), None, options.tokens)
    keys = data["ids"]

    def run():
        decoder.begin(0)
        found = list(decoder.answered(decoder.prompts(data, keys), options.batch))
        assert all(len(tokens) == options.tokens for _, tokens, _ in found)

    return run


def counted(model, name):
    """Says how often a model's `generate_step` is traced; on PyTorch, how often run."""
    step, count = model.generate_step, [0]

    def generate_step(*args, **kwargs):
        count[0] += 1
        sys.stderr.write(f"{name}: generate_step, {count[0]}\n")
        return step(*args, **kwargs)

    model.generate_step = generate_step


if __name__ == "__main__":
    main()
