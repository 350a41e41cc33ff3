"""Measures what the input of a training costs, and how long a step waits for it.

    python benchmarks/input_path.py                 # processor time of a record
    python benchmarks/input_path.py --waits         # epochs with a step of some length

Raw records with a picture of `--picture` pixels (uint8 arrays, so that no file is read)
become batches for a pair of Gemma 3 models of one image size and 8 channels. `fit`
trains them on a dict of columns, a `PyDataset`, a `tf.data` data set and a torch
`DataLoader`. Beside them:

- `prepared`: `fit` on batches that were made before, which is what a step costs;
- `keras-hub`: its own preprocessing of one model, batch by batch;
- `pillow`: one model, by Pillow, NumPy and SentencePiece alone;
- `transformers`: its Gemma 3 image processor, one model, no text; if installed.

Each runs in a fresh process; the table gives the median of `--repeats` epochs. The
processor time of `fit` without that of `prepared` is the price of its input. `--waits`
puts a pause of `--step` ms, in which a device would compute, behind each step of
`prepared` and of each way to `fit`.
"""

import argparse
import json
import statistics
import sys
import time

import numpy as np
from measure import in_fresh_process
from tiny_tokenizer import tokenizer_proto

FIT = ("prepared", "dict", "PyDataset", "tf.data", "DataLoader")
PATHS = (*FIT, "keras-hub", "pillow", "transformers")
QUESTION = "what color is the large shape here, and is there a circle beside it?"
ANSWERS = ("a small red square", "blue")
TEXTS = (QUESTION, *ANSWERS)
SEQUENCE_LENGTH, IMAGE_TOKENS = 512, 256


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waits", action="store_true", help="epochs with a pause")
    parser.add_argument("--paths", nargs="+", default=PATHS, choices=PATHS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 448, 896])
    parser.add_argument("--backend", default="torch")
    for name, default in {"picture": 1024, "records": 32, "batch": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step", type=float, default=0, help="ms of the pause")
    parser.add_argument("--worker", choices=PATHS)
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker:
        work(options)
        return
    paths = [p for p in options.paths if p in FIT or not options.waits]
    line = "{:>5} {:<13}{:>14}{:>14}{:>10}{:>12}\n"
    heads = "size", "path", "CPU ms/record", "its input", "records/s", "of prepared"
    sys.stdout.write(line.format(*heads))
    for size in options.sizes:
        prepared = None
        for path in paths:
            numbers = in_fresh_process(
                __file__, worker_arguments(options, path, size), options.backend
            )
            if path == "prepared":
                prepared = numbers
            sys.stdout.write(line.format(size, path, *cells(numbers, path, prepared)))
            sys.stdout.flush()


def worker_arguments(options, path, size):
    names = "picture", "records", "batch", "repeats", "step"
    given = [text for n in names for text in (f"--{n}", getattr(options, n))]
    return ["--worker", path, "--sizes", size, *given]


def cells(numbers, path, prepared):
    """A line's processor times, records a second, and time beside `prepared`."""
    if "failed" in numbers:
        return numbers["failed"], "", "", ""
    cpu, seconds = numbers["cpu"], numbers["seconds"]
    is_fit = prepared is not None and path in FIT[1:] and "failed" not in prepared
    return (
        f"{1e3 * cpu:.1f}",
        f"{1e3 * (cpu - prepared['cpu']):.1f}" if is_fit else "",
        f"{1 / seconds:.1f}",
        f"{seconds / prepared['seconds']:.2f}" if is_fit else "",
    )


def work(options):
    """Writes medians of an epoch's processor time and seconds, for each record."""
    size = options.sizes[0]
    data = records(options.records, options.picture)
    epoch = EPOCHS[options.worker](data, size, options)
    for _ in range(2):
        epoch()
    measured = []
    for _ in range(options.repeats):
        begin = time.process_time(), time.perf_counter()
        epoch()
        measured.append(
            (time.process_time() - begin[0], time.perf_counter() - begin[1])
        )
    cpu, seconds = (
        statistics.median(values) / options.records
        for values in zip(*measured, strict=True)
    )
    sys.stdout.write("\n" + json.dumps({"cpu": cpu, "seconds": seconds}) + "\n")


def records(count, picture):
    rng = np.random.default_rng(0)
    shape = count, 1, picture, picture, 3
    return {
        "prompts": ["<image>\n" + QUESTION] * count,
        "responses": [ANSWERS[i % 2] for i in range(count)],
        "images": list(rng.integers(0, 256, shape, dtype="uint8")),
    }


def batches(data, size):
    starts = range(0, len(data["prompts"]), size)
    return [{k: v[i : i + size] for k, v in data.items()} for i in starts]


def hub_preprocessor(size):
    import keras_hub

    return keras_hub.models.Gemma3CausalLMPreprocessor(
        tokenizer=keras_hub.models.Gemma3Tokenizer(proto=tokenizer_proto(TEXTS)),
        image_converter=keras_hub.layers.Gemma3ImageConverter(
            image_size=(size, size), scale=1 / 127.5, offset=-1.0
        ),
        sequence_length=SEQUENCE_LENGTH,
        max_images_per_prompt=1,
        num_vision_tokens_per_image=IMAGE_TOKENS,
    )


def tiny_gemma3(size):
    """One whose step costs little, with the sizes that its input depends on."""
    import keras_hub

    preprocessor = hub_preprocessor(size)
    layers = {"num_layers": 1, "hidden_dim": 8, "intermediate_dim": 8}
    vision = keras_hub.models.Gemma3VisionEncoder(
        image_size=size,
        patch_size=size // 16,
        num_heads=1,
        output_dim=8,
        pool_size=1,
        **layers,
    )
    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=preprocessor.tokenizer.vocabulary_size(),
        image_size=size,
        num_query_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        vision_encoder=vision,
        **layers,
    )
    return keras_hub.models.Gemma3CausalLM(backbone=backbone, preprocessor=preprocessor)


# An epoch of each path


def fitting(data, size, options):
    """`fit` of the smallest Gemma 3 as a pair, with a pause behind each step."""
    import keras

    import keras_betakd as kd

    class Pause(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            time.sleep(options.step / 1e3)

    model = kd.BetaKDDistiller(
        *(tiny_gemma3(size) for _ in range(2)),
        kd.CosineProbsEnergy(),
        kd.FixedBeta(),
        max_response_length=16,
        prompt_template=None,
    )
    model.compile(optimizer=keras.optimizers.SGD(0.01))
    data = INPUTS[options.worker](data, options.batch, model.preprocessor)
    return lambda: model.fit(
        data,
        verbose=0,
        callbacks=[Pause()] if options.step else None,
        batch_size=options.batch if options.worker == "dict" else None,
    )


def in_turn(items):
    """A `PyDataset` of batches that are there."""
    import keras

    class InTurn(keras.utils.PyDataset):
        def __len__(self):
            return len(items)

        def __getitem__(self, i):
            return items[i]

    return InTurn()


def as_prepared(data, batch, preprocessor):
    return in_turn([preprocessor(few) for few in batches(data, batch)])


def as_dict(data, batch, preprocessor):
    return data


def as_pydataset(data, batch, preprocessor):
    return in_turn(batches(data, batch))


def as_tf_data(data, batch, preprocessor):
    import tensorflow as tf

    arrays = {**data, "images": np.stack(data["images"])}
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch)


def as_data_loader(data, batch, preprocessor):
    import torch

    rows = [
        dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)
    ]
    return torch.utils.data.DataLoader(
        rows, batch, collate_fn=lambda few: {k: [r[k] for r in few] for k in few[0]}
    )


INPUTS = {
    "prepared": as_prepared,
    "dict": as_dict,
    "PyDataset": as_pydataset,
    "tf.data": as_tf_data,
    "DataLoader": as_data_loader,
}


def by_keras_hub(data, size, options):
    preprocessor = hub_preprocessor(size)
    mark = preprocessor.start_of_image_token
    prompts = [p.replace("<image>", mark) for p in data["prompts"]]
    found = batches({**data, "prompts": prompts}, options.batch)
    found = [{**few, "images": np.stack(few["images"])} for few in found]
    return lambda: [preprocessor(few) for few in found]


def by_pillow(data, size, options):
    import sentencepiece
    from PIL import Image

    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_proto(TEXTS))
    mark = "<start_of_image>" + "<img>" * IMAGE_TOKENS + "<end_of_image>"

    def batch(few):
        pixels = np.empty((len(few["prompts"]), size, size, 3), "float32")
        ids = np.zeros((len(pixels), SEQUENCE_LENGTH), "int32")
        for i, (prompt, response) in enumerate(
            zip(few["prompts"], few["responses"], strict=True)
        ):
            picture = Image.fromarray(few["images"][i][0])
            small = picture.resize((size, size), Image.Resampling.BILINEAR)
            pixels[i] = np.asarray(small, "float32") / 127.5 - 1
            text = prompt.replace("<image>", mark) + response
            found = [2, *tokenizer.encode(text), 1]
            ids[i, : len(found)] = found
        return pixels, ids

    found = batches(data, options.batch)
    return lambda: [batch(few) for few in found]


def by_transformers(data, size, options):
    from transformers import Gemma3ImageProcessor

    processor = Gemma3ImageProcessor(size={"height": size, "width": size})
    found = [
        [image[0] for image in few["images"]] for few in batches(data, options.batch)
    ]
    return lambda: [processor(few, return_tensors="np") for few in found]


EPOCHS = {
    **dict.fromkeys(FIT, fitting),
    "keras-hub": by_keras_hub,
    "pillow": by_pillow,
    "transformers": by_transformers,
}


if __name__ == "__main__":
    main()
