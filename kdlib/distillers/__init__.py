"""What is taught: one short file per method, and the table of their names."""

from typing import NamedTuple

from kdlib.distillers import (  # isort: skip
    ab, catkd, cc, crd, dist, dkd, fitnet, fsp, ft, funmatch, logit_mse, lskd, mlkd, nst, ofd, pkt,
    reviewkd, rkd, simkd, sp, srrl, tf_kd_self, vid)  # fmt: skip
from kdlib.distillers.attention import AttentionTransfer, attention_loss, attention_map
from kdlib.distillers.base import Adapter, Custom, Distiller, Sum, own
from kdlib.distillers.soft_logits import SoftLogits, soft_logit_loss
from kdlib.names import read


class Method(NamedTuple):
    """A line of a table of methods."""

    cls: type
    where: str  # the knowledge sits: "output" or "features"
    what: str  # activation, process (between layers), relation (of pictures), parameters, mixed
    year: int
    arxiv: str = ""


# The one table of distillers: command line, notebooks, README and tests all read it.
METHODS: dict[str, Method] = {
    "SoftLogits": Method(SoftLogits, "output", "activation", 2015, "1503.02531"),
    "LogitMSE": Method(logit_mse.LogitMSE, "output", "activation", 2014, "1312.6184"),
    "LSKD": Method(lskd.LSKD, "output", "activation", 2024, "2403.01427"),
    "DKD": Method(dkd.DKD, "output", "activation", 2022, "2203.08679"),
    "TfKDSelf": Method(tf_kd_self.TfKDSelf, "output", "activation", 2020, "1909.11723"),
    "FunMatch": Method(funmatch.FunMatch, "output", "activation", 2022, "2106.05237"),
    "DIST": Method(dist.DIST, "output", "relation", 2022, "2205.10536"),
    "MLKD": Method(mlkd.MLKD, "output", "mixed", 2023),
    "FitNet": Method(fitnet.FitNet, "features", "activation", 2015, "1412.6550"),
    "AT": Method(AttentionTransfer, "features", "activation", 2017, "1612.03928"),
    "NST": Method(nst.NST, "features", "activation", 2017, "1707.01219"),
    "FT": Method(ft.FT, "features", "activation", 2018, "1802.04977"),
    "AB": Method(ab.AB, "features", "activation", 2019, "1811.03233"),
    "OFD": Method(ofd.OFD, "features", "activation", 2019, "1904.01866"),
    "VID": Method(vid.VID, "features", "activation", 2019, "1904.05835"),
    "ReviewKD": Method(reviewkd.ReviewKD, "features", "activation", 2021, "2104.09044"),
    "CATKD": Method(catkd.CATKD, "features", "activation", 2023, "2304.12777"),
    "FSP": Method(fsp.FSP, "features", "process", 2017),
    "SP": Method(sp.SP, "features", "relation", 2019, "1907.09682"),
    "CC": Method(cc.CC, "features", "relation", 2019, "1904.01802"),
    "RKD": Method(rkd.RKD, "features", "relation", 2019, "1904.05068"),
    "PKT": Method(pkt.PKT, "features", "relation", 2018, "1803.10837"),
    "CRD": Method(crd.CRD, "features", "relation", 2020, "1910.10699"),
    "SRRL": Method(srrl.SRRL, "features", "parameters", 2021),
    "SimKD": Method(simkd.SimKD, "features", "parameters", 2022, "2203.14001")}  # fmt: skip
DISTILLERS = {n: m.cls for n, m in METHODS.items()} | {"AttentionTransfer": AttentionTransfer}
globals().update({cls.__name__: cls for cls in DISTILLERS.values()})  # kdlib.distillers.CRD, ...


def make(spec: str) -> Distiller:
    """A distiller from text: a name, settings in brackets, and plus signs.

    ``"SoftLogits"``, ``"AT(beta=500, warmup=0.1)"``, ``"SoftLogits(temperature=2) + AT"``, and
    ``"module:Name"`` or ``"file.py:Name"`` for one's own. Every method also takes ``warmup`` and
    ``pretrain``, shares of the run. Raises what :func:`kdlib.names.read` does.
    """
    return read(spec, "distiller", DISTILLERS, own)
