"""Who teaches: one short file per transfer, and the tables of their names."""

import re

from kdlib import distillers
from kdlib.distillers import DISTILLERS
from kdlib.names import read, require, unknown
from kdlib.transfer.born_again import BornAgain, Ensemble
from kdlib.transfer.byot import BYOT
from kdlib.transfer.cs_kd import CSKD
from kdlib.transfer.ddgsd import DDGSD
from kdlib.transfer.dml import DML
from kdlib.transfer.ema import EMATeacher
from kdlib.transfer.kdcl import KDCL, collaborative_target
from kdlib.transfer.offline import Offline
from kdlib.transfer.one import ONE
from kdlib.transfer.online import Online
from kdlib.transfer.ps_kd import PSKD
from kdlib.transfer.supervised import Loss, Setup, Supervised, cross_entropy
from kdlib.transfer.tf_kd import TfKD, virtual_teacher

# Methods that say for themselves who teaches whom. Distillers are taught by any of FAMILIES.
TRANSFERS: dict[str, type[Supervised]] = {cls.__name__: cls for cls in (Supervised, Online, DML,
    ONE, KDCL, BornAgain, BYOT, CSKD, PSKD, TfKD, DDGSD, EMATeacher)}  # fmt: skip
# What --transfer takes, and what each does with an ordinary distiller.
FAMILIES = ("Supervised", "Offline", "Online", "SelfDistillation")
NICKNAMES = {"plain": "Supervised", "LabelSmoothing": "Supervised(smoothing=0.1)",
    "Mixup": "Supervised(mixup=1.0)", "CutMix": "Supervised(cutmix=1.0)",
    "EMA": "Supervised(average=0.99)", "Longer": "Supervised(longer=2.0)",
    "TfKDSelf": "BornAgain(distiller=TfKDSelf())"}  # fmt: skip


def make(spec: str, teacher=None, *, family: str | None = None, teacher_arch: str | None = None):
    """A transfer from text: a distiller (``"AT + SoftLogits"``) or a method of another family.

    Args:
        spec: ``"AT(beta=500)"``, ``"DML(order='sequential')"``, ``"LabelSmoothing"``, ….
        teacher: the trained network that an offline distiller needs.
        family: ``"Offline"``, ``"Online"``, ``"SelfDistillation"`` or ``"Supervised"``; None takes
            the method's own, offline for a distiller. Distillers are taught by a frozen teacher,
            by one trained at the same time (``teacher_arch``), or by the average of the student's
            own past; some need the first, and the last needs half a weight for the labels.

    Raises:
        ValueError: no such method or family, or the two don't go together; settings of a nickname
            (``"EMA(average=0.9)"``), or a ``teacher_arch`` for a method that names its networks.
    """
    require(family in (None, *FAMILIES), unknown("transfer", str(family), FAMILIES))
    head = re.match(r"\s*(\w*)", spec)[1] if ":" not in spec.partition("(")[0] else ""
    if head in NICKNAMES and not (head in DISTILLERS and family in ("Offline", "Online")):
        long = NICKNAMES[head]
        require(spec.strip() == head, f"'{head}' is short for {long}: write that, with your values")
        spec, head = long, long.partition("(")[0]
    if head in TRANSFERS:
        made = read(spec, "method", TRANSFERS | DISTILLERS, distillers.own)
        require(family in (None, made.family), f"'{head}' is a method of the transfer "
                f"{made.family}, not of {family}: give --transfer {made.family}")  # fmt: skip
        require(not teacher_arch or made.family != "Online", f"'{head}' names its own networks: "
                f"write them there, like DML(peers=('{teacher_arch}',))")  # fmt: skip
        return made
    known = [*DISTILLERS, *TRANSFERS, *NICKNAMES]
    require(head in DISTILLERS or ":" in spec, unknown("method", head or spec, known))
    hint = f"'{spec}' needs a teacher: give --transfer Offline, Online or SelfDistillation"
    require(family != "Supervised", hint)
    distiller = distillers.make(spec)
    if family == "Online":
        return Online(distiller, teacher_arch)
    if family == "SelfDistillation":
        require(distiller.ce_weight >= 0.5, f"'{spec}' leaves the labels too little for a network "
                "that teaches itself: try 'SoftLogits(alpha=0.5, warmup=0.3)'")  # fmt: skip
        return EMATeacher(distiller=distiller)
    return Offline(teacher, distiller)
