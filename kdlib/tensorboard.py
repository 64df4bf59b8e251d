"""TensorBoard event files of a run, one folder per seed."""

import pathlib

from kdlib.history import History


class Writer:
    """Writes metrics of finished epochs to ``run_dir/events/seed-N``; ``fit`` calls it."""

    def __init__(self, run_dir: pathlib.Path):
        from tensorboardX import SummaryWriter

        # All epochs anew, so that after a kill none is missing and none shows twice.
        self.writer = lambda seed: SummaryWriter(f"{run_dir}/events/seed-{seed}", purge_step=1)
        self.writers, self.written = {}, {}

    def __call__(self, history: History, epoch: int, seeds: list[int], networks=None):
        for seed in seeds:
            self.writers[seed] = self.writers.get(seed) or self.writer(seed)
            for name, curves in history.curves.items():
                curve = curves[history.seeds.index(seed)]
                for at, value in zip(history.points(name, seed).tolist(), curve, strict=True):
                    if at > self.written.get(seed, 0):
                        self.writers[seed].add_scalar(name.replace("_", "/", 1), value, at)
            self.writers[seed].flush()
            self.written[seed] = epoch
