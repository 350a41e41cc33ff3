"""Measures the time that a teacher cache saves, and the error of energies by top-k.

    python benchmarks/teacher_cache.py                   # time an epoch, every path
    python benchmarks/teacher_cache.py --errors          # of each energy, by top_k

Time: the Gemma-3-shaped pair of `train_step.py`, on raw records with an image each,
preprocessing included. `live` runs the teacher, `cached` and `top_k` read a cache (64
classes); `finetune` is the student's own keras-hub `fit` on the same records, and
`answers` a lower bound of fine-tuning: the student's cross-entropy on the answer rows
alone. Each path runs in a fresh process; the table gives the median of `--repeats`
epochs per step, the range of the middle 80 %, and the peak of memory.

Errors: teacher rows whose best class has a probability from 0.05 to 1 (the others fall
off by Zipf's law), a student that is the teacher with noise; the mean of
|l(top k) - l| / l over 256 rows.
"""

import argparse
import sys
import tempfile

import numpy as np
from measure import Table, in_fresh_process, report
from tiny_tokenizer import tokenizer_proto
from train_step import IMAGE_TOKENS, gemma3

TOKENS = IMAGE_TOKENS + 64
PATHS = ("answers", "finetune", "live", "cached", "top_k")
TOP_K = (8, 32, 64, 256, 1024)
QUESTION = "<image>\nwhat is the color of the large shape here?"
ANSWERS = ("a small red square", "blue")
TEXTS = (QUESTION, *ANSWERS)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--errors", action="store_true", help="errors, no times")
    parser.add_argument("--paths", nargs="+", default=PATHS, choices=PATHS)
    parser.add_argument("--backends", nargs="+", default=["jax", "torch", "tensorflow"])
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[32000, 262144])
    for name, default in {"records": 32, "batch": 4, "repeats": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--worker", choices=PATHS)
    return parser.parse_args()


def main():
    options = arguments()
    if options.errors:
        errors(options.vocabulary[0])
        return
    if options.worker:
        steps = -(-options.records // options.batch)
        report(make_epoch(options), options.repeats, steps)
        return
    table = Table({"backend": 11, "V": 7, "path": 9})
    for backend in options.backends:
        for classes in options.vocabulary:
            table.start()
            for path in options.paths:
                worker = ["--worker", path, "--vocabulary", classes]
                for name in ("records", "batch", "repeats"):
                    worker += [f"--{name}", getattr(options, name)]
                numbers = in_fresh_process(__file__, worker, backend)
                # What the lines after it are compared with.
                role = "floor" if path == "answers" else path
                table.add((backend, classes, path), role, numbers)


def make_epoch(options):
    """A function that trains for an epoch."""
    import keras

    keras.utils.set_random_seed(0)
    classes, data = options.vocabulary[0], records(options.records)
    student = with_preprocessor(gemma3(classes, 128, 1))
    student.backbone.vision_encoder.get_layer("image_encoder").trainable = False
    if options.worker in ("answers", "finetune"):
        return PREPARE[options.worker](student, data, options.batch)
    teacher = with_preprocessor(gemma3(classes, 256, 3))
    return distil(teacher, student, data, options)


def records(size):
    rng = np.random.default_rng(0)
    return {
        "ids": [str(i) for i in range(size)],
        "prompts": [QUESTION] * size,
        "responses": [ANSWERS[i % 2] for i in range(size)],
        "images": list(rng.integers(0, 256, (size, 1, 64, 64, 3), dtype="uint8")),
    }


def with_preprocessor(model):
    import keras_hub

    converter = keras_hub.layers.Gemma3ImageConverter(
        image_size=(64, 64), scale=1 / 127.5, offset=-1.0
    )
    model.preprocessor = keras_hub.models.Gemma3CausalLMPreprocessor(
        tokenizer=keras_hub.models.Gemma3Tokenizer(proto=tokenizer_proto(TEXTS)),
        image_converter=converter,
        sequence_length=TOKENS,
        max_images_per_prompt=1,
        num_vision_tokens_per_image=IMAGE_TOKENS,
    )
    return model


def distil(teacher, student, data, options):
    import keras_betakd as kd

    def distiller(teacher):
        pair = teacher.preprocessor, student.preprocessor
        preprocessor = kd.DistillationPreprocessor(*pair, max_response_length=16)
        model = kd.BetaKDDistiller(
            teacher,
            student,
            kd.CosineProbsEnergy(),
            kd.InstanceBeta(),
            preprocessor=preprocessor,
        )
        model.compile()
        return model

    model = distiller(teacher)
    if options.worker != "live":
        top_k = 64 if options.worker == "top_k" else None
        folder = tempfile.TemporaryDirectory()
        cached = kd.cache_teacher(model, data, folder.name, top_k=top_k, verbose=0)
        model = distiller(cached)
        model.folder = folder  # removed with the model
    return lambda: model.fit(data, batch_size=options.batch, verbose=0)


def answers(student, data, batch):
    import keras
    from keras import ops

    import keras_betakd as kd

    pair = student.preprocessor, student.preprocessor
    preprocessor = kd.DistillationPreprocessor(*pair, max_response_length=16)

    class Answers(keras.Model):
        def __init__(self):
            super().__init__()
            self.backbone = student.backbone

        def call(self, x, training=None):
            hidden = self.backbone(x["student"], training=training)
            where = x["student_positions"][..., None]
            rows = ops.take_along_axis(hidden, where, axis=1)
            return self.backbone.token_embedding(rows, reverse=True)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return -(-len(data["ids"]) // batch)

        def __getitem__(self, i):
            start = i * batch
            few = {k: v[start : start + batch] for k, v in data.items()}
            x, y, weight = preprocessor(few)
            del x["teacher"], x["teacher_positions"]
            return x, y, weight

    model = Answers()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(2e-5), loss=loss)
    return lambda: model.fit(Batches(), verbose=0)


def finetune(student, data, batch):
    import keras

    student.compile(
        optimizer=keras.optimizers.Adam(2e-5),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = {key: np.array(data[key]) for key in ("prompts", "responses", "images")}
    return lambda: student.fit(x, batch_size=batch, verbose=0)


PREPARE = {"answers": answers, "finetune": finetune}


def errors(classes):
    """Writes a table of the errors of top-k teachers."""
    from keras import ops

    import keras_betakd as kd
    from keras_betakd.teacher_cache.source import top_classes
    from keras_betakd.teacher_cache.teacher import top_classes_logits

    energies = {
        "forward KL": kd.ForwardKLEnergy(),
        "reverse KL": kd.ReverseKLEnergy(),
        "JS": kd.JensenShannonEnergy(),
        "TVD": kd.TotalVariationEnergy(),
        "skew KL": kd.SkewForwardKLEnergy(),
        "cosine, probabilities": kd.CosineProbsEnergy(),
        "MSE, probabilities": kd.MSEProbsEnergy(),
        "cosine, logits": kd.CosineLogitsEnergy(),
        "MSE, logits": kd.MSELogitsEnergy(),
    }
    teacher, student = map(ops.convert_to_tensor, rows_of_logits(classes))
    line = "{:<22}" + "{:>10}" * len(TOP_K) + "\n"
    sys.stdout.write(line.format(f"V = {classes}", *(f"k = {k}" for k in TOP_K)))
    known = [top_classes_logits(top_classes(teacher, k), k, classes) for k in TOP_K]
    for name, energy in energies.items():
        exact = ops.convert_to_numpy(energy.call(teacher, student))
        found = [ops.convert_to_numpy(energy.call(x, student)) for x in known]
        shown = (f"{np.mean(np.abs(x - exact) / exact):.1e}" for x in found)
        sys.stdout.write(line.format(name, *shown))


def rows_of_logits(classes, rows=256):
    rng = np.random.default_rng(0)
    rest = np.log(1.0 / np.arange(1, classes))
    rest -= np.log(np.exp(rest).sum())
    best = rng.uniform(0.05, 0.9999, rows)[:, None]
    log_p = np.concatenate([np.log(best), np.log1p(-best) + rest[None]], axis=1)
    teacher = np.stack([row[rng.permutation(classes)] for row in log_p])
    teacher += rng.normal(0, 0.3, teacher.shape)
    student = teacher + rng.normal(0, 1.0, teacher.shape)
    return teacher.astype("float32"), student.astype("float32")


if __name__ == "__main__":
    main()
