"""Time kdlib against PyTorch: the same work, in turns, in one run on one machine.

    make bench                                    # or: python -m benchmarks.speed
    python -m benchmarks.speed --rounds 3 --passes 4          # on a machine shared with others
    python -m benchmarks.speed --work attention --rounds 9    # the record's other works stay
    taskset -c 1 python -m benchmarks.speed --out benchmarks/results/speed-cpu-one-core.json

Four works: an epoch of the teacher, of a plain student, of soft logits and of attention transfer,
ResNet-56 to ResNet-32 with augmentation. Before anything is timed, both sides take the same steps
from the same weights, and their losses have to agree. Then they take turns, round by round, since
a machine's speed drifts; what counts is the median of the rounds' ratios. What lasts minutes meets
all rounds in a row: with --passes, all works get as many rounds again later, with networks made
anew. One work a call adds up to one record, as long as device, versions and sizes stay the same.
"""

import argparse
import contextlib
import pathlib
import statistics
import time
from dataclasses import replace

import jax
import numpy as np
import torch

import kdlib
from benchmarks import cost, peer, records
from kdlib import history
from kdlib.program import Program
from kdlib.progress import Progress
from kdlib.train import networks

RESULTS = pathlib.Path(__file__).parent / "results"
WORKS = {"teacher": (56, None), "plain": (32, None), "soft logits": (32, 56), "attention": (32, 56)}
CHECKED = 4  # steps after which both sides' losses are compared
# By default XLA leaves cuDNN's convolutions out of CUDA graphs; with this list, a step is one.
# JAX 0.7.2 refuses it. Which of the two is faster was not measured: both are timed.
GRAPHS = {"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONVOLUTION"}
LESSONS = {"soft logits": kdlib.SoftLogits(), "attention": kdlib.AttentionTransfer()}


def network(depth: int, data, recipe, seed=0):
    return networks(f"ResNet{depth}", data, recipe)(None, seed)


class Ours:
    """kdlib's epochs of a work; ``options`` are XLA's for an epoch's program, where it is one."""

    def __init__(self, work, data, recipe, options=None):
        depth, above = WORKS[work]
        teach = kdlib.Supervised()
        if above:
            teach = kdlib.Offline(network(above, data, recipe, seed=1), LESSONS[work])
        self.fused = cost.fused()
        self.program = Program(
            networks(f"ResNet{depth}", data, recipe), data, teach, recipe, self.fused
        )
        if options:  # what kdlib compiles, compiled otherwise
            self.program.epoch = jax.jit(
                self.program.epoch.__wrapped__, donate_argnums=0, compiler_options=options
            )
        self.state = self.program.start([0])

    def order(self):
        """The pictures of the next epoch, ``[steps * b]``."""
        state = jax.tree.map(lambda x: x[0], self.state) if self.fused else self.state
        return np.ravel(self.program._order(state))

    def epoch(self, order=None) -> float:
        """Train one epoch. The mean of its losses."""
        self.state, sums = self.program.run_epoch(self.state, Progress("", 1, enabled=False))
        return float(np.ravel(sums["loss"] / sums["count"])[0])


class Theirs:
    """The peer's epochs of the same work, from the same weights."""

    def __init__(self, work, data, recipe, batches, **options):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        depth, above = WORKS[work]
        make = lambda depth, seed: peer.load_kdlib(
            peer.ResNet(depth, data.num_classes, data.mean, data.std),
            network(depth, data, recipe, seed),
        ).to(device, memory_format=torch.channels_last)
        images, labels = data.train.images, data.train.labels
        batches = batches(images, labels, recipe.batch_size, device, recipe.pad, recipe.flip)
        teacher = make(above, 1) if above else None
        lesson = work if above else "plain"
        self.trainer = peer.Trainer(make(depth, 0), teacher, lesson, batches, recipe, **options)
        self.count = len(labels)

    def epoch(self, order=None) -> float:
        order = torch.randperm(self.count) if order is None else torch.tensor(np.array(order))
        return float(self.trainer.epoch(order).mean())


@contextlib.contextmanager
def exact():
    """float32 as it is on both sides: usually a GPU rounds factors to TensorFloat-32's 10 bits."""
    sides = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [side.allow_tf32 for side in sides]
    try:
        for side in sides:
            side.allow_tf32 = False
        with jax.default_matmul_precision("highest"):  # of convolutions too
            yield
    finally:  # what is timed keeps PyTorch's usual settings
        for side, allowed in zip(sides, before, strict=True):
            side.allow_tf32 = allowed


def same_losses(work, data, recipe) -> dict:
    """The mean loss of both sides' first steps, without augmentation, in float32.

    At a hundredth of the rate: at the full one a deep network's loss rises at first, and rounding
    grows. So noise of 1e-4 on all weights moves the mean of four steps by up to 0.03 % over the
    four works, a missing Nesterov term by 0.6 to 3.8 %, missing momentum by 1.1 to 6.6 % (batch
    128, on a CPU). Weight decay is too weak to be seen.

    Raises:
        AssertionError: they differ by more than 0.3 %; then the sides don't do the same work.
    """
    rate = recipe.learning_rate / 100
    still = replace(recipe, pad=0, flip=0.0, bfloat16=False, learning_rate=rate)
    few = replace(data, train=data.train.take(slice(CHECKED * recipe.batch_size)))
    with exact():
        ours, theirs = Ours(work, few, still), Theirs(work, few, still, peer.Resident)
        order = ours.order()
        losses = {"kdlib": ours.epoch(), "PyTorch": theirs.epoch(order)}
    assert np.isclose(*losses.values(), rtol=0.003), f"{work}: the losses differ, {losses}"
    return losses


def graphs(on_gpu: bool) -> dict:
    """A second side of kdlib's where a step can be one CUDA graph: its name and XLA's options."""
    return {"kdlib, CUDA graphs": GRAPHS} if on_gpu and jax.__version_info__ >= (0, 10) else {}


def variants(on_gpu: bool) -> dict:
    """The peer's variants: name to how batches are made and the trainer's options."""
    if not on_gpu:
        return {"PyTorch, resident": (peer.Resident, {})}
    half = {"bfloat16": True}
    return {
        "PyTorch, loader": (peer.Loader, half),
        "PyTorch, resident": (peer.Resident, half),
        "PyTorch, resident, compiled": (peer.Resident, half | {"compiled": "default"}),
        "PyTorch, resident, compiled, CUDA graphs": (
            peer.Resident,
            half | {"compiled": "reduce-overhead"},
        ),
    }


def seconds(side, steps) -> float:
    """Seconds per step of one epoch; reading the loss waits for the device."""
    started = time.perf_counter()
    side.epoch()
    return (time.perf_counter() - started) / steps


def measure(work, data, recipe, steps, rounds, skip=()) -> dict:
    """Time a work's sides in turns, without those to ``skip``."""
    torch.compiler.reset()  # how often it compiles one function in a process is limited
    gpu, sides = torch.cuda.is_available(), {"kdlib": Ours(work, data, recipe)}
    for name, options in graphs(gpu).items():
        if name not in skip:
            sides[name] = Ours(work, data, recipe, options)
    for name, (batches, options) in variants(gpu).items():
        if name not in skip:
            sides[name] = Theirs(work, data, recipe, batches, **options)
    started = time.perf_counter()
    sides["kdlib"].epoch()
    compiled = time.perf_counter() - started
    for side in sides.values():
        side.epoch()  # warm: caches, allocators, autotuning
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(seconds(side, steps))
    return {"seconds_per_step": times, "first_epoch_seconds": compiled}


def joined(passes: list[dict]) -> dict:
    """The rounds of several passes in a row, and kdlib's time in units of every other side's."""
    sides = [found["seconds_per_step"] for found in passes]
    times = {name: [t for side in sides for t in side[name]] for name in sides[0]}
    ratio = {
        name: statistics.median(np.divide(times["kdlib"], other))
        for name, other in times.items()
        if name != "kdlib"
    }
    return passes[0] | {"seconds_per_step": times, "ratio": ratio}


def table(found: dict) -> str:
    """Medians and spreads, the ratio last."""
    head = "work", "side", "ms per step", "min to max", "kdlib / it"
    rows = ["{:12s} {:40s} {:>12s} {:>18s} {:>11s}".format(*head)]
    for work, result in found.items():
        for name, times in result["seconds_per_step"].items():
            low, middle, high = (1e3 * f(times) for f in (min, statistics.median, max))
            ratio = f"{result['ratio'][name]:.2f}" if name in result["ratio"] else ""
            spread = f"{low:.1f} to {high:.1f}"
            rows.append(f"{work:12s} {name:40s} {middle:12.1f} {spread:>18s} {ratio:>11s}")
    return "\n".join(rows)


def main(arguments=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    gpu = torch.cuda.is_available()
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--steps", type=int, default=390 if gpu else 4, help="of an epoch")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="of a pass")
    parser.add_argument("--passes", type=int, default=1, help="over all works, one after the other")
    others = [*graphs(gpu), *variants(gpu)]
    parser.add_argument("--skip", nargs="+", choices=others, default=[], help="sides left out")
    parser.add_argument("--out", type=pathlib.Path, help="the JSON record")
    options = parser.parse_args(arguments)
    if gpu != cost.fused():
        parser.error("only one of JAX and PyTorch sees a GPU: install both for it, or neither")
    torch.backends.cudnn.benchmark = True  # XLA tries algorithms out too
    data = cost.noise(options.steps * options.batch_size)
    recipe = kdlib.Recipe(batch_size=options.batch_size, zero_init=False, bfloat16=gpu)
    out = options.out or RESULTS / f"speed-{'gpu' if gpu else 'cpu'}.json"
    facts = {
        "device": history.device(), "versions": history.versions() | {"torch": torch.__version__},
        "threads": torch.get_num_threads(), "steps": options.steps, "rounds": options.rounds,
        "passes": options.passes,
        "batch_size": options.batch_size, "bfloat16": gpu,
    }  # fmt: skip
    record = records.begin(out, facts, "works")
    losses = {work: same_losses(work, data, recipe) for work in options.work}
    found = {work: [] for work in options.work}
    for work in options.work * options.passes:
        found[work].append(measure(work, data, recipe, options.steps, options.rounds, options.skip))
        works = record["works"] | {work: joined(found[work]) | {"losses": losses[work]}}
        record["works"] = {name: works[name] for name in WORKS if name in works}
        records.save(out, record)
    print(table(record["works"]))
    print(f"record: {out}")


if __name__ == "__main__":
    main()
