"""TensorBoard event files of a run, one folder per seed."""

import pathlib

from kdlib.history import History


class Writer:
    """Writes metrics of finished epochs to ``run_dir/events/seed-N``; ``fit`` calls it.

    Raises ImportError without tensorboardX.
    """

    def __init__(self, run_dir: pathlib.Path):
        from tensorboardX import SummaryWriter

        # All epochs anew, so that after a kill none is missing and none shows twice.
        self.writer = lambda seed: SummaryWriter(f"{run_dir}/events/seed-{seed}", purge_step=1)
        self.writers, self.written = {}, {}

    def __call__(self, history: History, epoch: int, seeds: list[int], networks=None):
        for place, seed in enumerate(history.seeds):  # a kill may have left others behind
            writer = self.writers.get(seed) or self.writers.setdefault(seed, self.writer(seed))
            for name, curves in history.curves.items():
                points = history.points(name, seed).tolist()
                for at, value in zip(points, curves[place], strict=True):
                    if at > self.written.get(seed, 0):
                        writer.add_scalar(name.replace("_", "/", 1), value, at)
            writer.flush()
            self.written[seed] = len(history.curves["seconds"][place])
