"""TensorBoard event files of a run, one folder per seed."""

import pathlib

from kdlib.history import History


class Writer:
    """Writes every metric of a finished epoch; called by ``fit`` with the record.

    Args:
        run_dir: the run's folder; events go to ``run_dir/events/seed-N``.
    """

    def __init__(self, run_dir: pathlib.Path):
        self.run_dir, self.writers = run_dir, {}

    def __call__(self, history: History, epoch: int, seeds: list[int]) -> None:
        from tensorboardX import SummaryWriter

        for seed in seeds:
            if seed not in self.writers:
                # Events of an interrupted run at this epoch or after it are not shown twice.
                folder = str(self.run_dir / "events" / f"seed-{seed}")
                self.writers[seed] = SummaryWriter(folder, purge_step=epoch)
            for name, curves in history.curves.items():
                value = curves[history.seeds.index(seed)][-1]
                self.writers[seed].add_scalar(name.replace("_", "/", 1), value, epoch)
            self.writers[seed].flush()
