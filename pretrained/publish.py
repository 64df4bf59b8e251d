"""Publish the networks of a comparison: its teacher, its plain student and its best student.

    python pretrained/publish.py --preset reduced --runs runs/reduced res20_c10 res8_c10 res8_c10_kd
    python pretrained/publish.py --preset full --epochs 4 --teacher_epochs 8 --table short/demo \\
        --runs runs/short res56_c10 res32_c10 res32_c10_kd

Takes what `make reproduce`, or kdlib.compare with these epochs, left: the training states under
--runs, the records in figures/TABLE. The first seed's networks are written, with the accuracies of
all seeds in the manifest. The best student is the one with the highest mean, chosen on the test
set, and the manifest says so.
"""

import argparse
import pathlib
from dataclasses import replace

from kdlib import checkpoint, cli, compare, report, transfer
from kdlib.history import History
from kdlib.names import require
from kdlib.presets import PRESETS, preset
from kdlib.train import fit

CHOSEN = "the method with the highest mean accuracy on the test set, of those in the table"


def publish(name: str, run, data, **more) -> None:
    """Write the first seed's network of a finished run, and its line of the manifest."""
    record: History = run.history
    last = [round(float(value), 4) for value in record.last()]
    facts = {
        "architecture": record.config["student"], "classes": list(data.classes),
        "data": record.config["data"], "recipe": record.config["recipe"],
        "distiller": record.config["distiller"], "device": record.protocol["device"],
        "parameters": record.protocol["parameters"], "versions": record.protocol["versions"],
        "seed": record.seeds[0], "test_accuracy": last[0], "every_seed": last, **more,
    }  # fmt: skip
    print(checkpoint.publish(name, run.student, facts), last)


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--preset", choices=PRESETS, required=True, help="scale of the comparison")
    add("--epochs", type=cli.positive, help="of the students (the preset's)")
    add("--teacher_epochs", type=cli.positive, help="of the teacher (the preset's)")
    add("--table", help="whose records, in figures/ (PRESET/demo)")
    add("--runs", type=pathlib.Path, required=True, help="where its runs are kept")
    add("--teacher", type=pathlib.Path, help="where its teacher's run is kept (RUNS/teacher)")
    add("--data_path", help="folder of prepared TFDS sets")
    add("names", nargs=3, metavar="NAME", help="for teacher, plain student, best student")
    options = parser.parse_args()
    chosen = preset(options.preset)
    of = lambda recipe, epochs: replace(recipe, epochs=epochs or recipe.epochs)
    chosen = replace(chosen, recipe=of(chosen.recipe, options.epochs),
                     teacher_recipe=of(chosen.teacher_recipe, options.teacher_epochs))  # fmt: skip
    records = report.recorded(options.table or f"{options.preset}/demo")
    data = compare.load_data(chosen, options.data_path)
    above = History.load((options.teacher or options.runs / "teacher") / "history.json")
    best = max(records.histories, key=lambda name: records.histories[name].last().mean())

    def finished(student, recipe, seeds, folder, who=None):
        path = folder / "history.json"
        record = History.load(path) if path.exists() else None
        finished = record and record.seeds == list(seeds)
        finished = finished and record.epochs == record.protocol["epochs"]
        require(finished, f"no finished run in {folder}: run the comparison first")
        return fit(student, data, who, recipe, seeds=seeds, run_dir=folder, progress=False,
                   fused=record.protocol["fused"])  # fmt: skip

    teacher = finished(chosen.teacher, chosen.teacher_recipe, above.seeds,
                       options.teacher or options.runs / "teacher")  # fmt: skip
    publish(options.names[0], teacher, data)
    for name, method in zip(options.names[1:], ("plain", best), strict=True):
        seeds = records.histories[method].seeds
        folder = options.runs / report.record_file(method).removesuffix(".json")
        who = transfer.make(method, teacher.student)
        run = finished(chosen.student, chosen.recipe, seeds, folder, who)
        more = {} if method == "plain" else {"teacher": options.names[0], "chosen": CHOSEN}
        publish(name, run, data, method=method, **more)


if __name__ == "__main__":
    cli.run(main)
