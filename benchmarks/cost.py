"""What an epoch costs as the work grows: seconds, memory and compilation, measured and drawn.

    python -m benchmarks.cost                  # all curves; some minutes on two CPU cores
    python -m benchmarks.cost --curve depth    # one of them
    python -m benchmarks.cost --curve devices  # on a CPU: the same cores, seen as several devices

A call that was cut is gone on with by the same call, on the same device with the same versions.

From one base (a plain ResNet-20, 64 pictures a step, 1,024 pictures an epoch, one seed) one thing
is changed at a time. The dashed line grows like the work, multiply-adds for depth and width. Each
point is the median epoch of a few; memory is what the compiled step says it needs on each device.
The records and the figure are written to figures/cost.
"""

import argparse
import json
import pathlib
import statistics
import time

import jax
import numpy as np

import kdlib
from benchmarks import records
from kdlib import history, models, parallel, plots
from kdlib.program import Program
from kdlib.progress import Progress
from kdlib.train import networks

FIGURES = pathlib.Path(__file__).parents[1] / "figures" / "cost"
BASE = {"depth": 20, "width": 1, "batch": 64, "pictures": 1024, "seeds": 1, "devices": 1}
CURVES = {
    "depth": (8, 14, 20, 32, 44, 56),
    "width": (0.25, 0.5, 1, 2, 3),
    "batch": (16, 32, 64, 128, 256),
    "pictures": (256, 512, 1024, 2048),
    "seeds": (1, 2, 3, 4),
    "devices": (1, 2, 4),
}


def fused() -> bool:
    """Whether kdlib's epoch is one program here, of all seeds; a CPU calls a program per step."""
    return jax.default_backend() != "cpu"


def noise(pictures):
    """Random pictures: what is in them costs nothing."""
    rng = np.random.default_rng(0)
    labels = (np.arange(pictures) % 10).astype(np.int32)
    split = kdlib.data.Split(rng.integers(0, 256, (pictures, 32, 32, 3), np.uint8), labels)
    return kdlib.data.Dataset("noise", "random pictures", tuple("0123456789"), split, split)


def timed(program, states, rounds) -> list[float]:
    """Seconds of each of so many epochs of all the states, after one that isn't counted."""
    times, silent = [], Progress("", 1, enabled=False)
    for _ in range(rounds + 1):
        started = time.perf_counter()
        states = [program.run_epoch(state, silent)[0] for state in states]
        jax.block_until_ready(states)
        times.append(time.perf_counter() - started)
    return times[1:]


def measure(depth, width, batch, pictures, seeds, devices, rounds=3) -> dict:
    """Seconds of an epoch of all seeds, bytes of a step, seconds until the first step has run."""
    name = f"ResNet{depth}" + (f"x{width}" if width != 1 else "")
    one = fused()
    recipe = kdlib.Recipe(batch_size=batch, bfloat16=one)
    mesh, data = parallel.mesh(devices, seeds if one else 1, batch), noise(pictures)
    program = Program(
        networks(name, data, recipe), data, kdlib.Supervised(), recipe, one, mesh,
    )  # fmt: skip
    together = [range(seeds)] if one else [[seed] for seed in range(seeds)]
    states = [program.start(these) for these in together]
    if one:
        arguments = states[0], program.frozen, program.pictures
        function = program.epoch
    else:
        arguments = states[0], program.order(states[0]), program.frozen, program.pictures
        function = program.step
    started = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    out = jax.block_until_ready(compiled(*arguments))
    first, needed = time.perf_counter() - started, compiled.memory_analysis()
    # What is timed is that program, not another that would be compiled for it.
    program.epoch = program.step = compiled
    states = [out[0]] if one else states  # an epoch takes its state's memory
    times = timed(program, states, rounds)
    return {
        "seconds": times,
        "bytes": needed.temp_size_in_bytes + needed.argument_size_in_bytes,
        "first_step_seconds": first,
        "multiply_adds": models.cost(name).multiply_adds,
    }


def left(curves: dict, asked) -> list[tuple[str, float]]:
    """The points of the curves asked for that aren't measured yet, or all of them if all are.

    So the call after one that was cut goes on there, and the call after a whole one starts anew,
    with curves that are empty again.
    """
    places = [(name, value) for name in asked for value in CURVES[name]
              if name != "devices" or value <= jax.local_device_count()]  # fmt: skip
    missing = [(name, value) for name, value in places if str(value) not in curves.get(name, {})]
    if not missing:
        curves.update((name, {}) for name in asked)
    return missing or places


def work(name: str, x: float, point: dict, record: dict) -> float:
    """What a point of a curve should cost, in units of the curve's own."""
    if name in ("depth", "width"):
        return point["multiply_adds"]
    if name == "batch" or (name == "devices" and "cpu" in record["device"]):
        return 1  # as many pictures; devices of one CPU share its cores
    return 1 / x if name == "devices" else x


def draw(record: dict, path) -> None:
    """A panel per curve: seconds, and memory, against what was changed."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    plots.use_style()
    # Others were cut before their base.
    curves = {n: record["curves"][n] for n in CURVES if str(BASE[n]) in record["curves"].get(n, {})}
    figure, axes = plt.subplots(2, len(curves), figsize=(2.6 * len(curves), 5), squeeze=False)
    for (name, points), (above, below) in zip(curves.items(), axes.T, strict=True):
        xs = [float(x) for x in points]
        seconds = [statistics.median(point["seconds"]) for point in points.values()]
        megabytes = [point["bytes"] / 1e6 for point in points.values()]
        for axis, values in ((above, seconds), (below, megabytes)):
            axis.plot(xs, values, "o-")
            axis.set(xscale="log", yscale="log", xticks=xs, xticklabels=[f"{x:g}" for x in xs])
            axis.set_ylim(min(values) / 1.3, max(values) * 1.3)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
        expected = [
            work(name, x, point, record) for x, point in zip(xs, points.values(), strict=True)
        ]
        base = xs.index(BASE[name])
        above.plot(xs, [seconds[base] * each / expected[base] for each in expected], "k--", lw=1)
        above.set_title(name)
    axes[0, 0].set_ylabel("seconds an epoch")
    axes[1, 0].set_ylabel("MB a step")
    figure.suptitle(f"Cost of an epoch, {record['device']}; dashed: in proportion to the work")
    plots.save(figure, path)


def main(arguments=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    usual = [name for name in CURVES if name != "devices"]
    parser.add_argument("--curve", nargs="+", choices=CURVES, default=usual)
    parser.add_argument("--out", type=pathlib.Path, default=FIGURES)
    options = parser.parse_args(arguments)
    # A program out of the cache would compile in no time.
    jax.config.update("jax_enable_compilation_cache", False)
    if "devices" in options.curve:
        if len(options.curve) > 1:  # several devices of a CPU compute their convolutions otherwise
            parser.error("measure the curve of devices by itself")
        jax.config.update("jax_num_cpu_devices", max(CURVES["devices"]))
    kind = "gpu" if fused() else "cpu"
    path = options.out / f"{kind}.json"
    here = {"device": history.device(), "versions": history.versions(), "base": BASE}
    old = json.loads(path.read_text()) if path.exists() else {}
    if (beside := old.get("curves", {}).keys() - {*options.curve}) and old | here != old:
        parser.error(f"{path} holds curves of {old['device']} or of other versions: measure "
                     f"{' '.join(sorted(beside))} anew too, or give another --out")  # fmt: skip
    record = records.begin(path, here, "curves")
    for name, value in left(record["curves"], options.curve):
        points = record["curves"].setdefault(name, {})
        found = points[str(value)] = measure(**BASE | {name: value})
        seconds = statistics.median(found["seconds"])
        megabytes, first = found["bytes"] / 1e6, found["first_step_seconds"]
        print(f"{name:9s} {value:<6} {seconds:7.2f} s an epoch, {megabytes:7.0f} MB, "
              f"first step after {first:.1f} s", flush=True)  # fmt: skip
        records.save(path, record)
    draw(record, path.with_suffix(".png"))
    print(f"record and figure: {path.with_suffix('.*')}")


if __name__ == "__main__":
    main()
