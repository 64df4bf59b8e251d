"""The same work in PyTorch, as a good PyTorch user would write it: what kdlib is timed against.

ResNets of depth 6n+2 with projected shortcuts, random shift and mirror, SGD with Nesterov momentum,
cross-entropy, soft logits and attention transfer; channels-last memory everywhere. ``Resident``
keeps the pictures on the device and augments there with one gather; ``Loader`` is the usual
``DataLoader``, on a GPU with pinned memory and worker processes that stay for all epochs.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def conv(c_in, c_out, size, stride=1):
    return nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False)


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1, self.norm1 = conv(c_in, c_out, 3, stride), nn.BatchNorm2d(c_out)
        self.conv2, self.norm2 = conv(c_out, c_out, 3), nn.BatchNorm2d(c_out)
        self.shortcut = None
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return self.norm2(self.conv2(y)) + (x if self.shortcut is None else self.shortcut(x))


class ResNet(nn.Module):
    """Logits and the maps of the stages, as ``kdlib.models.build("ResNet{depth}")`` shows them."""

    def __init__(self, depth, classes, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.stem_conv, self.stem_norm = conv(3, 16, 3), nn.BatchNorm2d(16)
        widths, n = (16, 16, 32, 64), (depth - 2) // 6
        self.stages = nn.ModuleList()
        for i in range(3):
            first = Block(widths[i], widths[i + 1], 2 if i else 1)
            rest = [Block(widths[i + 1], widths[i + 1], 1) for _ in range(n - 1)]
            self.stages.append(nn.ModuleList([first, *rest]))
        self.classifier = nn.Linear(64, classes)

    def forward(self, images):
        x = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        x, maps = F.relu(self.stem_norm(self.stem_conv(x)), inplace=True), []
        for stage in self.stages:
            for block in stage:
                x = F.relu(block(x), inplace=True)
            maps.append(x)
        return self.classifier(x.mean((2, 3))), maps


def load_kdlib(network: ResNet, other) -> ResNet:
    """Give ``network`` the weights and statistics of a kdlib ResNet."""

    def norm(mine, theirs):
        mine.weight.data = torch.tensor(np.asarray(theirs.scale[...]))
        mine.bias.data = torch.tensor(np.asarray(theirs.bias[...]))
        mine.running_mean.copy_(torch.tensor(np.asarray(theirs.mean[...])))
        mine.running_var.copy_(torch.tensor(np.asarray(theirs.var[...])))

    def convolution(mine, theirs):  # HWIO to OIHW
        kernel = np.asarray(theirs.kernel[...]).transpose(3, 2, 0, 1)
        mine.weight.data = torch.tensor(kernel).contiguous(memory_format=torch.channels_last)

    convolution(network.stem_conv, other.stem_conv)
    norm(network.stem_norm, other.stem_norm)
    for mine, theirs in zip(network.stages, other.stages, strict=True):
        for a, b in zip(mine, theirs.blocks, strict=True):
            for i in ("1", "2"):
                convolution(getattr(a, "conv" + i), getattr(b, "conv" + i))
                norm(getattr(a, "norm" + i), getattr(b, "norm" + i))
            if a.shortcut is not None:
                convolution(a.shortcut[0], b.shortcut.conv)
                norm(a.shortcut[1], b.shortcut.norm)
    network.classifier.weight.data = torch.tensor(np.asarray(other.classifier.kernel[...]).T.copy())
    network.classifier.bias.data = torch.tensor(np.asarray(other.classifier.bias[...]))
    return network


class Resident:
    """Batches from pictures that stay on the device: one gather shifts and mirrors a batch."""

    def __init__(self, images, labels, batch_size, device, pad=4, flip=0.5):
        self.images = torch.tensor(images).permute(0, 3, 1, 2).to(device)
        self.labels = torch.tensor(labels).long().to(device)
        self.batch_size, self.pad, self.flip, self.device = batch_size, pad, flip, device

    def __call__(self, order):
        """The batches of an epoch, whose pictures ``order`` names."""
        side, n = self.images.shape[-1], self.batch_size
        order = order.to(self.device)  # once: a copy in every step would wait for the device
        for i in range(0, len(order) - n + 1, n):
            index = order[i : i + n]
            grid = torch.arange(side, device=self.device)
            shift = torch.randint(-self.pad, self.pad + 1, (2, n, 1), device=self.device)
            rows, columns = grid + shift[0], grid + shift[1]  # (n, side)
            mirrored = torch.rand(n, 1, device=self.device) < self.flip
            columns = torch.where(mirrored, side - 1 - columns, columns)
            rows, columns = (side - 1 - (side - 1 - x.abs()).abs() for x in (rows, columns))
            picture = index.view(n, 1, 1)
            batch = self.images.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]]
            yield batch.permute(0, 3, 1, 2), self.labels[index]


class Augmented(torch.utils.data.Dataset):
    """Pictures in host memory, augmented one by one.

    As NumPy arrays: tensors would go to workers through shared memory, of which containers have
    little.
    """

    def __init__(self, images, labels, pad, flip):
        self.images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        self.labels, self.pad, self.flip = labels.astype(np.int64), pad, flip

    def __getitem__(self, index):
        image = torch.from_numpy(self.images[index]).float()
        side = image.shape[-1]
        image = F.pad(image, (self.pad,) * 4, mode="reflect")
        y, x = torch.randint(0, 2 * self.pad + 1, (2,)).tolist()
        image = image[:, y : y + side, x : x + side]
        return (image.flip(2) if torch.rand(()) < self.flip else image), self.labels[index]

    def __len__(self):
        return len(self.labels)


class Loader:
    """Batches from a ``DataLoader`` over pictures in host memory, augmented one by one there.

    ``workers`` are its processes, by default 8 for a GPU and none for a CPU.
    """

    def __init__(self, images, labels, batch_size, device, pad=4, flip=0.5, workers=None):
        cuda = device.type == "cuda"
        workers = (8 if cuda else 0) if workers is None else workers
        self.device, self.order = device, []
        self.batches = torch.utils.data.DataLoader(
            Augmented(images, labels, pad, flip), batch_size, sampler=self.order, drop_last=True,
            pin_memory=cuda, num_workers=workers, persistent_workers=workers > 0,
            # A fork of a process with JAX's threads may wait for their locks forever.
            multiprocessing_context="spawn" if workers else None,
        )  # fmt: skip

    def __call__(self, order):
        self.order[:] = order.tolist()
        for images, labels in self.batches:
            yield (x.to(self.device, non_blocking=True) for x in (images, labels))


def attention(feature):
    return F.normalize(feature.pow(2).mean(1).flatten(1), dim=1)


class Trainer:
    """One network in training: ``epoch(order)`` returns the losses of its steps, ``[steps]``.

    ``lesson`` is "plain", "soft logits" or "attention". bfloat16 is autocast's; ``compiled`` is
    the mode in which ``torch.compile`` compiles the loss, None not to.
    """

    def __init__(self, student, teacher, lesson, batches, recipe, bfloat16=False, compiled=None):
        self.student, self.teacher, self.lesson, self.batches = student, teacher, lesson, batches
        self.device, self.bfloat16 = next(student.parameters()).device, bfloat16
        self.optimizer = torch.optim.SGD(
            student.parameters(), recipe.learning_rate, recipe.momentum,
            weight_decay=recipe.weight_decay, nesterov=recipe.nesterov,
        )  # fmt: skip
        self.student.train()
        if teacher is not None:
            self.teacher.eval()
        self.loss = torch.compile(self._loss, mode=compiled) if compiled else self._loss

    def _loss(self, images, labels):
        logits, maps = self.student(images)
        loss = F.cross_entropy(logits.float(), labels)
        if self.lesson == "plain":
            return loss
        with torch.no_grad():
            target, seen = self.teacher(images)
        if self.lesson == "soft logits":
            p, q = (F.log_softmax(x.float() / 4, -1) for x in (target, logits))
            return 0.1 * loss + 0.9 * 16 * F.kl_div(q, p, reduction="batchmean", log_target=True)
        pairs = zip(maps, seen, strict=True)
        return loss + 1000 * sum((attention(s) - attention(t)).pow(2).mean() for s, t in pairs)

    def epoch(self, order):
        losses = []
        for images, labels in self.batches(order):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                loss = self.loss(images, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach().clone())  # a CUDA graph writes over it in the next step
        return torch.stack(losses).cpu()  # waits for the device
