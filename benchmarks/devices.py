"""Estimates memory and speed of a pair on several devices; nothing is run.

    python benchmarks/devices.py --plot docs/pictures/devices.png

Prints the memory of each device for the pairs below, and simulates a step of data
parallel training: compute shared out, then the gradient's all-reduce, part of which
hides behind the backward pass. Every assumption is an option or a constant here.
"""

import argparse
import dataclasses
import sys

from keras_betakd.head_loss.tiles import rows_per_tile

GIB = 2**30


@dataclasses.dataclass
class Model:
    """Sizes of a language model; those of Qwen 2.5 and 3 where the sizes agree."""

    parameters: float
    width: int
    layers: int
    vocabulary: int = 151936


PAIRS = {
    "7B -> 1.7B": (Model(7.6e9, 3584, 28), Model(1.7e9, 2048, 28)),
    "10B -> 3B": (Model(10e9, 4096, 36), Model(3.1e9, 2048, 36)),
}
# Bytes a parameter: float32 weights, gradients and Adam's two slots (mixed_bfloat16);
# a teacher in bfloat16.
WEIGHTS, GRADIENTS, SLOTS, TEACHER = 4, 4, 8, 2
# Bytes of activations a token, layer and unit of width that the backward pass needs in
# bfloat16, by Korthikanti et al. 2022 (arXiv 2205.05198) without the attention matrix:
# those that the model axis does not share out, and those that it does.
WHOLE, SHARED = 10, 24
TILE_COPIES = 8  # float32 copies of a tile of logits on an accelerator, see `fused.py`


def memory(pair, rows, tokens, model_axis=1, weight_shards=1, cached=False):
    """Bytes on each device, by purpose.

    Args:
        pair: teacher and student.
        rows, tokens: examples on a device, and positions of each.
        model_axis: over how many devices heads, units and classes are spread.
        weight_shards: over how many each weight is (more, with `batch_axis`).
        cached: whether a `CachedTeacher` stands for the teacher.
    """
    teacher, student = pair
    each = student.parameters / weight_shards
    activations = WHOLE + SHARED / model_axis
    head = student.vocabulary * student.width * 4 / model_axis
    tile = rows_per_tile(student.vocabulary, student.width)
    kept = 0 if cached else teacher.parameters * TEACHER / weight_shards
    return {
        "teacher": kept,
        "weights": each * WEIGHTS,
        "gradients": each * GRADIENTS,
        "slots": each * SLOTS,
        "activations": rows * tokens * student.layers * student.width * activations,
        # Tiles, and the second copy of the head's gradient that the loop keeps.
        "head": tile * student.vocabulary * 4 * TILE_COPIES / model_axis + head,
    }


def step_time(pair, devices, options, cached=False):
    """Seconds of a step, and those of them that only the all-reduce takes."""
    teacher, student = pair
    tokens = options.batch * options.tokens / devices
    forward = 0 if cached else 2 * teacher.parameters * tokens
    backward = 4 * student.parameters * tokens / options.flops
    compute = (forward + 2 * student.parameters * tokens) / options.flops + backward
    one_node = devices <= options.node
    bandwidth = options.node_bandwidth if one_node else options.bandwidth
    moved = 2 * (devices - 1) / devices * student.parameters * GRADIENTS
    reduce = moved / bandwidth + 2 * (devices - 1) * options.latency
    exposed = max(0.0, reduce - options.overlap * backward)
    return compute + exposed, exposed


def main():
    options = parse_arguments()
    print_memory(options)
    curves = simulate(options)
    if options.plot:
        draw(curves, options)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--batch", type=int, default=256, help="examples of a step, of all devices")
    add("--tokens", type=int, default=1024, help="positions of an example")
    add("--rows", type=int, default=4, help="examples on a device, for the memory")
    add("--flops", type=float, default=400e12, help="a device's, as reached")
    add("--node", type=int, default=8, help="devices within a node")
    add("--node-bandwidth", type=float, default=300e9, help="bytes/s of an all-reduce")
    add("--bandwidth", type=float, default=40e9, help="the same between nodes")
    add("--latency", type=float, default=10e-6, help="seconds a hop")
    add("--overlap", type=float, default=0.7, help="share of the backward pass")
    add("--plot", help="file to write the plot to")
    return parser.parse_args()


def print_memory(options):
    plans = {
        "data parallel": {},
        "model axis of 8": {"model_axis": 8, "weight_shards": 8},
        "2 x 4": {"model_axis": 4, "weight_shards": 4},
        "2 x 4, batch_axis too": {"model_axis": 4, "weight_shards": 8},
    }
    columns = "teacher weights gradients slots activations head".split()
    line = "{:<12} {:<22} {:<7}" + " {:>11}" * 7 + "\n"
    out = sys.stdout.write
    out(f"GiB on a device, {options.rows} examples of {options.tokens} positions\n")
    out(line.format("pair", "layout", "teacher", *columns, "sum"))
    for name, pair in PAIRS.items():
        for plan, sizes in plans.items():
            for cached in (False, True):
                parts = memory(
                    pair, options.rows, options.tokens, cached=cached, **sizes
                )
                values = [parts[column] / GIB for column in columns]
                shown = [f"{v:.1f}" for v in (*values, sum(values))]
                out(line.format(name, plan, "cached" if cached else "live", *shown))


def simulate(options):
    """Examples a second of each pair, live and cached, for 1, 2, 4 ... devices."""
    counts = [2**i for i in range(options.batch.bit_length()) if 2**i <= options.batch]
    line = "{:<12} {:<7} {:>7} {:>10} {:>12} {:>14} {:>10}\n"
    head = ("pair", "teacher", "devices", "step, ms", "waiting, ms", "examples/s")
    sys.stdout.write("\n" + line.format(*head, "efficiency"))
    curves = {}
    for name, pair in PAIRS.items():
        for cached in (False, True):
            curve = []
            for devices in counts:
                seconds, waiting = step_time(pair, devices, options, cached)
                curve.append((devices, options.batch / seconds))
                share = curve[-1][1] / (devices * curve[0][1])
                kind = "cached" if cached else "live"
                shown = (f"{1e3 * seconds:.0f}", f"{1e3 * waiting:.0f}")
                rate = f"{curve[-1][1]:.1f}"
                sys.stdout.write(
                    line.format(name, kind, devices, *shown, rate, f"{share:.0%}")
                )
            curves[name, kind] = curve
    return curves


def draw(curves, options):
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8))
    for (name, kind), curve in curves.items():
        devices, rates = zip(*curve, strict=True)
        style = "o-" if kind == "live" else "s--"
        axes[0].plot(devices, rates, style, label=f"{name}, {kind} teacher", ms=4)
        shares = [r / (d * rates[0]) for d, r in curve]
        axes[1].plot(devices, shares, style, ms=4)
    for axis in axes:
        axis.set(xscale="log", xlabel="devices", xticks=devices)
        axis.set_xticklabels(devices)
        axis.minorticks_off()
        axis.axvline(options.node, color="grey", lw=0.8, ls=":")
        axis.grid(alpha=0.3)
    axes[0].set(yscale="log", ylabel="examples per second")
    axes[1].set(ylim=(0, 1.05), ylabel="speed-up / devices")
    axes[1].text(options.node * 1.1, 0.03, "one node | several", fontsize=8)
    axes[0].legend(fontsize=8)
    figure.suptitle(
        f"Simulated: {options.batch} examples of {options.tokens} positions a step, "
        "float32 gradients"
    )
    figure.tight_layout()
    figure.savefig(options.plot, dpi=110)


if __name__ == "__main__":
    main()
