"""Live progress: a bar in a terminal, one line updated in place in a notebook, lines in a log."""

import sys
import time

from kdlib.history import History


class Progress:
    """Shows one run of training. Reading the metrics stops the device, so it does so rarely.

    ``label`` says what is trained; ``total`` counts pictures of all seeds and epochs.
    """

    def __init__(self, label: str, total: int, enabled: bool = True):
        self.label, self.total, self.enabled = label, total, enabled
        self.done, self.skipped, self.text = 0, 0, ""
        self.started = self.shown = time.monotonic()
        self.bar = self.write = None
        if enabled and _in_notebook():
            from IPython.display import display

            line = display({"text/plain": label}, raw=True, display_id=True)
            self.write = lambda text: line.update({"text/plain": text}, raw=True)
        elif enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(bar_format="{desc}")  # the metrics need the bar's room
            self.write = self.bar.set_description_str

    def advance(self, pictures: int, sums: dict | None = None) -> None:
        """Count trained pictures; ``sums`` (on the device) are read once a second at most.

        Without ``sums`` they are those of an earlier, interrupted run.
        """
        self.done += pictures
        self.skipped += pictures if sums is None else 0
        if self.write and sums is not None and time.monotonic() - self.shown > 1:
            self.shown = time.monotonic()
            count, loss, correct = (float(sums[k].sum()) for k in ("count", "loss", "accuracy"))
            self._show(f"loss {loss / count:.3f}  train {100 * correct / count:.1f} %")

    def epoch(self, history: History, epoch: int, epochs: int, seeds: list[int]) -> None:
        """Show the metrics of a finished epoch."""
        place = history.seeds.index(seeds[0])
        last = {name: curve[place][-1] for name, curve in history.curves.items() if curve[place]}
        self.text = f"seed {', '.join(map(str, seeds))}  epoch {epoch}/{epochs}  "
        self.text += f"loss {last['train_loss']:.3f}  "
        shares = {name: last.get(f"{name}_accuracy") for name in ("train", "validation", "test")}
        self.text += "".join(f"{k} {100 * v:.1f} %  " for k, v in shares.items() if v is not None)
        self._show("")
        if self.enabled and not self.write:
            print(f"{self.label}  {self.text} {self._pace()}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.write:
            self.write(f"{self.label}  {self.text} {time.monotonic() - self.started:.0f} s")

    def _show(self, text):
        if self.write:
            share = 100 * self.done // self.total
            self.write(f"{self.label}  {share} %  {self.text}{text}  {self._pace()}")

    def _pace(self) -> str:
        rate = (self.done - self.skipped) / max(time.monotonic() - self.started, 1e-3)
        left = int((self.total - self.done) / rate) if rate else 0
        return f"{rate:.0f} pictures/s  {left // 60}:{left % 60:02d} left"


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    return bool(ipython) and "IPKernelApp" in getattr(ipython.get_ipython(), "config", {})
