"""Distils on several devices or in several processes; launch commands: docs/devices.md.

Without arguments it distils the shipped easy-VQA teacher into an untrained student, on
all devices; `--data`, `--teacher` and `--student` are those of `scienceqa.py`.
"""

import argparse
import contextlib
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import keras_hub
import small_gemma

import keras_betakd
from keras_betakd.data import ScienceQADataset, load_scienceqa
from keras_betakd.folders import FolderOwner
from keras_betakd.models import load_model, save_preset


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", help="ScienceQA folder; easy-VQA if left out")
    add("--teacher", help="keras-hub preset of the teacher (with --data)")
    add("--student", help="keras-hub preset of the student (with --data)")
    add("--dtype", help="dtype policy of teacher and student, e.g. bfloat16")
    add("--limit", type=int, default=64, help="train on that many questions only")
    add("--epochs", type=int, default=1)
    add("--batch-size", type=int, default=16, help="of all devices and processes")
    add("--learning-rate", type=float, default=2e-5)
    add("--model-axis", type=int, default=1, help="JAX: devices that share weights")
    add("--devices", type=int, help="TensorFlow on a CPU: number of virtual devices")
    add("--output", default="output/distributed")
    return parser.parse_args()


def connect(args):
    """Connects the processes; returns the scope to make models in, and the rank."""
    backend = keras.config.backend()
    if backend == "torch":
        return contextlib.nullcontext(), join_torch()
    if backend == "tensorflow":
        return tensorflow_strategy(args.devices).scope(), 0
    if "KERAS_DISTRIBUTION_PROCESS_ID" in os.environ:
        import jax

        # For CPUs only; GPUs and TPUs have their own collectives.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        keras.distribution.initialize()
    set_jax_distribution(args.model_axis)
    return contextlib.nullcontext(), keras.distribution.distribution().data_shard_id


def join_torch():
    """Joins the processes of `torchrun`, one for each GPU; returns the rank."""
    import torch

    if "RANK" not in os.environ:
        return 0
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    return torch.distributed.get_rank()


def tensorflow_strategy(devices):
    import tensorflow as tf

    if not devices:
        return tf.distribute.MirroredStrategy()
    (processor,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        processor, [tf.config.LogicalDeviceConfiguration()] * devices
    )
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])


def set_jax_distribution(model_axis):
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh(
        (len(devices) // model_axis, model_axis), ("batch", "model"), devices
    )
    layouts = keras_betakd.layout_map(mesh)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layouts, auto_shard_dataset=False)
    )


def main():
    args = parse_arguments()
    keras.utils.set_random_seed(0)
    scope, rank = connect(args)
    # The first process writes for all of them.
    owner = contextlib.nullcontext()
    if rank == 0:
        owner = FolderOwner(args.output, "examples/distributed.py")
    with owner:
        run(args, scope, rank)


def run(args, scope, rank):
    with scope:
        teacher, student, records = load(args, rank)
        distiller = keras_betakd.BetaKDDistiller(
            teacher,
            student,
            keras_betakd.CosineProbsEnergy(),
            keras_betakd.InstanceBeta(),
        )
        distiller.compile(keras.optimizers.AdamW(args.learning_rate))
    # All processes make the same batches, and each takes its share of them.
    options = {}
    if not args.data:
        options = {"answer_format": "text", "form": small_gemma.PROMPT_FORM}
    batches = ScienceQADataset(
        records, args.batch_size, shuffle=True, seed=0, **options
    )
    share = keras_betakd.ProcessShare(batches)
    # All processes must call fit and evaluate, since each waits for the others.
    distiller.fit(share, epochs=args.epochs, verbose=2 if rank == 0 else 0)
    if rank == 0:
        save_preset(student, os.path.join(args.output, "student"))


def load(args, rank):
    if args.data:
        teacher = load_model(args.teacher, dtype=args.dtype)
        student = load_model(args.student, dtype=args.dtype)
        return teacher, student, load_scienceqa(args.data, "train")[: args.limit]
    teacher = keras_hub.models.CausalLM.from_preset(small_gemma.TEACHER)
    folder = os.path.join(args.output, f"easy_vqa_{rank}")
    records, _ = small_gemma.load_records(folder, args.limit, 1)
    return teacher, small_gemma.make_student(teacher), records


if __name__ == "__main__":
    main()
