"""TensorBoard event files of a run, one folder per seed."""

import pathlib
from importlib.util import find_spec

from kdlib.history import History
from kdlib.names import require


class Writer:
    """Writes metrics of finished epochs to ``run_dir/events/seed-N``; ``fit`` calls it.

    Raises ValueError without tensorboardX.
    """

    def __init__(self, run_dir: pathlib.Path):
        require(find_spec("tensorboardX"), "no tensorboardX: install it, or give --no-do_log")
        self.run_dir, self.writers, self.written = run_dir, {}, {}

    def __call__(self, history: History, epoch: int, seeds: list[int], networks=None):
        from tensorboardX import SummaryWriter  # and PyTorch, where that is: not at the start

        # All epochs anew, so that after a kill none is missing and none shows twice.
        new = lambda seed: SummaryWriter(f"{self.run_dir}/events/seed-{seed}", purge_step=1)
        for place, seed in enumerate(history.seeds):  # a kill may have left others behind
            writer = self.writers.get(seed) or self.writers.setdefault(seed, new(seed))
            for name, curves in history.curves.items():
                for at, value in zip(history.points(name, seed), curves[place], strict=True):
                    if at > self.written.get(seed, 0):
                        writer.add_scalar(name.replace("_", "/", 1), value, int(at))
            writer.flush()
            self.written[seed] = len(history.curves["seconds"][place])
