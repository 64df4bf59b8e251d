"""Measure how far the short pair's best result depends on which of its teachers taught.

    python -m figures.teachers             # hours on two CPU cores; the same again resumes

In the tables one teacher, the first seed's, taught all students. Here each of the others that were
trained for figures/short/demo teaches one too, the student being that of seed 0 again.
"""

import pathlib
from dataclasses import replace

from kdlib import compare, fit, preset, report
from kdlib.history import History

SHORT = pathlib.Path(__file__).resolve().parent / "short"
OUT, RUNS, METHOD = SHORT / "teachers", pathlib.Path("runs/teachers"), "OFD"


def others() -> list[int]:
    """The seeds of the teachers that taught nobody in the tables."""
    return History.load(SHORT / "demo" / compare.TEACHER).seeds[1:]


def record_of(seed: int) -> pathlib.Path:
    """Where the run is kept that this teacher taught."""
    return OUT / report.record_file(METHOD).replace(".json", f"-teacher-{seed}.json")


def main():
    chosen = preset("full")
    chosen = replace(chosen, seeds=1, recipe=replace(chosen.recipe, epochs=4),
                     teacher_recipe=replace(chosen.teacher_recipe, epochs=8))  # fmt: skip
    data = compare.load_data(chosen)
    for seed in others():
        folder = RUNS / str(seed)
        above = fit(chosen.teacher, data, recipe=chosen.teacher_recipe, seeds=[seed],
                    run_dir=folder / "teacher", label="teacher")  # fmt: skip
        record, _ = compare.run_method(METHOD, chosen, data, above.student, folder, record_of(seed))
        print(f"teacher {100 * above.history.last()[0]:.2f}, student {100 * record.last()[0]:.2f}")


if __name__ == "__main__":
    main()
