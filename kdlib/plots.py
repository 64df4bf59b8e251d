"""Every figure a notebook or a script shows.

One style for all: an opaque white ground (readable on GitHub in dark mode too), colours that
colour-blind readers tell apart, and a marker or a line style beside every colour.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler

from kdlib import files, metrics
from kdlib.history import History
from kdlib.train import predict

# Okabe and Ito's palette, yellow left out: it is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def use_style() -> None:
    """Set matplotlib's defaults for the whole cookbook."""
    plt.rcParams.update({"figure.dpi": 100, "axes.axisbelow": True, "figure.facecolor": "white",
        "savefig.facecolor": "white", "axes.facecolor": "white", "lines.markersize": 4,
        "axes.titlesize": 11, "font.size": 10, "legend.fontsize": 9, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True,
        "axes.grid": True, "grid.alpha": 0.3, "savefig.dpi": 150, "image.interpolation": "nearest",
        "axes.prop_cycle": cycler(color=COLOURS) + cycler(marker=MARKERS)})  # fmt: skip


def _figure(rows=1, columns=1, size=None, **kwargs):
    return plt.subplots(rows, columns, figsize=size or (4.2 * columns, 3.2 * rows), **kwargs)


def curves(histories: dict[str, History], metric: Sequence[str] = ("train_loss", "test_accuracy"),
           teacher: float | None = None):  # fmt: skip
    """Training curves: the mean over seeds as a line, their range as a band; a panel per metric.

    ``histories`` maps names in the legend to records; ``teacher`` is an accuracy to draw dashed.
    """
    figure, axes = _figure(1, len(metric), squeeze=False)
    for axis, name in zip(axes[0], metric, strict=True):
        is_share = name.endswith("accuracy")
        for place, (label, history) in enumerate(histories.items()):
            values = history.curve(name) * (100 if is_share else 1)  # (seeds, epochs)
            epochs = history.points(name)
            colour, every = COLOURS[place % 7], max(1, len(epochs) // 8)
            axis.plot(epochs, values.mean(0), label=label, color=colour, marker=MARKERS[place % 7],
                      markevery=(place % every, every))  # fmt: skip
            axis.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        if teacher is not None and is_share:
            axis.axhline(100 * teacher, color="black", ls="--", lw=1, marker="", label="teacher")
        axis.set(xlabel="epoch", ylabel=name.replace("_", " ") + (" (%)" if is_share else ""))
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def draw_rows(axis, values: dict[str, np.ndarray], scale=100, colours=None):
    """One row per name: every seed as a dot, the mean and its 95 % interval as a bar."""
    for place, each in enumerate(values.values()):
        colour = colours[place] if colours else COLOURS[place % 7]
        mean, half = metrics.interval(each)
        axis.plot(scale * each, [place] * len(each), ls="", marker="o", color=colour, alpha=0.45)
        reach = None if np.isnan(half) else scale * half
        axis.errorbar(scale * mean, place, xerr=reach, marker="|", ms=14, capsize=4, color=colour)
    axis.set(yticks=range(len(values)), yticklabels=list(values), ylim=(len(values) - 0.5, -0.5))


def comparison(accuracies: dict[str, np.ndarray], teacher: float | None = None,
               title: str | None = None, colours: Sequence[str] | None = None):  # fmt: skip
    """One row per method: every seed as a dot, the mean and its 95 % interval as a bar.

    ``accuracies`` maps names, from the top, to shares ``[seeds]``; ``teacher`` is drawn dashed;
    ``colours`` are the rows'.
    """
    width = max(6.4, 4 + 0.08 * max(map(len, accuracies)))  # more for the path of one's own method
    figure, axis = _figure(size=(width, 0.9 + min(0.45 * len(accuracies), 6)))
    draw_rows(axis, accuracies, colours=colours)
    if teacher is not None:
        axis.axvline(100 * teacher, color="black", ls="--", lw=1, marker="")
        axis.annotate("teacher", (100 * teacher, 1), (0, 2), ("data", "axes fraction"),
                      "offset points", ha="center")  # fmt: skip
    low, high = axis.get_xlim()  # an interval may end beyond what an accuracy can be
    axis.set(xlabel="test accuracy (%)", title=title or "", xlim=(max(low, -2), min(high, 102)))
    return figure


def efficiency(tables: dict[int, dict[str, History]]):
    """Accuracy against the number of labels: means and 95 % intervals, a line per method.

    ``tables`` maps numbers of labelled pictures to records by method, the same methods in each.
    """
    figure, axis = _figure(size=(6, 3.6))
    counts = sorted(tables)
    for place, method in enumerate(tables[counts[0]]):
        found = [metrics.interval(tables[count][method].last()) for count in counts]
        mean, half = (100 * np.array(values) for values in zip(*found, strict=True))
        shift = 1.02 ** (place - (len(tables[counts[0]]) - 1) / 2)  # side by side, not on top
        axis.errorbar(shift * np.array(counts), mean, np.nan_to_num(half), capsize=3, label=method)
    axis.set(xscale="log", xlabel="labelled pictures", ylabel="test accuracy (%)")
    axis.minorticks_off()
    axis.set_xticks(counts, map(str, counts))
    axis.legend()
    return figure


def pictures(images, titles: Sequence[str] | None = None, columns: int = 10):
    """A grid of pictures, uint8 ``[n, h, w, c]``."""
    rows = -(-len(images) // columns)
    figure, axes = _figure(rows, columns, (0.85 * columns, 0.98 * rows), squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.axis("off")
        if place < len(images):
            axis.imshow(images[place].squeeze(), cmap="gray")
            axis.set_title("" if titles is None else titles[place], fontsize=8)
    return figure


def attention_maps(images, features: dict[str, Sequence], masks=None):
    """Where networks look: a row per network, a column per picture, one colour scale for all.

    ``images`` are uint8 ``[n, h, w, c]``; ``features`` maps names of networks to feature maps, also
    ``[n, h, w, c]``; ``masks``, bool ``[n, h, w]``, outline the object, and the share of a map's
    energy on it is written above.
    """
    count, rows = len(images), 1 + len(features)
    figure, axes = _figure(rows, count, (1.15 * count + 0.9, 1.25 * rows),
                           subplot_kw={"xticks": [], "yticks": []})  # fmt: skip
    extent = (-0.5, images.shape[2] - 0.5, images.shape[1] - 0.5, -0.5)  # in the picture's pixels
    maps = {}
    for name, feature in features.items():
        energy = (np.asarray(feature, np.float32) ** 2).mean(-1)  # (n, h, w)
        maps[name] = energy / np.maximum(energy.sum((1, 2), keepdims=True), 1e-12) * energy[0].size
    top = max(np.percentile(energy, 99) for energy in maps.values())
    for column in range(count):
        axes[0, column].imshow(images[column].squeeze(), cmap="gray")
        for row, (name, energy) in enumerate(maps.items(), 1):
            axis = axes[row, column]
            shown = axis.imshow(energy[column], cmap="magma", vmin=0, vmax=top, extent=extent)
            if masks is not None:
                axis.contour(masks[column], levels=[0.5], colors="white", linewidths=0.8)
                share = metrics.object_share(np.asarray(features[name])[[column]], masks[[column]])
                axis.set_title(f"{100 * float(share[0]):.0f} %", fontsize=8, pad=2)
    for axis, name in zip(axes[:, 0], ["picture", *features], strict=True):
        axis.set_ylabel(name.replace(" + ", "\n+ "), fontsize=9)
    figure.colorbar(shown, ax=axes[1:, :], shrink=0.7, label="attention ÷ its mean", extend="max")
    return figure


def network_attention(networks: dict, split, stage: int = -1):
    """:func:`attention_maps` of networks, by name, on the pictures of a split, with its masks.

    ``stage`` chooses the feature map, from 1; -1 is the last.
    """
    features = {name: predict(net, split.images).features[stage] for name, net in networks.items()}
    return attention_maps(split.images, features, split.masks)


def matrix(values, rows: Sequence[str], columns: Sequence[str], *, label: str, form: str = "{:.2f}",
           xlabel: str = "", ylabel: str = "", cmap: str = "viridis"):  # fmt: skip
    """A heat map with its numbers written in: class similarities, or a sweep of two settings."""
    values = np.asarray(values)
    figure, axis = _figure(size=(1.6 + 0.52 * len(columns), 1.2 + 0.38 * len(rows)))
    shown = axis.imshow(values, cmap=cmap, aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for i, j in np.ndindex(values.shape):
        if not np.isnan(values[i, j]):
            colour = "white" if values[i, j] < middle else "black"
            axis.text(j, i, form.format(values[i, j]), ha="center", va="center", c=colour, size=8)
    turned = {"rotation": 45, "ha": "right"} if max(map(len, columns)) > 4 else {}
    axis.set_xticks(range(len(columns)), columns, **turned)
    axis.set(xlabel=xlabel, ylabel=ylabel, yticks=range(len(rows)), yticklabels=rows)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    figure.colorbar(shown, label=label)
    return figure


def save(figure, path) -> None:
    """Write a figure as a crisp PNG and release its memory."""
    with files.replacing(path) as scratch:
        figure.savefig(scratch, format="png")
    plt.close(figure)
