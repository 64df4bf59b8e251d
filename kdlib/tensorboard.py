"""TensorBoard event files of a run, one folder per seed."""

import pathlib

from kdlib.history import History


class Writer:
    """Writes metrics of finished epochs to ``run_dir/events/seed-N``; ``fit`` calls it."""

    def __init__(self, run_dir: pathlib.Path):
        self.folder, self.writers = run_dir / "events", {}

    def __call__(self, history: History, epoch: int, seeds: list[int], networks=None):
        from tensorboardX import SummaryWriter

        for seed in seeds:
            if seed not in self.writers:  # a resumed run shows none of its epochs twice
                self.writers[seed] = SummaryWriter(f"{self.folder}/seed-{seed}", purge_step=epoch)
            for name, curves in history.curves.items():
                if epoch in history.points(name, seed)[-1:]:  # else it wasn't tested in this one
                    value = curves[history.seeds.index(seed)][-1]
                    self.writers[seed].add_scalar(name.replace("_", "/", 1), value, epoch)
            self.writers[seed].flush()
