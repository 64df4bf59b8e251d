"""Time kdlib against PyTorch: the same work, in turns, in one run on one machine.

    make bench                                    # or: python -m benchmarks.speed
    python -m benchmarks.speed --work attention --rounds 9
    taskset -c 1 python -m benchmarks.speed --out benchmarks/results/speed-cpu-one-core.json

Four works: an epoch of the teacher, of a plain student, of soft logits and of attention transfer,
ResNet-56 to ResNet-32 with augmentation. Before anything is timed, both sides take the same steps
from the same weights, and their losses have to agree. Then they take turns, round by round, since
a machine's speed drifts; what counts is the median of the rounds' ratios.
"""

import argparse
import json
import pathlib
import statistics
import time
from dataclasses import replace

import jax
import numpy as np
import torch

import kdlib
from benchmarks import peer
from kdlib import files, history
from kdlib.program import Program
from kdlib.progress import Progress
from kdlib.train import networks

RESULTS = pathlib.Path(__file__).parent / "results"
WORKS = {"teacher": (56, None), "plain": (32, None), "soft logits": (32, 56), "attention": (32, 56)}
LESSONS = {"soft logits": kdlib.SoftLogits(), "attention": kdlib.AttentionTransfer()}


def network(depth: int, data, recipe, seed=0):
    return networks(f"ResNet{depth}", data, recipe)(None, seed)


class Ours:
    """kdlib's epochs of a work."""

    def __init__(self, work, data, recipe):
        depth, above = WORKS[work]
        teach = kdlib.Supervised()
        if above:
            teach = kdlib.Offline(network(above, data, recipe, seed=1), LESSONS[work])
        self.fused = jax.default_backend() != "cpu"
        self.program = Program(
            networks(f"ResNet{depth}", data, recipe), data, teach, recipe, self.fused
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


def same_losses(work, data, recipe) -> dict:
    """The mean loss of both sides' first epoch without augmentation, in float32.

    At a tenth of the rate: at the full one a deep network's loss rises at first, and rounding alone
    moves it by more than is asked here.

    Raises:
        AssertionError: they differ by more than 1 %; then the sides don't do the same work.
    """
    rate = recipe.learning_rate / 10
    still = replace(recipe, pad=0, flip=0.0, bfloat16=False, learning_rate=rate)
    ours, theirs = Ours(work, data, still), Theirs(work, data, still, peer.Resident)
    order = ours.order()
    losses = {"kdlib": ours.epoch(), "PyTorch": theirs.epoch(order)}
    assert np.isclose(*losses.values(), rtol=0.01), f"{work}: the losses differ, {losses}"
    return losses


def variants(on_gpu: bool) -> dict:
    """The peer's variants: name to how batches are made and the trainer's options."""
    if not on_gpu:
        return {"resident": (peer.Resident, {})}
    half = {"bfloat16": True}
    return {
        "loader": (peer.Loader, half),
        "resident": (peer.Resident, half),
        "resident, compiled": (peer.Resident, half | {"compiled": True}),
    }


def seconds(side, steps) -> float:
    """Seconds per step of one epoch; reading the loss waits for the device."""
    started = time.perf_counter()
    side.epoch()
    return (time.perf_counter() - started) / steps


def measure(work, data, recipe, steps, rounds) -> dict:
    """Time a work's sides in turns."""
    sides = {"kdlib": Ours(work, data, recipe)} | {
        f"PyTorch, {name}": Theirs(work, data, recipe, batches, **options)
        for name, (batches, options) in variants(torch.cuda.is_available()).items()
    }
    started = time.perf_counter()
    sides["kdlib"].epoch()
    compiled = time.perf_counter() - started
    for side in sides.values():
        side.epoch()  # warm: caches, allocators, autotuning
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(seconds(side, steps))
    ratio = {
        name: statistics.median(np.divide(times["kdlib"], other))
        for name, other in times.items()
        if name != "kdlib"
    }
    return {"seconds_per_step": times, "ratio": ratio, "first_epoch_seconds": compiled}


def table(found: dict) -> str:
    """Medians and spreads, the ratio last."""
    head = "work", "side", "ms per step", "min to max", "kdlib / it"
    rows = ["{:12s} {:28s} {:>12s} {:>18s} {:>11s}".format(*head)]
    for work, result in found.items():
        for name, times in result["seconds_per_step"].items():
            low, middle, high = (1e3 * f(times) for f in (min, statistics.median, max))
            ratio = f"{result['ratio'][name]:.2f}" if name in result["ratio"] else ""
            spread = f"{low:.0f} to {high:.0f}"
            rows.append(f"{work:12s} {name:28s} {middle:12.1f} {spread:>18s} {ratio:>11s}")
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help="the JSON record")
    options = parser.parse_args(arguments)
    if gpu != (jax.default_backend() != "cpu"):
        parser.error("only one of JAX and PyTorch sees a GPU: install both for it, or neither")
    torch.backends.cudnn.benchmark = True  # XLA tries algorithms out too
    pictures = options.steps * options.batch_size
    rng = np.random.default_rng(0)  # the speed doesn't depend on what is in a picture
    images = rng.integers(0, 256, (pictures, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, pictures).astype(np.int32)
    split = kdlib.data.Split(images, labels)
    data = kdlib.data.Dataset("noise", "random pictures", tuple("0123456789"), split, split)
    recipe = kdlib.Recipe(batch_size=options.batch_size, zero_init=False, bfloat16=gpu)
    out = options.out or RESULTS / f"speed-{'gpu' if gpu else 'cpu'}.json"
    found = {}
    record = {
        "device": history.device(), "versions": history.versions() | {"torch": torch.__version__},
        "threads": torch.get_num_threads(), "steps": options.steps, "rounds": options.rounds,
        "batch_size": options.batch_size, "bfloat16": gpu, "works": found,
    }  # fmt: skip
    for work in options.work:
        losses = same_losses(work, data, recipe)
        found[work] = measure(work, data, recipe, options.steps, options.rounds)
        found[work]["losses"] = losses
        files.write_text(out, json.dumps(record, indent=1))  # lest a run that is cut leave nothing
    print(table(found))
    print(f"record: {out}")


if __name__ == "__main__":
    main()
