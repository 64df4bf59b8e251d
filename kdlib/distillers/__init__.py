"""What is taught: one short file per method, and the table of their names."""

from typing import NamedTuple

from kdlib.distillers.ab import AB
from kdlib.distillers.attention import AttentionTransfer, attention_loss, attention_map
from kdlib.distillers.base import Adapter, Custom, Distiller, Sum, own
from kdlib.distillers.catkd import CATKD
from kdlib.distillers.cc import CC
from kdlib.distillers.crd import CRD
from kdlib.distillers.dist import DIST
from kdlib.distillers.dkd import DKD
from kdlib.distillers.fitnet import FitNet
from kdlib.distillers.fsp import FSP
from kdlib.distillers.ft import FT
from kdlib.distillers.funmatch import FunMatch
from kdlib.distillers.logit_mse import LogitMSE
from kdlib.distillers.lskd import LSKD
from kdlib.distillers.mlkd import MLKD
from kdlib.distillers.nst import NST
from kdlib.distillers.ofd import OFD
from kdlib.distillers.pkt import PKT
from kdlib.distillers.reviewkd import ReviewKD
from kdlib.distillers.rkd import RKD
from kdlib.distillers.simkd import SimKD
from kdlib.distillers.soft_logits import SoftLogits, soft_logit_loss
from kdlib.distillers.sp import SP
from kdlib.distillers.srrl import SRRL
from kdlib.distillers.tf_kd_self import TfKDSelf
from kdlib.distillers.vid import VID
from kdlib.names import read

__all__ = [
    "DISTILLERS", "Adapter", "AttentionTransfer", "Custom", "Distiller", "Method", "SoftLogits",
    "Sum", "attention_loss", "attention_map", "make", "own", "soft_logit_loss",
]  # fmt: skip


class Method(NamedTuple):
    """A line of a table of methods.

    ``cls`` makes it; ``where`` the knowledge sits, ``"output"`` or ``"features"``; ``what`` it is:
    ``"activation"``, ``"process"`` (between two layers), ``"relation"`` (between pictures),
    ``"parameters"`` (the teacher's classifier) or ``"mixed"``; then year and arXiv number.
    """

    cls: type
    where: str
    what: str
    year: int
    arxiv: str = ""


# The one table of distillers: command line, notebooks, README and tests all read it.
METHODS: dict[str, Method] = {
    "SoftLogits": Method(SoftLogits, "output", "activation", 2015, "1503.02531"),
    "LogitMSE": Method(LogitMSE, "output", "activation", 2014, "1312.6184"),
    "LSKD": Method(LSKD, "output", "activation", 2024, "2403.01427"),
    "DKD": Method(DKD, "output", "activation", 2022, "2203.08679"),
    "TfKDSelf": Method(TfKDSelf, "output", "activation", 2020, "1909.11723"),
    "FunMatch": Method(FunMatch, "output", "activation", 2022, "2106.05237"),
    "DIST": Method(DIST, "output", "relation", 2022, "2205.10536"),
    "MLKD": Method(MLKD, "output", "mixed", 2023),
    "FitNet": Method(FitNet, "features", "activation", 2015, "1412.6550"),
    "AT": Method(AttentionTransfer, "features", "activation", 2017, "1612.03928"),
    "NST": Method(NST, "features", "activation", 2017, "1707.01219"),
    "FT": Method(FT, "features", "activation", 2018, "1802.04977"),
    "AB": Method(AB, "features", "activation", 2019, "1811.03233"),
    "OFD": Method(OFD, "features", "activation", 2019, "1904.01866"),
    "VID": Method(VID, "features", "activation", 2019, "1904.05835"),
    "ReviewKD": Method(ReviewKD, "features", "activation", 2021, "2104.09044"),
    "CATKD": Method(CATKD, "features", "activation", 2023),
    "FSP": Method(FSP, "features", "process", 2017),
    "SP": Method(SP, "features", "relation", 2019, "1907.09682"),
    "CC": Method(CC, "features", "relation", 2019, "1904.01802"),
    "RKD": Method(RKD, "features", "relation", 2019, "1904.05068"),
    "PKT": Method(PKT, "features", "relation", 2018, "1803.10837"),
    "CRD": Method(CRD, "features", "relation", 2020, "1910.10699"),
    "SRRL": Method(SRRL, "features", "parameters", 2021),
    "SimKD": Method(SimKD, "features", "parameters", 2022, "2203.14001"),
}
DISTILLERS: dict[str, type[Distiller]] = {name: method.cls for name, method in METHODS.items()}
DISTILLERS["AttentionTransfer"] = AttentionTransfer


def make(spec: str) -> Distiller:
    """A distiller from text: a name, settings in brackets, and plus signs.

    ``"SoftLogits"``, ``"AT(beta=500, warmup=0.1)"``, ``"SoftLogits(temperature=2) + AT"``, and
    ``"module:Name"`` or ``"file.py:Name"`` for one's own. Every method also takes ``warmup`` and
    ``pretrain``, shares of the run.

    Raises:
        ValueError: the text is no such expression, or a name, setting or value is wrong; the
            message says which.
        FileNotFoundError: a file or module that is not there.
    """
    return read(spec, "distiller", DISTILLERS, own)
