"""How far a distillation step is from what the device could do, and what 200 epochs take.

    python -m benchmarks.floor          # writes benchmarks/results/floor-gpu.json, or -cpu

The work is that of ``benchmarks.speed``: soft logits, ResNet-56 to ResNet-32, batch 128, in
bfloat16 on a GPU. Two ceilings are measured: operations per second of a large matrix product, and
bytes per second of a large copy. A step can't take less than its operations and bytes over them:

- operations are two per multiply-add of convolutions and matrix products, padding included: the
  teacher's forward pass, and three times the student's (forward, gradients to maps and to
  weights). XLA's own count of the step is recorded beside; it leaves padding out, and counts all
  else too. It is that of the program before it is compiled: in the compiled one convolutions are
  calls of a library, which XLA counts as nothing;
- bytes are all that the compiled step's kernels and calls read and write, by XLA's count: of this
  program, not of the best one. What is still in a cache needn't come from memory, so a step can
  take less than these bytes do.

Then epochs are timed, of one seed and of several together, and scoring the test pictures, a fifth
as many as there are for training. A call that was cut is gone on with by the same call; one after
a whole one measures again.
"""

import argparse
import collections
import pathlib
import re
import statistics
import time
from dataclasses import replace

import jax
import jax.numpy as jnp

import kdlib
from benchmarks import cost, records
from kdlib import history, models
from kdlib.program import Program
from kdlib.train import networks

RESULTS = pathlib.Path(__file__).parent / "results"


def fastest(function, *arrays, rounds=10) -> float:
    """The shortest of some calls, in seconds, after one that compiles."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        times.append(time.perf_counter() - started)
    return min(times[1:])


def ceilings(matrix: int, megabytes: int, dtype) -> dict:
    """Operations per second of a product of square matrices, bytes per second of a copy.

    Args:
        matrix: rows of each factor.
        megabytes: of what is copied, large beside every cache; it is read once and written once.
    """
    x = jax.random.normal(jax.random.key(0), (matrix, matrix), dtype)
    product = fastest(jax.jit(jnp.matmul), x, x)
    copied = jnp.zeros(megabytes * 10**6 // 4, jnp.float32)
    moved = fastest(jax.jit(lambda x: x + 1), copied)
    return {"operations": 2 * matrix**3 / product, "bytes": 2 * copied.nbytes / moved}


def program(options, fused: bool) -> Program:
    """kdlib's soft-logit epochs; where ``fused``, one program for an epoch of all seeds."""
    recipe = kdlib.Recipe(batch_size=options.batch_size, zero_init=False, bfloat16=cost.fused())
    data = cost.noise(options.steps * options.batch_size)
    data = replace(data, test=data.train.take(slice(max(1, len(data.train) // 5))))
    teacher = networks(options.teacher, data, recipe)(None, 1)
    teach = kdlib.Offline(teacher, kdlib.SoftLogits())
    return Program(networks(options.student, data, recipe), data, teach, recipe, fused)


def counts(options) -> dict:
    """Operations and bytes of a step of one seed, and how many convolutions have which layout.

    Those are XLA's convolutions; calls of oneDNN have no layout that is shown.
    """
    one = program(options, fused=False)
    state = one.start([0])
    arguments = state, one.order(state), one.frozen, one.pictures
    # A CPU's calls of oneDNN hide convolutions from the count: taken as for a GPU.
    plain = jax.jit(one._step).trace(*arguments).lower(lowering_platforms=("cuda",))
    compiled = one.step.lower(*arguments).compile()
    by_xla = [found.cost_analysis() or {} for found in (plain, compiled)]  # not all back ends count
    adds = [models.cost(name).multiply_adds for name in (options.teacher, options.student)]
    return {
        "operations": 2 * options.batch_size * (adds[0] + 3 * adds[1]),
        "operations_by_xla": by_xla[0].get("flops"),
        "bytes": by_xla[1].get("bytes accessed"),
        "layouts": collections.Counter(re.findall(r"dim_labels=([^\s,]+)", compiled.as_text())),
    }


def epochs(options, seeds: int) -> dict:
    """Seconds of each of some epochs of all seeds, and of a test.

    The first epoch, which isn't among them, compiles, or finds its program in the cache.
    """
    one = program(options, fused=cost.fused())
    together = [range(seeds)] if one.fused else [[seed] for seed in range(seeds)]
    states = [one.start(these) for these in together]
    one.scores(states[0])  # compiles
    started = time.perf_counter()
    for state in states:
        one.scores(state)
    test = time.perf_counter() - started
    started = time.perf_counter()
    seconds = cost.timed(one, states, options.rounds)
    compiled = time.perf_counter() - started - sum(seconds)
    return {"seconds": seconds, "test_seconds": test, "first_epoch_seconds": compiled}


def summary(record: dict) -> dict:
    """The floor and the distance to it, and what follows from the epochs.

    An epoch of CIFAR-10 has 390 steps, whatever number was timed.
    """
    parts = record["parts"]
    few, many = (part for name, part in parts.items() if name.startswith("seeds"))
    step, ceiling = parts["step"], parts["ceilings"]
    counted = [name for name in ("operations", "bytes") if step[name]]
    floors = {name: step[name] / ceiling[name] for name in counted}
    epoch, together = (statistics.median(each["seconds"]) for each in (few, many))
    whole = (epoch + few["test_seconds"]) * 390 / record["steps"]
    return {
        "floor_seconds": floors,
        "step_seconds": epoch / record["steps"],
        "step_over_floor": epoch / record["steps"] / max(floors.values()),
        "seeds_ratio": together / epoch,
        "minutes_of_200_epochs": 200 * epoch * 390 / record["steps"] / 60,
        "minutes_with_a_test_each": 200 * whole / 60,
    }


def show(record: dict) -> str:
    """The summary in words."""
    found, ceiling = record["summary"], record["parts"]["ceilings"]
    floors = [f"{1e3 * least:.2f} ms by {name}" for name, least in found["floor_seconds"].items()]
    return "\n".join((
        f"ceilings: {ceiling['operations'] / 1e12:.3g} T operations/s, "
        f"{ceiling['bytes'] / 1e9:.4g} GB/s",
        f"floor of a step: {', '.join(floors)}",
        f"a step: {1e3 * found['step_seconds']:.2f} ms, {found['step_over_floor']:.1f} times that",
        f"{record['seeds']} seeds take {found['seeds_ratio']:.2f} times as long as one",
        f"200 epochs of 390 steps: {found['minutes_of_200_epochs']:.1f} minutes, "
        f"{found['minutes_with_a_test_each']:.1f} with a test after each",
    ))  # fmt: skip


def main(arguments=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.floor", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    gpu = cost.fused()
    parser.add_argument("--teacher", default="ResNet56")
    parser.add_argument("--student", default="ResNet32")
    parser.add_argument("--steps", type=int, default=390 if gpu else 4, help="of an epoch")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=5, help="trained together, beside one alone")
    parser.add_argument("--rounds", type=int, default=3, help="epochs that are timed")
    parser.add_argument("--matrix", type=int, default=16384 if gpu else 2048, help="its rows")
    parser.add_argument("--megabytes", type=int, default=4096 if gpu else 256, help="copied")
    parser.add_argument("--out", type=pathlib.Path, help="the JSON record")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds are compared with one: give 2 or more")
    out = options.out or RESULTS / f"floor-{'gpu' if gpu else 'cpu'}.json"
    sizes = {name: value for name, value in vars(options).items() if name != "out"}
    here = {"device": history.device(), "versions": history.versions(), "bfloat16": gpu}
    record = records.begin(out, here | sizes, "parts")
    dtype = jnp.bfloat16 if gpu else jnp.float32
    measures = {
        "ceilings": lambda: ceilings(options.matrix, options.megabytes, dtype),
        "step": lambda: counts(options),
        "seeds, 1": lambda: epochs(options, 1),
        f"seeds, {options.seeds}": lambda: epochs(options, options.seeds),
    }
    record.pop("summary", None)  # of parts that are measured anew
    for name in records.left(record["parts"], measures):
        record["parts"][name] = measures[name]()
        records.save(out, record)
        print(f"{name}: measured", flush=True)
    record["summary"] = summary(record)
    records.save(out, record)
    print(show(record))
    print(f"record: {out}")


if __name__ == "__main__":
    main()
