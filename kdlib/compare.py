"""Run several methods under one recipe and print the table that compares them.

    python -m kdlib.compare                                   # the demo: four methods, three seeds
    python -m kdlib.compare --methods plain "AT(beta=300)" --seeds 5 --out runs/mine

Every method leaves its record in ``--out``; the same command resumes where it stopped.
"""

import argparse
import pathlib
import re
from dataclasses import replace

import kdlib
from kdlib import checkpoint, cli, distillers, plots, report
from kdlib.data import Dataset
from kdlib.history import write_text
from kdlib.presets import PRESETS, Preset, preset
from kdlib.train import Run, evaluate, fit
from kdlib.transfer import Offline, Supervised


def load_data(chosen: Preset, data_dir: str | None = None) -> Dataset:
    """The data of a preset: its subset of labelled pictures to train students on, its test set."""
    data = kdlib.load(chosen.data, subset=chosen.subset, data_dir=data_dir)
    return replace(data, test=data.test.take(slice(chosen.test))) if chosen.test else data


def load_teacher(chosen: Preset, data: Dataset, run_dir=None, progress: bool = True):
    """The teacher of a preset: its pretrained checkpoint, or one trained here if it has none."""
    if chosen.pretrained:
        path = checkpoint.PRETRAINED / chosen.pretrained
        return checkpoint.load_network(path, chosen.teacher, data.num_classes)[0]
    recipe = chosen.teacher_recipe
    return fit(
        chosen.teacher, data, recipe=recipe, run_dir=run_dir, progress=progress, label="teacher"
    ).student


def run_methods(
    methods, chosen: Preset, data: Dataset, teacher, out: pathlib.Path, seeds: int
) -> dict[str, Run]:
    """Train every method with the same seeds. ``plain`` is cross-entropy alone."""
    runs = {}
    for method in methods:
        transfer = Supervised()
        if method != "plain":
            transfer = Offline(teacher, distillers.make(method))
        folder = re.sub(r"[^\w.=]+", "-", method).strip("-")
        runs[method] = fit(
            chosen.student, data, transfer, chosen.recipe, seeds=seeds, run_dir=out / folder,
            label=method,
        )  # fmt: skip
    return runs


def write_report(runs: dict[str, Run], data: Dataset, teacher, out: pathlib.Path) -> str:
    """The table of finished runs. It, the figures and the records behind them go to ``out``."""
    plots.use_style()
    accuracy = evaluate(teacher, data.test)["accuracy"]
    records = report.Records(accuracy, {name: run.history for name, run in runs.items()})
    records.save(out / "records.json")
    plots.save(plots.curves(records.histories, teacher=accuracy), out / "curves.png")
    last = {name: history.last() for name, history in records.histories.items()}
    plots.save(plots.comparison(last, teacher=accuracy), out / "comparison.png")
    if data.test.masks is not None:
        networks = {"teacher": teacher} | {name: run.student for name, run in runs.items()}
        shown = data.test.take(slice(8))
        plots.save(plots.network_attention(networks, shown), out / "attention.png")
    first = next(iter(records.histories.values()))
    table = report.results_table(records.histories, teacher=accuracy)
    text = f"{table}\n\n{report.protocol(first)}"
    write_text(out / "table.md", text)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="python -m kdlib.compare", description=__doc__,
                        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="'plain' and distillers, e.g. 'SoftLogits(alpha=0.5) + AT'",
    )
    parser.add_argument("--preset", choices=PRESETS, help="scale of the runs")
    parser.add_argument("--seeds", type=cli.positive, help="runs per method")
    parser.add_argument("--epochs", type=cli.positive, help="epochs of every student")
    parser.add_argument("--data_path", help="folder of prepared TFDS sets")
    parser.add_argument("--out", default="runs/demo", type=pathlib.Path, help="where runs are kept")
    parser.add_argument(
        "--figures", type=pathlib.Path, help="for table and figures (--out/figures)"
    )
    return parser


def main(arguments=None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    chosen = preset(options.preset)
    if options.epochs:
        chosen = replace(chosen, recipe=replace(chosen.recipe, epochs=options.epochs))
    methods = options.methods or chosen.methods
    for method in methods:
        if method != "plain":
            distillers.make(method)  # a wrong name ends here, before anything is trained
    data = load_data(chosen, options.data_path)
    teacher = load_teacher(chosen, data, options.out / "teacher")
    runs = run_methods(methods, chosen, data, teacher, options.out, options.seeds or chosen.seeds)
    figures = options.figures or options.out / "figures"
    print(f"\n{write_report(runs, data, teacher, figures)}\n")
    print(f"figures and records: {figures}/")


if __name__ == "__main__":
    cli.run(main)
