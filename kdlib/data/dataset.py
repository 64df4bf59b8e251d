"""What a data set is here: uint8 pictures, int32 labels and, where known, object masks."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from kdlib.names import require


@dataclass(frozen=True)
class Split:
    """Pictures with their labels."""

    images: np.ndarray  # uint8 [n, h, w, c], in units of 0..255
    labels: np.ndarray  # int32 [n], from 0 to the number of classes minus one
    masks: np.ndarray | None = None  # bool [n, h, w], true on the object, or None: nobody knows

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of every channel, units of 0..255."""
        # Sums of whole numbers are exact, and need no wider copy of the pictures.
        flat, c = self.images.reshape(len(self), -1), self.images.shape[-1]
        sums = flat.sum(0, dtype=np.uint64), np.einsum("np,np->p", flat, flat, dtype=np.uint64)
        mean, square = (each.reshape(-1, c).sum(0) * c / flat.size for each in sums)  # (c,)
        return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(square - mean**2, 1e-6)).tolist())

    def take(self, index) -> "Split":
        """The pictures at ``index`` (an integer array or a slice)."""
        masks = None if self.masks is None else self.masks[index]
        return Split(self.images[index], self.labels[index], masks)


@dataclass(frozen=True)
class Dataset:
    """A named data set with its splits."""

    name: str  # as given to kdlib.data.load, in its canonical spelling
    source: str  # what the pictures are, for tables: "CIFAR-10, JPEG copy"
    classes: tuple[str, ...]  # their names, in the order of the labels
    train: Split
    test: Split
    validation: Split | None = None  # held out from train

    num_classes = property(lambda self: len(self.classes))
    image_shape = property(lambda self: self.train.images.shape[1:])  # (h, w, c) of one picture
    # Mean and standard deviation of every channel over the training pictures, units of 0..255.
    mean = property(lambda self: self.train.moments[0])
    std = property(lambda self: self.train.moments[1])

    def describe(self) -> dict:
        """What a record says of the data: name, source and sizes."""
        return {"name": self.name, "source": self.source, "train": len(self.train),
                "validation": len(self.validation or ()), "test": len(self.test)}  # fmt: skip

    def hold_out(self, count: int, seed: int) -> "Dataset":
        """Move ``count`` training pictures, drawn by ``seed`` in equal shares, to validation."""
        chosen = _stratified(self.train.labels, count, seed)
        train = self.train.take(np.setdiff1d(np.arange(len(self.train)), chosen))
        require({*train.labels} == {*self.train.labels}, f"{count} pictures held out for validation"
                " are all that there are of a class: hold out fewer")  # fmt: skip
        return replace(self, train=train, validation=self.train.take(chosen))

    def subset(self, count: int, seed: int) -> "Dataset":
        """Keep ``count`` training pictures, drawn by ``seed`` in equal shares of every class."""
        return replace(self, train=self.train.take(_stratified(self.train.labels, count, seed)))


def _stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``count`` positions, as equal a number of each class as there are pictures for, sorted."""
    require(0 < count < len(labels), f"{count} pictures asked of {len(labels)} training pictures: "
            f"give a number from 1 to {len(labels) - 1}")  # fmt: skip
    order = np.random.default_rng([seed, count]).permutation(len(labels))
    by_class = np.argsort(drawn := labels[order], kind="stable")
    # (n,), place of a picture among those of its class.
    rank = np.argsort(by_class) - np.searchsorted(drawn[by_class], drawn)
    # First of every class, second of every class…
    return np.sort(order[np.argsort(rank, kind="stable")[:count]])
