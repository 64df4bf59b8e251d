"""Makes the PyTorch files that tests/test_others.py reads, and what their networks answer.

    python tests/data/make_torch_files.py

It needs PyTorch, which the tests don't. The network is written here after He et al. 2016, with the
names that PyTorch's CIFAR ResNets share; its random weights and batch statistics are far from
those of a new network, so that a part that is left out or exchanged shows.
"""

import collections
import pathlib

import numpy as np
import torch
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
WIDTH, CLASSES, MEAN, STD = 4, 5, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pad(nn.Module):
    """Option A: every second pixel, and as many channels of zeros before as behind."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        zeros = x.new_zeros(len(x), self.channels // 4, x.shape[2] // 2, x.shape[3] // 2)
        return torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = nn.Identity()
        if stride == 2 and shortcut == "padded":
            self.downsample = Pad(c_out)
        elif stride == 2:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(c_out))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.downsample(x))


class Net(nn.Module):
    def __init__(self, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.layer1 = nn.Sequential(Block(WIDTH, WIDTH, 1, shortcut))
        self.layer2 = nn.Sequential(Block(WIDTH, 2 * WIDTH, 2, shortcut))
        self.layer3 = nn.Sequential(Block(2 * WIDTH, 4 * WIDTH, 2, shortcut))
        self.fc = nn.Linear(4 * WIDTH, CLASSES)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def network(shortcut, seed):
    torch.manual_seed(seed)
    net = Net(shortcut)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.5)
            module.num_batches_tracked += 1000
    return net.eval()


def renamed(state, prefix="", **words):
    out = collections.OrderedDict()
    for name, tensor in state.items():
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        out[prefix + name] = tensor
    return out


def odd_strides(state):
    """The same numbers, in storages that are larger, shared and in another order."""
    out = collections.OrderedDict()
    for name, tensor in state.items():
        if tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        elif tensor.ndim == 1:
            twice = torch.stack([torch.full_like(tensor, 1e6), tensor])
            tensor = twice[1]
        out[name] = tensor
    return out


def main():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    inputs = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std
    answers = {"images": images}
    nets = {
        shortcut: network(shortcut, seed) for seed, shortcut in enumerate(("padded", "projected"))
    }
    for shortcut, net in nets.items():
        with torch.no_grad():
            answers[shortcut] = net(inputs).numpy()
    padded, projected = (net.state_dict() for net in nets.values())
    rounded = Net("padded").eval()
    rounded.load_state_dict({name: tensor.half().float() for name, tensor in padded.items()})
    with torch.no_grad():
        answers["half"] = rounded(inputs).numpy()
    accuracy = torch.tensor(93.5)
    legacy = {"_use_new_zipfile_serialization": False}
    in_module = renamed(padded, "module.", fc="linear")
    torch.save(
        {"state_dict": in_module, "best_prec1": accuracy}, HERE / "padded_legacy.th", **legacy
    )
    torch.save(renamed(padded, fc="linear"), HERE / "padded_zip.pt")
    torch.save(projected, HERE / "projected_zip.pt")
    projected = odd_strides(renamed(projected, downsample="shortcut"))
    torch.save({"model": projected, "epoch": 3}, HERE / "projected_strides_legacy.pth", **legacy)
    torch.save({"model": projected, "epoch": 3}, HERE / "projected_strides_zip.pth")
    double = {name: tensor.double() for name, tensor in projected.items()}
    torch.save({"net": double, "acc": 93.5}, HERE / "projected_double.pth", **legacy)
    half = {n: nn.Parameter(t.half()) if t.is_floating_point() else t for n, t in padded.items()}
    torch.save(half, HERE / "padded_half_parameters.pth", **legacy)
    np.savez(HERE / "torch_logits.npz", **answers)


if __name__ == "__main__":
    main()
