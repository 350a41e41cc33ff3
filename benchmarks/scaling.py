"""Measures how time and memory of head and loss grow, fused and with full logits.

    python benchmarks/scaling.py --backend jax --plot docs/pictures/scaling.png

Varies one of vocabulary V, answers K, positions T (K of them supervised), batch B and
number of energies E; the others stay at V=16,384, K=T=128, B=1, E=1, with hidden widths
of 256 and 512. `fused` is the default of the distiller, `full logits` is `fused=False`.
"""

import argparse
import sys

from measure import in_fresh_process, median

SERIES = {
    "V": (4096, 16384, 65536, 262144),
    "K": (32, 128, 512, 1024),
    "T": (128, 256, 512, 1024),
    "B": (1, 2, 4, 8),
    "E": (1, 2, 4, 8),
}
DEFAULTS = {"V": 16384, "K": 128, "T": 128, "B": 1, "E": 1}
NAMES = {"V": "vocabulary", "K": "answers", "T": "positions", "B": "batch"}
NAMES["E"] = "energies"
LABELS = {"ours": "fused", "dense": "full logits"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--vary", nargs="+", default=list(SERIES), choices=SERIES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", help="file to write the plot to")
    options = parser.parse_args()
    line = "{:<11} {:<10} {:>7} {:<13} {:>9} {:>9}\n"
    head = ("backend", "varied", "", "path", "ms", "peak MB")
    sys.stdout.write(line.format(*head))
    results = {}
    for name in options.vary:
        for value in SERIES[name]:
            for path in LABELS:
                numbers = run(path, options, {**DEFAULTS, name: value})
                if "failed" in numbers:
                    shown = ("failed", numbers["failed"])
                else:
                    results[name, path, value] = numbers
                    shown = f"{median(numbers):.1f}", f"{numbers['megabytes']:.0f}"
                row = (options.backend, NAMES[name], value, LABELS[path], *shown)
                sys.stdout.write(line.format(*row))
                sys.stdout.flush()
    if options.plot:
        draw(results, options)


def run(path, options, sizes):
    rows = max(sizes["T"], sizes["K"])
    arguments = ["--worker", path, "kl", "--repeats", options.repeats]
    arguments += ["--batch", sizes["B"], "--length", rows]
    arguments += ["--vocabulary", sizes["V"], "--energies", sizes["E"]]
    arguments += ["--supervised", sizes["K"] / rows]
    script = __file__.replace("scaling.py", "head_loss.py")
    return in_fresh_process(script, arguments, options.backend)


def draw(results, options):
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    columns = len(options.vary)
    figure, axes = plt.subplots(
        2, columns, figsize=(2.9 * columns, 5.2), squeeze=False, sharex="col"
    )
    for column, name in enumerate(options.vary):
        for path, label in LABELS.items():
            values = [v for v in SERIES[name] if (name, path, v) in results]
            numbers = [results[name, path, v] for v in values]
            top, bottom = axes[0][column], axes[1][column]
            top.plot(values, [median(n) for n in numbers], "o-", label=label)
            bottom.plot(values, [n["megabytes"] for n in numbers], "o-", label=label)
        for axis in (top, bottom):
            axis.set(xscale="log", yscale="log", xticks=SERIES[name])
            axis.set_xticklabels([f"{v:,}" for v in SERIES[name]], fontsize=8)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        bottom.set_xlabel(NAMES[name])
    axes[0][0].set_ylabel("time, ms")
    axes[1][0].set_ylabel("peak memory, MB")
    axes[0][0].legend()
    figure.suptitle(f"LM head, cross-entropy and energies, {options.backend}")
    figure.tight_layout()
    figure.savefig(options.plot, dpi=110)


if __name__ == "__main__":
    main()
