"""Statistics, tables, figures, and attention scores, against hand-made values."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import kdlib
from kdlib import metrics, plots, report
from kdlib.history import History


def history(accuracies, seconds=1.0, device="cpu, 2 cores") -> History:
    """A record with these accuracies, ``[seeds, epochs]``."""
    accuracies = np.asarray(accuracies)
    config = {
        "student": "ResNet8", "distiller": "SoftLogits",
        "data": {"name": "x", "source": "test pictures", "train": 5000, "test": 100},
        "recipe": {"epochs": accuracies.shape[1], "batch_size": 8},
    }  # fmt: skip
    protocol = {"parameters": 123456, "reported": "last epoch", "device": device}
    curves = {
        "test_accuracy": accuracies.tolist(), "train_loss": (1 - accuracies).tolist(),
        "seconds": np.full(accuracies.shape, seconds).tolist(),
    }  # fmt: skip
    return History(config, protocol, list(range(len(accuracies))), curves)


def test_the_interval_is_student_s():
    """Mean 2, standard deviation 1, three values: 4.3027 · 1 / √3 (a table's t for 2 degrees)."""
    found = metrics.interval([1, 2, 3])
    assert found.mean == 2 and found.half == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    alone = metrics.interval([0.5])
    assert alone.mean == 0.5 and np.isnan(alone.half) and str(alone) == "50.0"
    assert str(metrics.Interval(0.461, 0.008)) == "46.1 ± 0.8"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.60, 0.71, 0.82], "better"), ([0.40, 0.49, 0.61], "worse"),
        ([0.60, 0.55, 0.75], "inconclusive"), ([0.5, 0.6, 0.7], "inconclusive"),
    ],
)  # fmt: skip
def test_verdicts_are_paired(values, verdict):
    """0.5, 0.6, 0.7 spread by 0.1 each; only pairing can see a steady difference of 0.1."""
    difference, found = metrics.compare(values, [0.5, 0.6, 0.7])
    assert found == verdict
    assert difference.mean == pytest.approx(np.mean(values) - 0.6)


def test_one_seed_is_never_a_verdict_and_unequal_seeds_are_refused():
    assert metrics.compare([0.9], [0.1])[1] == "inconclusive"
    with pytest.raises(ValueError, match="same seeds"):
        metrics.compare([0.9, 0.8], [0.1])


def test_object_share_of_known_maps():
    masks = np.zeros((3, 8, 8), bool)
    masks[:, :4, :4] = True  # a quarter of the area
    features = np.zeros((3, 4, 4, 2), np.float32)
    features[0] = 1.0  # everywhere alike
    features[1, :2, :2] = 5.0  # on the object only
    features[2, 0, 0], features[2, 3, 3] = 1.0, 3.0  # one part in ten
    np.testing.assert_allclose(metrics.object_share(features, masks), [0.25, 1.0, 0.1], rtol=1e-5)


def test_the_table_says_what_the_records_say():
    plain = history([[0.5, 0.4], [0.6, 0.5], [0.7, 0.6]])
    taught = history([[0.6, 0.6], [0.8, 0.71], [0.7, 0.82]], seconds=2.0)
    table = report.results_table({"plain": plain, "taught": taught}, teacher=0.95)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[2][:2] == ["teacher", "95.0"]
    assert rows[3][:2] == ["plain", "50.0 ± 24.8"] and rows[3][5] == "x 1.00"
    name, accuracy, difference, verdict, closed, time, best = rows[4]
    assert (name, verdict, closed, time) == ("taught", "better", "47 %", "x 2.00")
    assert accuracy == "71.0 ± 27.3" and difference == "+21.0 ± 2.5" and best.startswith("74.0")
    assert len({len(line) for line in table.splitlines()}) == 1
    assert table._repr_markdown_() == table


def test_records_come_back_from_json(tmp_path):
    records = report.Records(0.9, {"plain": history([[0.5, 0.4]])})
    records.save(tmp_path / "records.json")
    assert report.Records.load(tmp_path / "records.json") == records


def test_the_protocol_names_data_seeds_epochs_and_device():
    line = report.protocol(history([[0.1, 0.2], [0.1, 0.2]]))
    for part in ("test pictures", "5,000", "2 epochs", "2 seeds", "last epoch", "cpu", "0.12 M"):
        assert part in line


def test_every_figure_draws(small_shapes, teacher):
    plots.use_style()
    records = {name: history([[0.1, 0.3], [0.2, 0.4]]) for name in ("plain", "A + B")}
    split = small_shapes.test.take(slice(3))
    network = kdlib.models.build("ResNet8x0.25", 10)
    figures = [
        plots.curves(records, teacher=0.9),
        plots.comparison({n: r.last() for n, r in records.items()}, teacher=0.9, title="x"),
        plots.pictures(split.images, ["a", "b", "c"]),
        plots.network_attention({"one": network}, split, stage=2),
        plots.matrix([[1.0, np.nan], [2.0, 3.0]], ["a", "b"], ["long name", "d"], label="x"),
        plots.bars({"T = 1": [0.1, 0.9], "T = 4": [0.4, 0.6]}, ["a", "b"], "share"),
    ]
    for figure in figures:
        figure.canvas.draw()
        assert matplotlib_is_opaque(figure)
        plt.close(figure)


def matplotlib_is_opaque(figure) -> bool:
    return figure.get_facecolor() == (1, 1, 1, 1)


def test_attention_maps_share_one_colour_scale(small_shapes):
    images, masks = small_shapes.test.images[:2], small_shapes.test.masks[:2]
    maps = {
        "flat": np.ones((2, 4, 4, 1)),
        "peak": np.pad(np.ones((2, 1, 1, 1)), ((0, 0), (0, 3), (0, 3), (0, 0))),
    }
    figure = plots.attention_maps(images, maps, masks)
    limits = {
        i.get_clim() for a in figure.axes for i in a.get_images() if i.get_cmap().name == "magma"
    }
    plt.close(figure)
    assert len(limits) == 1


def test_figures_are_written_and_released(tmp_path):
    plots.save(plots.bars({"x": [1.0]}, ["a"], "y"), tmp_path / "new" / "bars.png")
    assert (tmp_path / "new" / "bars.png").stat().st_size > 1000 and not plt.get_fignums()
