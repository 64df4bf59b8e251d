"""Who teaches."""

from kdlib.transfer.offline import Offline
from kdlib.transfer.supervised import Batch, Loss, Supervised, cross_entropy

__all__ = ["TRANSFERS", "Batch", "Loss", "Offline", "Supervised", "cross_entropy"]

# By the names of the command line. ``Supervised`` needs no name: it is what train.py does.
TRANSFERS = {"Offline": Offline}
