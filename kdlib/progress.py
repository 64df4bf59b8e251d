"""Live progress: a bar in a terminal, one line updated in place in a notebook, lines in a log."""

import sys
import time

from kdlib.history import History


class Progress:
    """Shows one run of training. Reading the metrics stops the device, so it does so rarely.

    Args:
        label: what is being trained.
        total: pictures of the whole run, all seeds and epochs.
        enabled: False shows nothing.
    """

    def __init__(self, label: str, total: int, enabled: bool = True):
        self.label, self.total, self.enabled = label, total, enabled
        self.done, self.skipped, self.text = 0, 0, ""
        self.started = self.shown = time.monotonic()
        self.bar = self.line = None
        if not enabled:
            return
        if _in_notebook():
            from IPython.display import display

            self.line = display({"text/plain": label}, raw=True, display_id=True)
        elif sys.stderr.isatty():
            from tqdm import tqdm

            # One line of our own, in place of a bar: the metrics need its room.
            self.bar = tqdm(total=total, bar_format="{desc}")

    def skip(self, pictures: int) -> None:
        """Count pictures of epochs that an earlier, interrupted run has trained."""
        self.skipped += pictures
        self.advance(pictures)

    def advance(self, pictures: int, sums: dict | None = None) -> None:
        """Count trained pictures; ``sums`` (on the device) are read once a second at most."""
        self.done += pictures
        if self.bar is not None:
            self.bar.update(pictures)
        if self.enabled and sums is not None and time.monotonic() - self.shown > 1:
            self.shown = time.monotonic()
            count = float(sums["count"].sum())
            self._show(
                f"loss {float(sums['loss'].sum()) / count:.3f}  "
                f"train {100 * float(sums['correct'].sum()) / count:.1f} %"
            )

    def epoch(self, history: History, epoch: int, epochs: int, seeds: list[int]) -> None:
        """Show the metrics of a finished epoch."""
        which = ", ".join(map(str, seeds))
        place = history.seeds.index(seeds[0])
        values = {name: curves[place][-1] for name, curves in history.curves.items()}
        text = (
            f"seed {which}  epoch {epoch}/{epochs}  loss {values['train_loss']:.3f}  "
            f"train {100 * values['train_accuracy']:.1f} %"
        )
        for name in ("validation", "test"):
            if f"{name}_accuracy" in values:
                text += f"  {name} {100 * values[f'{name}_accuracy']:.1f} %"
        self.text = text + "  "
        self._show("")
        if self.enabled and self.bar is None and self.line is None:
            rate, left = self._pace()
            print(f"{self.label}  {self.text} {rate:.0f} pictures/s  {left} left", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.line is not None:
            took = time.monotonic() - self.started
            self.line.update({"text/plain": f"{self.label}  {self.text} {took:.0f} s"}, raw=True)

    def _show(self, text):
        rate, left = self._pace()
        share = 100 * self.done // self.total
        line = f"{self.label}  {share} %  {self.text}{text}  {rate:.0f} pictures/s  {left} left"
        if self.bar is not None:
            self.bar.set_description_str(line)
        elif self.line is not None:
            self.line.update({"text/plain": line}, raw=True)

    def _pace(self):
        trained = self.done - self.skipped
        rate = trained / max(time.monotonic() - self.started, 1e-3)
        left = int((self.total - self.done) / rate) if rate else 0
        return rate, f"{left // 60}:{left % 60:02d}"


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return "IPKernelApp" in getattr(get_ipython(), "config", {})
