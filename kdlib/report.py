"""Tables drawn from records: accuracies with intervals, verdicts, and the protocol behind them."""

import json
import pathlib
import re
from typing import NamedTuple

import numpy as np

from kdlib import files, metrics
from kdlib.history import History
from kdlib.names import require

FIGURES = pathlib.Path(__file__).resolve().parent.parent / "figures"


class Records(NamedTuple):
    """Finished runs of several methods, as a table or figure needs them.

    Attributes:
        teacher: the teacher's test accuracy, a share.
        histories: name of a method → its record, in the order of the table.
    """

    teacher: float
    histories: dict[str, History]

    def save(self, folder) -> None:
        """Write one JSON file per method, and ``records.json``, which names them."""
        folder = pathlib.Path(folder)
        for name, history in self.histories.items():
            history.save(folder / record_file(name))
        index = {"teacher": self.teacher, "methods": {n: record_file(n) for n in self.histories}}
        files.write_text(folder / "records.json", json.dumps(index, indent=1))

    @classmethod
    def load(cls, folder) -> "Records":
        """The records that a folder holds; FileNotFoundError without any."""
        path = pathlib.Path(folder) / "records.json"
        require(path.exists(), f"no records in {folder}: run the comparison", FileNotFoundError)
        index = files.read_json(path, "delete it, run the comparison anew")
        methods = {n: History.load(path.with_name(f)) for n, f in index["methods"].items()}
        return cls(index["teacher"], methods)


def record_file(method: str) -> str:
    """Name of the file that holds a method's record."""
    return re.sub(r"[^\w.=]+", "-", method).strip("-") + ".json"


def recorded(name: str) -> Records:
    """A comparison that was run before and is published in ``figures/NAME``."""
    return Records.load(FIGURES / name)


class Table(str):
    """A Markdown table: a notebook renders it, a terminal prints it in columns."""

    _repr_markdown_ = str.__str__


def comparable(histories: dict[str, History], baseline: str) -> None:
    """Raises ValueError for a record that stopped early, or is of another kind than the
    baseline's: of other seeds, data or student."""
    kind = lambda record: [record.seeds, *map(record.config.get, ("data", "student"))]
    for name, history in histories.items():
        done, asked = history.epochs, history.protocol.get("epochs", history.epochs)
        require(done == asked, f"{name} has {done} of {asked} epochs: run it to its end first")
        ours, theirs = kind(history), kind(histories[baseline])
        require(ours == theirs, f"{name} is {ours}, {baseline} {theirs}: make a table of each")


def results_table(histories: dict[str, History], *, teacher: float | None = None,
                  baseline: str | None = None) -> Table:  # fmt: skip
    """A Markdown table of methods: accuracy, paired difference to the baseline, verdict, cost.

    Args:
        histories: name → record, in the table's order.
        teacher: the teacher's test accuracy, a share; adds its row and the share of the gap closed.
        baseline: whose row the others are compared with; the first if None.

    Returns:
        Markdown whose columns line up in plain text too. Accuracies are last-epoch, in per cent,
        with Student-t 95 % intervals over seeds; differences are paired by seed. The time of a
        method that was trained on another device than the baseline is left out.

    Raises:
        ValueError: seeds, data or students differ, or a run has not ended.
    """
    baseline = baseline or next(iter(histories))
    comparable(histories, baseline)
    base, low = histories[baseline], histories[baseline].last().mean()
    rows = [["method", "test accuracy (%)", "difference", "verdict", "gap closed", "training time",
             "passes", "extra parameters", "best epoch on test (%)"]]  # fmt: skip
    if teacher is not None:
        rows.append(["teacher", f"{100 * teacher:.1f}", *[""] * 7])
    for name, history in histories.items():
        accuracy, lost = history.last(), np.isnan(history.curves.get("train_loss", 0)).any()
        row = [name, f"{metrics.interval(accuracy)}{' (diverged)' * bool(lost)}", "", "", ""]
        if name != baseline:
            difference, verdict = metrics.compare(accuracy, base.last())
            gain, gap = accuracy.mean() - low, teacher and teacher - low
            closed = f"{100 * gain / gap:.0f} %" if gap and gap > 0 else ""
            row[2:] = [f"{'+' if difference.mean >= 0 else ''}{difference}", verdict, closed]
        facts, count = history.protocol, history.protocol["parameters"]
        passes = f"{facts.get('student_passes', 1)} + {facts.get('teacher_passes', 0)}"
        sizes = (facts.get(f"{kind}_parameters", count) for kind in ("trained", "deployed"))
        extra, kept = (f"{100 * (size / count - 1):.0f} %" for size in sizes)
        alike = facts["device"] == base.protocol["device"]  # else times can't be compared
        time = f"x {history.seconds() / base.seconds():.2f}" if alike else ""
        beside = extra if kept == "0 %" else f"{extra} ({kept} kept)"
        rows.append([*row, time, passes, beside, str(metrics.interval(history.best()))])
    return markdown(rows)


QUALITY = {"ece": 100, "nll": 1, "brier": 1, "agreement": 100, "kl": 1, "cka": 1}  # and their units


def quality_table(histories: dict[str, History]) -> Table:
    """A Markdown table of calibration and of fidelity to the teacher, means over seeds.

    ECE and agreement in per cent, NLL and KL in nats, Brier score and CKA as they are; see
    :func:`kdlib.metrics.quality`.
    """
    rows = [["method", "ECE (%)", "NLL", "Brier", "agreement (%)", "KL to teacher", "CKA"]]
    for name, history in histories.items():
        require(history.final, f"{name} has no quality in its record: kdlib.compare measures it")
        values = [unit * np.mean(history.final[key]) for key, unit in QUALITY.items()]
        rows.append([name, *(f"{value:.{1 if abs(value) > 9 else 2}f}" for value in values)])
    return markdown(rows)


def markdown(rows: list[list[str]]) -> Table:
    """Rows of text (the first is the head) as a Markdown table, padded to line up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *lines = (f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)
    return Table("\n".join([head, f"|{'|'.join('-' * (n + 2) for n in widths)}|", *lines]))


def protocol(history: History) -> str:
    """One line that says how a record was measured: data, networks, recipe, seeds, device."""
    config, facts = history.config, history.protocol
    data, recipe = config["data"], config["recipe"]
    seeds = f"{len(history.seeds)} seed{'s' if len(history.seeds) > 1 else ''}"
    epochs, half = facts.get("epochs", recipe["epochs"]), ", bfloat16" * recipe.get("bfloat16", 0)
    return (f"{data['source']}: {data['train']:,} training, {data['test']:,} test pictures; "
            f"{config['student']}, {facts['parameters'] / 1e6:.2f} M parameters; {epochs} epochs, "
            f"batch {recipe['batch_size']}{half}; {seeds}; {facts['reported']} reported; "
            f"{facts['device']}")  # fmt: skip


def protocols(histories: dict[str, History]) -> str:
    """:func:`protocol` of the first record, and which others have another device, so no time."""
    first, where = next(iter(histories.values())), {}
    for name, history in histories.items():
        where.setdefault(history.protocol["device"], []).append(name)
    notes = [f"{', '.join(n)} on {device}, so without a time" for device, n in [*where.items()][1:]]
    return "; ".join([protocol(first), *notes])
