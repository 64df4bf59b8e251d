"""Measure what blocks that start as the identity cost a short run on CIFAR-10 at reduced scale.

    python -m figures.start        # an hour on a CPU core; figures/reduced/start is replaced

Trains methods of the reduced table again, with `zero_init=False` and nothing else changed. The
same command again resumes.
"""

import pathlib
import sys
from dataclasses import replace

from kdlib import compare, evaluate, preset, report

OUT = pathlib.Path(__file__).resolve().parent / "reduced" / "start"
RUNS, METHODS = pathlib.Path("runs/start"), ("plain", "SoftLogits")


def main(methods):
    chosen = preset("reduced")
    chosen = replace(chosen, recipe=replace(chosen.recipe, zero_init=False))
    data = compare.load_data(chosen)
    teacher = compare.load_teacher(chosen, data)
    records = report.Records(evaluate(teacher, data.test)["accuracy"], {})
    for method in methods:
        file = OUT / report.record_file(method)
        found, _ = compare.run_method(method, chosen, data, teacher, RUNS, file)
        records.histories[method] = found
        records.save(OUT)
        print(method, *(f"{100 * value:.1f}" for value in found.last()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or METHODS)
