"""Statistics, tables, figures, and attention scores, against hand-made values."""

import types

import matplotlib.pyplot as plt
import numpy as np
import pytest

import kdlib
from figures import charts, unseen, which_teacher
from kdlib import metrics, plots, report
from kdlib.data import shapes
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


def test_runs_of_a_seed_each_become_one_record():
    each = []
    for seed, accuracies in ((3, [0.5, 0.6]), (7, [0.7, 0.9])):
        one = history([accuracies])
        one.seeds, one.final = [seed], {"ece": [accuracies[0]]}
        one.config |= {"seeds": [seed], "teacher": f"of {seed}"}
        each.append(one)
    both = which_teacher.together(each)
    assert both.seeds == both.config["seeds"] == [3, 7]
    assert both.config["teacher"] == ["of 3", "of 7"]
    assert both.last().tolist() == [0.6, 0.9] and both.final == {"ece": [0.5, 0.7]}
    assert each[0].seeds == [3] and each[0].last().tolist() == [0.6]


def test_what_a_teacher_leaves_open_is_the_entropy_of_its_softened_answers(monkeypatch):
    """Of two classes whose logits differ by 4: softmax(1, 0) at the students' temperature."""
    shown = types.SimpleNamespace(logits=np.array([[4.0, 0.0], [1.0, 1.0]]))
    monkeypatch.setattr(which_teacher, "predict", lambda *_, **__: shown)
    p = 1 / (1 + np.exp(-1))
    first = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert which_teacher.softness(None, None) == pytest.approx((first + np.log(2)) / 2, rel=1e-6)


def test_pictures_that_a_teacher_has_never_seen_are_nobody_s(small_shapes):
    fresh, *_ = shapes.render(50, seed=unseen.DRAWN)
    for split in (small_shapes.train, small_shapes.test):
        alike = (fresh[:, None] == split.images[None]).all((2, 3, 4))
        assert not alike.any()


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
    assert metrics.compare([0.75, 0.5], [0.5, 0.25])[1] == "inconclusive"  # an interval of no width
    pair = np.array([[0.62, 0.57], [0.60, 0.55]])  # nor has this, but for rounding
    assert all(metrics.compare(*pair.astype(t))[1] == "inconclusive" for t in ("f4", "f8"))
    assert metrics.compare([0.6201, 0.57], [0.60, 0.55])[1] == "better"  # one picture of 10,000
    assert metrics.compare([np.nan, 0.5], [0.5, 0.25])[1] == "inconclusive"
    with pytest.raises(ValueError, match="same seeds"):
        metrics.compare([0.9, 0.8], [0.1])


def test_of_several_generations_the_last_one_s_best_epoch_counts():
    found = history([[0.9, 0.2, 0.5, 0.4]])
    assert found.best() == 0.9
    found.protocol["generations"] = 2
    assert found.best() == 0.5
    few = [0.1, 0.2, 0.9, 0.3, 0.4]
    for epochs, every, tested, best in (
        (20, 4, few, 0.9),  # ten, twice: of 4, 8 and 12, 16, 20
        (20, 40, [0.3], 0.3),  # at the very end alone
        (6, 4, [0.7, 0.5], 0.7),  # of the last three, the fourth and the sixth
    ):
        record = history([tested])
        record.config["recipe"]["test_every"] = every
        record.curves["seconds"] = [[1.0] * epochs]
        record.protocol |= {"generations": 2, "epochs": epochs}
        assert record.best() == best


def test_object_share_of_known_maps():
    masks = np.zeros((3, 8, 8), bool)
    masks[:, :4, :4] = True  # a quarter of the area
    features = np.zeros((3, 4, 4, 2), np.float32)
    features[0] = 1.0  # everywhere alike
    features[1, :2, :2] = 5.0  # on the object only
    features[2, 0, 0], features[2, 3, 3] = 1.0, 3.0  # one part in ten
    np.testing.assert_allclose(metrics.object_share(features, masks), [0.25, 1.0, 0.1], rtol=1e-5)


def test_faint_maps_look_where_strong_ones_look():
    masks, features = np.zeros((1, 4, 4), bool), np.ones((1, 2, 2, 1), np.float32)
    masks[:, :2, :2] = True
    np.testing.assert_allclose(metrics.object_share(1e-4 * features, masks), 0.25, rtol=1e-5)
    np.testing.assert_array_equal(metrics.object_share(0 * features, masks), 0.0)


def test_the_table_says_what_the_records_say():
    plain = history([[0.5, 0.4], [0.6, 0.5], [0.7, 0.6]])
    taught = history([[0.6, 0.6], [0.8, 0.71], [0.7, 0.82]], seconds=2.0)
    table = report.results_table({"plain": plain, "taught": taught}, teacher=0.95)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[2][:2] == ["teacher", "95.0"]
    assert rows[3][:2] == ["plain", "50.0 ± 24.8"] and rows[3][5] == "x 1.00"
    name, accuracy, difference, verdict, closed, time, passes, extra, best = rows[4]
    assert (passes, extra) == ("1 + 0", "0 %")
    assert (name, verdict, closed, time) == ("taught", "better", "47 %", "x 2.00")
    assert accuracy == "71.0 ± 27.3" and difference == "+21.0 ± 2.5" and best.startswith("74.0")
    assert len({len(line) for line in table.splitlines()}) == 1
    assert table._repr_markdown_() == table


def test_what_cannot_be_compared_is_refused():
    records = lambda **changes: {"plain": history([[0.5, 0.4]]), "other": other(**changes)}

    def other(seeds=None, config=(), epochs=2):
        found = history([[0.6, 0.5]])
        found.seeds, found.protocol["epochs"] = seeds or found.seeds, epochs
        found.config |= dict(config)
        return found

    assert "other" in report.results_table(records())
    for changes in ({"seeds": [7]}, {"config": {"student": "ResNet14"}}, {"config": {"data": {}}}):
        with pytest.raises(ValueError, match=r"other is .*, plain .*: make a table of each"):
            report.results_table(records(**changes))
    with pytest.raises(ValueError, match="other has 2 of 80 epochs"):
        report.results_table(records(epochs=80))
    with pytest.raises(ValueError, match="plain has no quality in its record"):
        report.quality_table(records())


def test_a_gap_has_a_teacher_above():
    with pytest.raises(ValueError, match="no gap to close"):
        charts.gap_closed({"plain": history([[0.8]]), "taught": history([[0.9]])}, teacher=0.7)


def test_a_diverged_run_says_so():
    records = {"plain": history([[0.5], [0.6]]), "lost": history([[0.1], [0.6]])}
    records["lost"].curves["train_loss"][0][-1] = float("nan")
    assert str(report.results_table(records)).count("(diverged)") == 1


def test_a_file_that_is_no_record_is_named(tmp_path):
    for text in ("", '{"config": {', "[1]", '{"config": {}}', '{"colour": "blue"}'):
        (tmp_path / "cut.json").write_text(text)
        with pytest.raises(ValueError, match=r"cut.json is damaged or .*\): delete it"):
            History.load(tmp_path / "cut.json")


def test_times_of_other_devices_are_not_compared():
    records = {"plain": history([[0.5], [0.6]]), "slow": history([[0.5], [0.6]], seconds=2.0),
               "elsewhere": history([[0.7], [0.8]], device="cpu, 1 core")}  # fmt: skip
    lines = str(report.results_table(records)).splitlines()[2:]
    times = [line.split("|")[6].strip() for line in lines]
    assert times == ["x 1.00", "x 2.00", ""]
    said = report.protocols(records | {"too": records["elsewhere"]})
    assert said.endswith("cpu, 2 cores; elsewhere, too on cpu, 1 core, so without a time")
    figure = charts.cost(records)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(shown) == ["plain", "slow"]
    plt.close(figure)


def test_records_come_back_from_json(tmp_path):
    records = report.Records(0.9, {"plain": history([[0.5, 0.4]])})
    records.save(tmp_path)
    assert report.Records.load(tmp_path) == records
    assert (tmp_path / "plain.json").exists()


def test_a_sparsely_tested_curve_knows_its_epochs():
    sparse = history([[0.1, 0.2, 0.3, 0.4, 0.5]])
    sparse.config["recipe"]["test_every"], sparse.protocol["epochs"] = 2, 5
    sparse.curves["test_accuracy"] = [[0.2, 0.4, 0.5]]
    assert sparse.points("test_accuracy").tolist() == [2, 4, 5]
    assert sparse.points("train_loss").tolist() == [1, 2, 3, 4, 5] and sparse.epochs == 5


def test_calibration_by_hand():
    """Two classes, confidences 0.9 (right), 0.9 (wrong), 0.6 (right), 0.6 (right)."""
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    found = metrics.calibration(np.log(p), [0, 1, 0, 1], bins=10)
    np.testing.assert_allclose(found.nll, -np.log([0.9, 0.1, 0.6, 0.6]).mean(), rtol=1e-5)
    np.testing.assert_allclose(found.brier, np.mean([0.02, 1.62, 0.32, 0.32]), rtol=1e-5)
    np.testing.assert_allclose(found.ece, 0.5 * 0.4 + 0.5 * 0.4, rtol=1e-5)
    assert found.share[8] == 0.5 and found.accuracy[8] == 0.5 and found.share.sum() == 1
    np.testing.assert_allclose(found.confidence[[5, 8]], [0.6, 0.9], rtol=1e-5)


def test_cka_ignores_rotations_and_scales_and_tells_strangers_apart():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) * np.arange(1, 7)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert metrics.cka(x, 3 * x @ turn + 5) == pytest.approx(1)
    assert metrics.cka(x, rng.normal(size=(200, 4))) < 0.1
    kernel = lambda z: (z - z.mean(0)) @ (z - z.mean(0)).T  # the definition, by Gram matrices
    y = x[:, :2] ** 2
    a, b = kernel(x), kernel(y)
    expected = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    assert metrics.cka(x, y) == pytest.approx(expected)


def test_an_embedding_of_one_value_is_like_nothing():
    x = np.random.default_rng(0).normal(size=(5, 3))
    assert metrics.cka(x, np.ones((5, 2))) == metrics.cka(np.ones((5, 2)), x) == 0


def test_confidences_fall_into_fifteen_bins():
    confidence = (np.arange(15) + 0.5) / 15
    share = lambda p: metrics.calibration(np.log([p, *[(1 - p) / 99] * 99])[None], [0]).share
    np.testing.assert_array_equal([share(p) for p in confidence], np.eye(15))


def test_fidelity_counts_agreement_and_divergence():
    p, q = np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([[0.4, 0.6], [0.1, 0.9]])
    show = lambda z: kdlib.models.Outputs(np.log(z), z, (), ())
    found = metrics.quality(show(p), show(q), [0, 1])
    assert found["agreement"] == 0.5
    np.testing.assert_allclose(found["kl"], (q * np.log(q / p)).sum(-1).mean(), rtol=1e-5)
    assert set(report.QUALITY) == set(found)


def test_the_quality_table_has_a_row_per_method():
    one = history([[0.5, 0.4], [0.6, 0.5]])
    one.final = {key: [0.1, 0.3] for key in report.QUALITY}
    table = report.quality_table({"plain": one})
    assert table.splitlines()[2].split("|")[2].strip() == "20.0"  # ECE in per cent


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
        plots.efficiency({32: records, 64: records}),
        plots.pictures(split.images, ["a", "b", "c"]),
        plots.network_attention({"one": network}, split, stage=2),
        plots.matrix([[1.0, np.nan], [2.0, 3.0]], ["a", "b"], ["long name", "d"], label="x"),
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
    plots.save(plots.comparison({"x": np.array([1.0])}), tmp_path / "new" / "bars.png")
    assert (tmp_path / "new" / "bars.png").stat().st_size > 1000 and not plt.get_fignums()


def test_a_long_name_leaves_room_for_its_row():
    names = ["plain", f"/home/me/{'a' * 60}/{'b' * 60}.py:loss"]
    plots.use_style()
    figure = plots.comparison({name: np.array([0.5, 0.6]) for name in names})
    figure.draw_without_rendering()
    row, label = figure.axes[0], figure.axes[0].get_yticklabels()[1]
    plt.close(figure)
    assert row.get_window_extent().width > 200 and label.get_window_extent().x0 >= 0  # pixels


def test_the_closed_share_varies_as_a_ratio_does():
    """Near a closed gap it varies far less than the gain does: 95 % of intervals hold it."""
    rng = np.random.default_rng(0)
    luck = rng.normal(0.7, 0.01, (4000, 5))
    student = rng.normal(0.8, 0.002, (4000, 5))
    found = [charts.shares(*pair, teacher=0.8) for pair in zip(student, luck, strict=True)]
    means, halves = zip(*map(metrics.interval, found), strict=True)
    assert np.mean(means) == pytest.approx(1.0, abs=0.001)
    covered = np.abs(np.array(means) - 1) < halves
    assert 0.93 < covered.mean() < 0.97 and np.mean(halves) < 0.04
