"""What is taught: one short file per method, and the table of their names."""

from kdlib.distillers.attention import AttentionTransfer, attention_loss, attention_map
from kdlib.distillers.base import Adapter, Custom, Distiller, Sum, own
from kdlib.distillers.soft_logits import SoftLogits, soft_logit_loss
from kdlib.names import read

__all__ = [
    "DISTILLERS", "Adapter", "AttentionTransfer", "Custom", "Distiller", "SoftLogits", "Sum",
    "attention_loss", "attention_map", "make", "own", "soft_logit_loss",
]  # fmt: skip

# The one table of methods: command line, notebooks, README and tests all read it.
DISTILLERS: dict[str, type[Distiller]] = {
    "SoftLogits": SoftLogits,
    "AT": AttentionTransfer,
    "AttentionTransfer": AttentionTransfer,
}


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
