"""Tables drawn from records: accuracies with intervals, verdicts, and the protocol behind them."""

import json
import pathlib
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from kdlib import metrics
from kdlib.history import History, write_text

FIGURES = pathlib.Path(__file__).resolve().parent.parent / "figures"


class Records(NamedTuple):
    """Finished runs of several methods, as a table or figure needs them.

    Attributes:
        teacher: the teacher's test accuracy, a share.
        histories: name of a method → its record, in the order of the table.
    """

    teacher: float
    histories: dict[str, History]

    def save(self, path) -> None:
        """Write as JSON."""
        runs = {name: asdict(history) for name, history in self.histories.items()}
        write_text(path, json.dumps({"teacher": self.teacher, "histories": runs}, indent=1))

    @classmethod
    def load(cls, path) -> "Records":
        stored = json.loads(pathlib.Path(path).read_text())
        histories = {name: History(**record) for name, record in stored["histories"].items()}
        return cls(stored["teacher"], histories)


def recorded(name: str) -> Records:
    """A comparison that was run before and is published in ``figures/NAME``."""
    return Records.load(FIGURES / name / "records.json")


class Table(str):
    """A Markdown table: a notebook renders it, a terminal prints it in columns."""

    def _repr_markdown_(self) -> str:
        return str(self)


def results_table(
    histories: dict[str, History], *, teacher: float | None = None, baseline: str | None = None
) -> Table:
    """A Markdown table of methods: accuracy, paired difference to the baseline, verdict, cost.

    Args:
        histories: name → record, in the table's order.
        teacher: the teacher's test accuracy, a share; adds its row and the share of the gap closed.
        baseline: whose row the others are compared with; the first if None.

    Returns:
        Markdown whose columns line up in plain text too. Accuracies are last-epoch, in per cent,
        with Student-t 95 % intervals over seeds; differences are paired by seed.
    """
    baseline = baseline or next(iter(histories))
    base = histories[baseline]
    base_seconds = np.median(base.curve("seconds"))
    rows = [["method", "test accuracy (%)", "difference", "verdict", "gap closed", "time per epoch",
             "best epoch on test (%)"]]  # fmt: skip
    if teacher is not None:
        rows.append(["teacher", f"{100 * teacher:.1f}", "", "", "", "", ""])
    for name, history in histories.items():
        accuracy = history.last()
        row = [name, str(metrics.interval(accuracy)), "", "", ""]
        if name != baseline:
            difference, verdict = metrics.compare(accuracy, base.last())
            closed = gap_closed(accuracy, base.last(), teacher)
            row[2:] = [f"{'+' if difference.mean >= 0 else ''}{difference}", verdict, closed]
        cost = np.median(history.curve("seconds")) / base_seconds
        rows.append([*row, f"x {cost:.2f}", str(metrics.interval(history.best()))])
    return markdown(rows)


def gap_closed(accuracy, baseline, teacher: float | None) -> str:
    """Share of the distance from baseline to teacher that a method covers, in per cent."""
    if teacher is None or teacher <= np.mean(baseline):
        return ""
    return f"{100 * (np.mean(accuracy) - np.mean(baseline)) / (teacher - np.mean(baseline)):.0f} %"


def markdown(rows: list[list[str]]) -> Table:
    """Rows of text (the first is the head) as a Markdown table, padded to line up."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return Table("\n".join([lines[0], rule, *lines[1:]]))


def protocol(history: History) -> str:
    """One line that says how a record was measured: data, networks, recipe, seeds, device."""
    config, facts = history.config, history.protocol
    data, recipe = config["data"], config["recipe"]
    seeds = f"{len(history.seeds)} seed{'s' if len(history.seeds) > 1 else ''}"
    return (
        f"{data['source']}: {data['train']:,} training, {data['test']:,} test pictures; "
        f"{config['student']}, {facts['parameters'] / 1e6:.2f} M parameters; "
        f"{recipe['epochs']} epochs, batch {recipe['batch_size']}; {seeds}; "
        f"{facts['reported']} reported; {facts['device']}"
    )
