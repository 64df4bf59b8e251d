"""Run several methods under one recipe and print the table that compares them.

    python -m kdlib.compare                                   # the demo: four methods, three seeds
    python -m kdlib.compare --table offline --seeds 5         # or online, or self, or several
    python -m kdlib.compare --methods plain "AT(beta=300)" mine.py:my_loss --out runs/mine

Every method leaves one JSON record in --figures; the same command resumes where it stopped. With
--time_budget it stops by itself after so many minutes, between two epochs, with exit status 75.
"""

import argparse
import pathlib
import time
from dataclasses import replace

import kdlib
from kdlib import checkpoint, cli, files, metrics, plots, report, transfer
from kdlib.data import Dataset
from kdlib.history import History
from kdlib.names import require
from kdlib.presets import PRESETS, TABLES, Preset, preset
from kdlib.train import configuration, evaluate, fit, predict

TEACHER = "teacher.json"  # beside the methods' records, where the teacher was trained


class TimeUp(Exception):
    """The next epoch would end after the time that was given."""


def deadline(minutes: float | None):
    """What :func:`kdlib.fit` calls after an epoch, to raise :class:`TimeUp` in time.

    The next epoch is expected to take as long as the last one, but for a run's first here, which
    also loads and compiles. After the last epoch of the last seed the record is still to be
    written.
    """
    started, last, before = time.monotonic(), 0.0, None

    def on_epoch(record, epoch, seeds, networks):
        nonlocal last, before
        now = time.monotonic()
        ends = now - started + (now - last if record is before else 0.0)
        last, before = now, record
        done = record.protocol["epochs"], record.seeds[-1]
        if minutes and (epoch, seeds[-1]) != done and ends > 60 * minutes:
            raise TimeUp(f"epoch {epoch} of {record.protocol['epochs']}")

    return on_epoch


def load_data(chosen: Preset, data_dir: str | None = None, labels: int | None = None) -> Dataset:
    """The data of a preset: its subset of labelled pictures to train students on (all, where there
    are no more), its test set.

    ``labels`` is another number of labelled pictures: how a method does with more or fewer.
    """
    data = kdlib.load(chosen.data, subset=labels, data_dir=data_dir)
    few = chosen.subset and not labels and chosen.subset < len(data.train)  # else all of them
    data = data.subset(chosen.subset, 0) if few else data
    return replace(data, test=data.test.take(slice(chosen.test))) if chosen.test else data


def load_teacher(chosen: Preset, data: Dataset, run_dir=None, seeds=1, on_epoch=None, devices=None):
    """The teacher of a preset: its pretrained checkpoint, or one trained here if it has none.

    Raises ValueError for a checkpoint that had fewer epochs than the preset asks of a teacher.

    Of several ``seeds`` the first one teaches; ``run_dir/history.json`` is the record of all.
    """
    if chosen.pretrained:
        path = checkpoint.PRETRAINED / chosen.pretrained
        network, facts = cli.load_network(path, chosen.teacher, chosen.recipe, data)
        asked = chosen.teacher_recipe.epochs
        trained = facts.get("recipe", {}).get("epochs", asked)  # others' files don't say
        require(trained >= asked, f"{path} was trained for {trained} of {asked} epochs: make a "
                f"teacher with train.py --arch {chosen.teacher} --publish {path.name} or "
                "kdlib.compare --train_teacher DIR, or choose the preset workshop")  # fmt: skip
        return network
    return fit(chosen.teacher, data, recipe=chosen.teacher_recipe, seeds=seeds, run_dir=run_dir,
               label="teacher", devices=devices, on_epoch=on_epoch).student  # fmt: skip


def run_method(method: str, chosen: Preset, data: Dataset, teacher, out: pathlib.Path, record,
               on_epoch=None, devices=None):  # fmt: skip
    """Train one method, or take its record where the same run has left one, and say so.

    ``record`` is the record's file, or None to train in any case; ``on_epoch`` and ``devices`` as
    in ``fit``. The same run had the same settings, pictures, teacher and, for the fidelity in its
    record, the same ``teacher`` to be compared with.

    Returns:
        The record, with the quality of its networks on the test set, and the run if there was one.
    """
    who, seeds, judge = transfer.make(method, teacher), chosen.seeds, checkpoint.digest(teacher)
    if record and record.exists():
        old = History.load(record)
        now = configuration(chosen.student, data, who, chosen.recipe, seeds)
        # Of pictures the first records have the means alone.
        if ({"pictures": now["pictures"], **old.config}, old.protocol.get("judge")) == (now, judge):
            print(f"{method}: recorded in {record}")
            return old, None
    folder = out / report.record_file(method).removesuffix(".json")
    run = fit(chosen.student, data, who, chosen.recipe, seeds=seeds, run_dir=folder, label=method,
              devices=devices, on_epoch=on_epoch)  # fmt: skip
    images, labels = data.test.images, data.test.labels
    shown = predict(teacher, images, maps=False)
    each = [metrics.quality(predict(n, images, maps=False), shown, labels) for n in run.students]
    run.history.final = {name: [values[name] for values in each] for name in each[0]}
    run.history.protocol["judge"] = judge
    if record:
        run.history.save(record)
    return run.history, run


def tables(records: report.Records, out: pathlib.Path) -> str:
    """The tables of finished runs and how they were measured, also written to ``out/table.md``."""
    teacher, histories = records
    parts = [report.results_table(histories, teacher=teacher), report.quality_table(histories),
             report.protocols(histories)]  # fmt: skip
    if (out / TEACHER).exists():
        above = History.load(out / TEACHER)
        parts += [f"teacher: {metrics.interval(above.last())} %; {report.protocol(above)}"]
    files.write_text(out / "table.md", "\n\n".join(parts))
    return "\n\n".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="python -m kdlib.compare", description=__doc__,
                        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--table", choices=TABLES, nargs="+", default=["demo"], help="which methods (demo)")
    add("--methods", nargs="+", help="these instead: plain, a method, file.py:Name")
    add("--preset", choices=PRESETS, help="scale of the runs")
    add("--seeds", type=cli.positive, help="runs per method")
    add("--epochs", type=cli.positive, help="epochs of every student")
    add("--train_teacher", type=files.expand, metavar="DIR", help="train it there, all seeds")
    add("--teacher_epochs", type=cli.positive, help="train a teacher, for so many epochs")
    add("--time_budget", type=cli.above_zero, metavar="MINUTES", help="stop in time, to be resumed")
    add("--dataset", help="instead of the preset's: TFDS name, shapes, or a folder")
    add("--devices", type=cli.positive, help="how many share the work, as in train.py")
    add("--bf16", action="store_true", help="compute in bfloat16; weights stay float32")
    add("--labels", type=cli.positive, nargs="+", help="labelled pictures; several give a curve")
    add("--data_path", help="folder of prepared TFDS sets")
    add("--out", type=files.expand, help="where runs are kept (runs/TABLE)")
    add("--figures", help="for tables, figures, records; may contain {table} (OUT/figures)")
    return parser


def run_table(options, chosen: Preset, table, labels, out: pathlib.Path, figures, on_epoch=None):
    """Train the methods of a table on so many labels and write its report.

    Returns:
        The records by method, and the report's text.
    """
    data, part = load_data(chosen, options.data_path, labels), f"labels-{labels}" if labels else ""
    out, figures = out / part, figures / part
    above = options.train_teacher / part if options.train_teacher else out / "teacher"
    seeds = chosen.seeds if options.train_teacher else 1
    teacher = load_teacher(chosen, data, above, seeds, on_epoch, options.devices)
    histories, runs, demo = {}, {}, table == "demo" and data.test.masks is not None
    records = report.Records(evaluate(teacher, data.test)["accuracy"], histories)
    (figures / TEACHER).unlink(missing_ok=True)  # of another teacher, of an earlier run
    if not chosen.pretrained:
        History.load(above / "history.json").save(figures / TEACHER)
    for method in options.methods or chosen.table(table):
        # The demo shows where its networks look, so it needs them, not only their records.
        record = None if demo else figures / report.record_file(method)
        histories[method], run = run_method(
            method, chosen, data, teacher, out, record, on_epoch, options.devices)  # fmt: skip
        runs |= {method: run} if demo else {}
        records.save(figures)  # all so far, since time may be up before the last
    if demo:
        networks = {"teacher": teacher} | {name: run.student for name, run in runs.items()}
        maps = plots.network_attention(networks, data.test.take(slice(8)))
        plots.save(maps, figures / "attention.png")
    if len(histories) <= len(plots.COLOURS):
        plots.save(plots.curves(histories, teacher=records.teacher), figures / "curves.png")
    last = {name: history.last() for name, history in histories.items()}
    plots.save(plots.comparison(last, teacher=records.teacher), figures / "comparison.png")
    return histories, tables(records, figures)


def choose(options) -> Preset:
    """The preset, with what the flags change of it."""
    chosen = preset(options.preset)
    of = lambda r, epochs: replace(r, epochs=epochs or r.epochs, bfloat16=options.bf16)
    data, anew = options.dataset or chosen.data, options.train_teacher or options.teacher_epochs
    kept = data.lower().replace("-", "") == chosen.data and not anew
    return replace(chosen, recipe=of(chosen.recipe, options.epochs), data=data,
                   teacher_recipe=of(chosen.teacher_recipe, options.teacher_epochs),
                   seeds=options.seeds or chosen.seeds,
                   pretrained=chosen.pretrained if kept else None)  # fmt: skip


def main(arguments=None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    on_epoch = deadline(options.time_budget)
    plots.use_style()
    chosen = choose(options)
    for method in options.methods or [m for table in options.table for m in chosen.table(table)]:
        transfer.make(method)  # a wrong name ends here, before anything is trained
    fewest, batch = min(options.labels or [10**9]), chosen.recipe.batch_size
    require(fewest >= batch, f"--labels {fewest}: give {batch}, the size of a batch, or more")
    out = options.out or pathlib.Path("runs") / "-".join(options.table)
    figures = str(files.expand(options.figures or out / "figures"))
    figures += "/{table}" * (len(options.table) > 1 and "{table}" not in figures)
    for table in options.table:
        done, above = {}, pathlib.Path(figures.replace("{table}", table))
        for labels in sorted(options.labels or [None], reverse=True):  # too many are refused first
            try:  # tables share their runs: a method that is in two of them is trained once
                done[labels], text = run_table(options, chosen, table, labels, out, above, on_epoch)
            except TimeUp as reached:
                print(f"stopped in time after {reached}; the same command goes on there")
                raise SystemExit(75) from None
            print(f"\n{text}\n")
        if len(done) > 1:
            plots.save(plots.efficiency(done), above / "efficiency.png")
        print(f"figures and records: {above}")


if __name__ == "__main__":
    cli.run(main)
