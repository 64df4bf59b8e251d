"""Where a training step's time goes, and on a CPU what its convolutions take beside PyTorch's.

    python -m benchmarks.profile        # writes benchmarks/results/profile-cpu.json, or -gpu

On a CPU, first a plain ResNet-32, batch 128, as in ``benchmarks.speed``, by JAX's own profiler:
milliseconds by kind of work. Kinds run side by side, so their sum is more than the step takes. Then
each shape of its convolutions alone, forward and both gradients, in turns with PyTorch's.

On a GPU, the step of ``benchmarks.floor``: milliseconds by kernel and by kind of kernel, as far as
its name tells. What they lack to the clock's time is waiting between them.
"""

import argparse
import collections
import json
import pathlib
import re
import resource
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

import kdlib
from benchmarks import cost, floor
from kdlib import files, history, models
from kdlib.models.convolution import convolve
from kdlib.program import Program

RESULTS = pathlib.Path(__file__).parent / "results"
STEPS = 5
SHAPES = ((32, 16), (16, 32), (8, 64))  # side of the map, channels
# What XLA calls the pieces of the program, and what they are here; the first that fits counts.
KINDS = {
    "transpositions for the gradients to kernels": r"copy_bitcast",
    "sums, of batch norm": r"ynn|reduce",
    "element by element: batch norm, ReLU, augmentation, update": r"fusion|wrapped",
}
# The same of a GPU's kernels: of cuDNN, cuBLAS and CUTLASS, and XLA's own, named after fusions.
KERNELS = {
    "other layouts, copies": r"(?i)tonhwc|tonchw|transpose|copy|memcpy|memset",
    "convolutions, matrix products": r"(?i)conv(?!ert)|gemm|xmma|cutlass|cudnn|cublas|nvjet",
    "sums, of batch norm": r"reduce",
    "element by element: batch norm, ReLU, augmentation, update": r"fusion|wrapped|loop",
}
MOST = 20  # kernels that are listed


def kind(name: str, deep: set[str]) -> str | None:
    """The kind of work of a profiler's event; ``deep`` are the calls with a third axis."""
    if name.startswith("ffi_call"):
        to_kernels = name.split("__")[0] in deep
        return "convolutions, to kernels" if to_kernels else "convolutions, forward and to pictures"
    return next((k for k, pattern in KINDS.items() if re.search(pattern, name)), None)


def traced(run) -> list:
    """What JAX's profiler saw while ``run`` ran: planes of lines of events."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        path = next(pathlib.Path(folder).rglob("*.xplane.pb"))
        return list(jax.profiler.ProfileData.from_file(str(path)).planes)


def kernels(planes, steps: int) -> dict:
    """Milliseconds of a step by kind of kernel and by kernel, numbers at a name's end left out."""
    names, kinds = collections.Counter(), collections.Counter()
    streams = (line for plane in planes if plane.name.startswith("/device:GPU")
               for line in plane.lines if line.name.startswith("Stream"))  # fmt: skip
    for event in (event for line in streams for event in line.events):
        found = next((k for k, p in KERNELS.items() if re.search(p, event.name)), "others")
        names[re.sub(r"([_.]\d+)+$", "", event.name)] += event.duration_ns / 1e6 / steps
        kinds[found] += event.duration_ns / 1e6 / steps
    return {"kinds": dict(kinds.most_common()), "kernels": dict(names.most_common(MOST))}


def on_gpu(steps=20) -> dict:
    """A step of ``benchmarks.floor`` by the clock and by its kernels; milliseconds."""
    sizes = {"teacher": "ResNet56", "student": "ResNet32", "batch_size": 128, "steps": steps}
    program = floor.program(argparse.Namespace(**sizes), fused=True)
    states = [program.start([0])]
    clock = min(cost.timed(program, states, 3)) / steps
    states = [program.start([0])]  # the other's memory was used again
    planes = traced(lambda: cost.timed(program, states, 0))
    return {"clock": 1e3 * clock} | kernels(planes, steps)


def step() -> dict:
    """Milliseconds of a step: by the clock, of all cores, and by kind."""
    data, recipe = cost.noise(256), kdlib.Recipe(batch_size=128, zero_init=False)
    network = lambda _, seed: models.build("ResNet32", 10, seed=seed)
    program = Program(network, data, kdlib.Supervised(), recipe, fused=False)
    state = program.init(0)
    arguments = state, program.order(state), program.frozen, program.pictures
    compiled = program.step.lower(*arguments).compile()
    deep = set(re.findall(r"%(ffi_call[.\d]*) = f32\[1(?:,\d+){4}\]", compiled.as_text()))
    run = lambda: [jax.block_until_ready(compiled(*arguments)) for _ in range(STEPS)]
    run()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    run()
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    planes, kinds = traced(run), collections.Counter()
    for event in (e for plane in planes for line in plane.lines for e in line.events):
        if not event.name.startswith("end:") and (found := kind(event.name, deep)):
            kinds[found] += event.duration_ns / 1e6 / STEPS
    return {"clock": 1e3 * clock / STEPS, "cores": 1e3 * cores / STEPS, "kinds": dict(kinds)}


def fastest(functions: dict, rounds=15) -> dict:
    """The shortest time of each in milliseconds, in turns of a few calls."""
    times = collections.defaultdict(list)
    for _ in range(rounds):
        for name, function in functions.items():
            function()  # the other side's threads stay awake for a while, on the same cores
            for _ in range(3):
                started = time.perf_counter()
                function()
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: min(values) for name, values in times.items()}


def layer(side: int, channels: int) -> dict:
    """Milliseconds of a 3x3 convolution of 128 maps and of its gradients, alone, on both sides."""
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 128, side, side, channels), np.float32)
    kernel = rng.standard_normal((3, 3, channels, channels), np.float32)
    named = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    ours = lambda x, k: convolve(x, k, (1, 1), ((1, 1), (1, 1)), **named)
    to_pictures = lambda g, kernel: jax.vjp(lambda x: ours(x, kernel), x)[1](g)[0]
    to_kernels = lambda x, g: jax.vjp(lambda kernel: ours(x, kernel), kernel)[1](g)[0]
    parts = {
        "forward": (jax.jit(ours), (x, kernel)),
        "to pictures": (jax.jit(to_pictures), (g, kernel)),
        "to kernels": (jax.jit(to_kernels), (x, g)),
    }
    last = torch.channels_last
    theirs = {name: torch.tensor(a).permute(0, 3, 1, 2) for name, a in {"x": x, "g": g}.items()}
    weight = torch.tensor(kernel).permute(3, 2, 0, 1).contiguous(memory_format=last)
    both = lambda mask: torch.ops.aten.convolution_backward(
        theirs["g"], theirs["x"], weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, mask
    )
    functions = {
        "PyTorch, forward": lambda: torch.conv2d(theirs["x"], weight, padding=1),
        "PyTorch, to pictures": lambda: both((True, False, False)),
        "PyTorch, to kernels": lambda: both((False, True, False)),
    }
    for name, (function, arrays) in parts.items():
        arrays = [jnp.asarray(a) for a in arrays]
        jax.block_until_ready(function(*arrays))
        functions[f"kdlib, {name}"] = lambda f=function, a=arrays: jax.block_until_ready(f(*a))
    return fastest(functions)


def main() -> None:
    """Measure, print and write."""
    record = {
        "device": history.device(),
        "versions": history.versions() | {"torch": torch.__version__},
    }
    gpu = cost.fused()
    found = record["step"] = on_gpu() if gpu else step()
    cores = "" if gpu else f", {found['cores']:.0f} ms of its cores"
    print(f"a step: {found['clock']:.{2 * gpu}f} ms{cores}")
    for name, value in sorted(found["kinds"].items(), key=lambda item: -item[1]):
        print(f"  {value:6.{2 * gpu}f} ms  {name}")
    layers = () if gpu else SHAPES
    record["layers"] = {f"{c} channels, {side}x{side}": layer(side, c) for side, c in layers}
    for shape, times in record["layers"].items():
        print(shape)
        for part in ("forward", "to pictures", "to kernels"):
            ours, theirs = times[f"kdlib, {part}"], times[f"PyTorch, {part}"]
            print(f"  {part:12s} {ours:6.2f} ms, PyTorch {theirs:6.2f} ms, {ours / theirs:.2f}")
    path = RESULTS / f"profile-{'gpu' if gpu else 'cpu'}.json"
    files.write_text(path, json.dumps(record, indent=1))
    print(f"record: {path}")


if __name__ == "__main__":
    main()
