"""Figures of a comparison beside those that `kdlib.compare` draws; records are by method.

The first of ``histories`` is always the plain student, whom the others are held against.
"""

import matplotlib.pyplot as plt
import numpy as np

from kdlib import metrics, plots
from kdlib.history import History
from kdlib.names import require


def panels(histories: dict[str, History], teacher: float | None = None, columns: int = 7):
    """Test accuracy while training, a small panel per method: mean and range over seeds.

    The first of ``histories`` is drawn in grey behind each of the others.
    """
    (first, base), *others = histories.items()
    columns, rows = min(columns, len(others)), -(-len(others) // columns)
    size = (1.5 * columns, 0.5 + 1.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
    for axis in axes.flat[len(others) :]:
        axis.remove()
    for axis, (name, history) in zip(axes.flat, others, strict=False):
        for shown, colour in ((base, "0.55"), (history, plots.COLOURS[0])):
            values, epochs = 100 * shown.curve("test_accuracy"), shown.points("test_accuracy")
            axis.plot(epochs, values.mean(0), color=colour, marker="")
            axis.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
        if teacher is not None:
            axis.axhline(100 * teacher, color="black", ls="--", lw=1, marker="")
        axis.set_title(name.replace("(", "\n("), fontsize=8)
        axis.tick_params(labelsize=7)
        axis.locator_params("x", nbins=4, integer=True)
    figure.supxlabel(f"epoch (grey: {first}; dashed: the teacher; bands: seeds)", fontsize=9)
    figure.supylabel("test accuracy (%)", fontsize=9)
    return figure


def _mark(axis, place, word, side="right"):
    """A dashed line where a value lies, and a word on one side of it."""
    axis.axvline(place, color="black", ls="--", lw=1, marker="")
    axis.annotate(word, (place, 1), xycoords=("data", "axes fraction"), va="top", ha=side,
                  xytext=(4 - 8 * (side == "right"), -2), textcoords="offset points")  # fmt: skip


WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1}
VERDICTS = {"better": plots.COLOURS[0], "inconclusive": "0.5", "worse": plots.COLOURS[1],
            "plain": "black"}  # fmt: skip


def shares(student, plain, teacher: float) -> np.ndarray:
    """What a student closes of the plain one's distance to its teacher, ``[seeds]``, 1 being all.

    ``student`` and ``plain`` are accuracies ``[seeds]``, paired; the teacher's is one number, so
    intervals say nothing of another teacher. The mean is the mean gain over the mean gap, the
    spread that of this ratio to first order (the delta method): a plain student that ends high by
    luck makes a gain small, and the gap with it.
    """
    gain, gap = student - plain, teacher - plain
    share = gain.mean() / gap.mean()
    return share + (gain - share * gap) / gap.mean()


def gap_closed(histories: dict[str, History], teacher: float, lowest: float = -100):
    """Gains over the first of ``histories``, in per cent of its distance to the teacher: `shares`.

    Blue is better than the first, grey inconclusive, orange worse; means below ``lowest`` are
    written at the edge, and a triangle there says that seeds or intervals reach beyond.
    """
    (first, base), *others = histories.items()
    require(
        teacher > base.last().mean(), f"the teacher is not above {first}: there is no gap to close"
    )
    figure, axis = plt.subplots(figsize=(6.4, 0.9 + min(0.45 * len(others), 6)))
    gains = {name: shares(history.last(), base.last(), teacher) for name, history in others}
    verdicts = [metrics.compare(history.last(), base.last())[1] for _, history in others]
    plots.draw_rows(axis, gains, colours=[VERDICTS[verdict] for verdict in verdicts])
    _mark(axis, 0, first)
    _mark(axis, 100, "teacher", "left")
    limits = np.clip(axis.get_xlim(), (lowest, 130), (-25, np.inf))
    axis.set(xlim=limits, xlabel="gap to the teacher closed (%)")
    for place, values in enumerate(gains.values()):
        (mean, half), edge = metrics.interval(values), {"color": VERDICTS[verdicts[place]], "ms": 6}
        low = 100 * np.nanmin([mean - half, values.min()]) < limits[0] and 100 * mean >= lowest
        high = 100 * np.nanmax([mean + half, values.max()]) > limits[1]
        for end, marker, beyond in ((limits[0], "<", low), (limits[1], ">", high)):
            if beyond:
                axis.plot(end, place, marker=marker, clip_on=False, **edge)
                axis.set_xlabel("gap to the teacher closed (%); triangles: more lies beyond")
        if 100 * values.mean() < lowest:
            text = f"\N{LEFTWARDS ARROW} {100 * values.mean():.0f} %".replace("-", "\N{MINUS SIGN}")
            axis.text(lowest + 3, place, text, va="center", fontsize=8, bbox=WHITE,
                      color=VERDICTS[verdicts[place]])  # fmt: skip
    return figure


def _pair(rows, *labels):
    """Two panels side by side that share their rows."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 0.9 + min(0.45 * rows, 6)), sharey=True)
    for axis, label in zip(axes, labels, strict=True):
        axis.set_xlabel(label)
    return figure, axes


def calibration(histories: dict[str, History]):
    """Expected calibration error and negative log-likelihood, rows as in `plots.comparison`."""
    labels = "calibration error, ECE (%)", "negative log-likelihood, NLL (nats)"
    figure, axes = _pair(len(histories), *labels)
    for axis, key, scale in zip(axes, ("ece", "nll"), (100, 1), strict=True):
        found = {name: np.array(each.final[key]) for name, each in histories.items()}
        # One colour: these are no verdicts.
        colours = ["black", *[plots.COLOURS[2]] * (len(found) - 1)]
        plots.draw_rows(axis, found, scale, colours)
    return figure


def timed(histories: dict[str, History]) -> dict[str, History]:
    """Those whose times can be compared: measured on the device of the first."""
    device = next(iter(histories.values())).protocol["device"]
    return {n: each for n, each in histories.items() if each.protocol["device"] == device}


def cost(histories: dict[str, History]):
    """Training time, the first of ``histories`` being its unit, and accuracy; cheapest on top.

    Methods that none as cheap beats are in blue. Those without a comparable time are left out.
    """
    first, base = next(iter(histories.items()))
    ordered = dict(sorted(timed(histories).items(), key=lambda item: item[1].seconds()))
    means = np.array([history.last().mean() for history in ordered.values()])
    colours = np.where(np.maximum.accumulate(means) == means, plots.COLOURS[0], "0.5").tolist()
    labels = f"training time, times that of {first}", "test accuracy (%)"
    figure, axes = _pair(len(ordered), *labels)
    times = {name: np.array([each.seconds()]) / base.seconds() for name, each in ordered.items()}
    plots.draw_rows(axes[0], times, 1, colours)
    plots.draw_rows(axes[1], {name: each.last() for name, each in ordered.items()}, 100, colours)
    axes[0].set_xlim(0)
    return figure
