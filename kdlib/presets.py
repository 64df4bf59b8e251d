"""How large a notebook's runs are: seconds in tests, minutes on a laptop, or the real thing."""

import os
from dataclasses import dataclass, replace

from kdlib.names import require, unknown
from kdlib.program import Recipe


@dataclass(frozen=True)
class Preset:
    """One scale of the same story. Notebooks and ``kdlib.compare`` read their sizes from it.

    Attributes:
        name: ``smoke``, ``workshop``, ``reduced`` or ``full``.
        data: name of the data set; ``subset`` labelled pictures of it train the students.
        test: number of test pictures, None for all.
        teacher: architecture; ``pretrained`` the checkpoint that holds it, None to train one.
        student: architecture of the student.
        teacher_recipe, recipe: how the two are trained.
        beta: weight of attention transfer; what suits it depends on the length of training.
        seeds: runs per method.
    """

    name: str
    data: str
    subset: int | None
    test: int | None
    teacher: str
    pretrained: str | None
    student: str
    teacher_recipe: Recipe
    recipe: Recipe
    beta: float
    seeds: int

    def table(self, name: str) -> tuple[str, ...]:
        """The methods of one of ``TABLES``; attention transfer with this preset's weight."""
        return tuple(method.replace("BETA", f"{self.beta:g}") for method in TABLES[name])


# What ``kdlib.compare --table`` runs: text that ``kdlib.transfer.make`` reads.
TABLES = {"demo": ("plain", "SoftLogits", "AT(beta=BETA)", "SoftLogits + AT(beta=BETA)"),
    "baselines": ("plain", "Longer"),  # what the compute of a teacher buys without one
    "offline": ("plain", "Longer", "SoftLogits", "LSKD", "LogitMSE", "DKD", "DIST", "MLKD",
                "FunMatch", "AT", "AT(beta=BETA)", "FitNet", "FSP", "NST", "VID", "AB", "FT", "OFD",
                "ReviewKD", "CATKD", "SRRL", "SimKD", "SP", "CC", "RKD", "PKT", "CRD"),
    "online": ("plain", "Longer", "Online(distiller=SoftLogits)", "DML", "DML(order='sequential')",
               "ONE", "KDCL", "KDCL(target='linear')"),
    "self": ("plain", "Longer", "LabelSmoothing", "Mixup", "CutMix", "EMA", "BornAgain",
             "BornAgain(ensemble=True)", "BYOT", "BYOT(alpha=0, beta=0)", "CSKD", "PSKD", "TfKD",
             "TfKD(virtual_teacher='paper')", "TfKDSelf", "DDGSD", "EMATeacher")}  # fmt: skip

SMOKE = Preset(name="smoke", data="shapes", subset=128, test=100, teacher="ResNet14x0.25",
    pretrained=None, student="ResNet8x0.25", teacher_recipe=Recipe(epochs=1, batch_size=32),
    recipe=Recipe(epochs=2, batch_size=32), beta=100.0, seeds=2)  # fmt: skip
# Few labels, so that there is something to gain. The rate drops later than in the original's
# recipe, and blocks don't start as the identity: in so short a run both cost a plain student
# accuracy (notebook 01 shows it), and a weak baseline would flatter every method. Testing takes
# longer than training here, so it is done every few epochs.
SHORT = Recipe(epochs=80, batch_size=32, decay_points=(0.6, 0.85), zero_init=False, test_every=8)
WORKSHOP = Preset(name="workshop", data="shapes", subset=256, test=1000, teacher="ResNet20x0.5",
    pretrained="shapes_res20x0.5", student="ResNet8x0.5", recipe=SHORT, beta=100.0, seeds=3,
    teacher_recipe=replace(SHORT, epochs=9, batch_size=64, test_every=1))  # fmt: skip
FULL = Preset(
    name="full", data="cifar10", subset=None, test=None, teacher="ResNet56", pretrained="res56_c10",
    student="ResNet32", teacher_recipe=Recipe(), recipe=Recipe(), beta=1000.0, seeds=3)  # fmt: skip

# ``full`` where there is no GPU: the same recipe with fewer layers, labels and epochs.
REDUCED = replace(FULL, name="reduced", subset=20_000, teacher="ResNet20", pretrained="res20_c10",
    student="ResNet8", teacher_recipe=Recipe(epochs=20), recipe=Recipe(epochs=10))  # fmt: skip

PRESETS = {p.name: p for p in (SMOKE, WORKSHOP, REDUCED, FULL)}


def preset(name: str | None = None) -> Preset:
    """A preset by name or by the variable ``KDLIB_PRESET``.

    Without either it is ``workshop``, on a GPU too: the others are hours, and are asked for.

    Raises:
        ValueError: no such preset.
    """
    chosen = name or os.environ.get("KDLIB_PRESET") or "workshop"
    require(chosen in PRESETS, unknown("preset", chosen, PRESETS))
    return PRESETS[chosen]
