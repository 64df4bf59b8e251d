"""Measure how far the embedded set's results depend on which 256 pictures have labels.

    python -m figures.draws                # an hour and a half on a CPU core
    python -m figures.draws plain OFD      # these methods only, on one core; the same again resumes

The tables draw the labelled pictures once, and their seeds vary weights, order and crops. Here
every seed has a draw of its own, so that an interval is also one over pictures.
"""

import pathlib
import sys
from dataclasses import replace

import kdlib
from kdlib import compare, preset, report, transfer
from kdlib.history import History

OUT, RUNS = pathlib.Path(__file__).resolve().parent / "draws", pathlib.Path("runs/draws")
METHODS = ("plain", "Longer", "SoftLogits", "AT(beta=100)", "OFD", "ReviewKD", "FitNet", "CATKD",
           "NST", "SimKD", "DKD", "FSP", "LogitMSE", "CSKD")  # fmt: skip
DRAWS = 10


def joined(records: list[History]) -> History:
    """Runs of one seed each, on draws of their own, as the record of one run with a seed each."""
    first = records[0]
    curves = {name: [r.curves[name][0] for r in records] for name in first.curves}
    config = {k: v for k, v in first.config.items() if k not in ("labels", "picture_mean")}
    seeds = [record.seeds[0] for record in records]
    found = History(config | {"seeds": seeds}, dict(first.protocol), seeds, curves)
    found.protocol["reported"] = "each on a draw of its own, last epoch"
    for record in records:
        found.ran(device=record.protocol["device"], code=record.protocol["code"])
    return found


def main(methods):
    chosen = preset("workshop")
    everything = kdlib.load(chosen.data)
    test = everything.test.take(slice(chosen.test))
    recipe = replace(chosen.recipe, test_every=chosen.recipe.epochs)  # only the last is reported
    teacher = compare.load_teacher(chosen, replace(everything, test=test))
    for method in methods:
        records = []
        for draw in range(DRAWS):
            data = replace(everything.subset(chosen.subset, draw), test=test)
            folder = RUNS / report.record_file(method).removesuffix(".json") / str(draw)
            who = transfer.make(method, teacher)
            run = kdlib.fit(chosen.student, data, who, recipe, seeds=[draw], run_dir=folder,
                            label=f"{method}, draw {draw}", progress=False)  # fmt: skip
            records.append(run.history)
        found = joined(records)
        found.save(OUT / report.record_file(method))
        print(method, *(f"{100 * value:.1f}" for value in found.last()), flush=True)
    known = [m for m in METHODS if (OUT / report.record_file(m)).exists()]
    histories = {m: History.load(OUT / report.record_file(m)) for m in known}
    accuracy = kdlib.evaluate(teacher, test)["accuracy"]
    report.Records(accuracy, histories).save(OUT)


if __name__ == "__main__":
    main(sys.argv[1:] or METHODS)
