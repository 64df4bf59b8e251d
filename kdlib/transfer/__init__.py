"""Who teaches."""

from kdlib.names import unknown
from kdlib.transfer.offline import Offline
from kdlib.transfer.supervised import Batch, Loss, Supervised, cross_entropy

__all__ = ["TRANSFERS", "Batch", "Loss", "Offline", "Supervised", "cross_entropy", "make"]

# By the names of the command line. ``Supervised`` needs no name: it is what train.py does.
TRANSFERS = {"Offline": Offline}


def make(name: str, teacher, distiller) -> Supervised:
    """A transfer by name.

    Raises:
        ValueError: no such transfer.
    """
    if name not in TRANSFERS:
        raise ValueError(unknown("transfer", name, TRANSFERS))
    return TRANSFERS[name](teacher, distiller)
