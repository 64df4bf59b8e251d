"""Inputs and reference values of the distillation losses.

The values were computed by the original PyTorch code of the cited repositories, in float64, on
these inputs. Maps are written down in NCHW order and transposed.
"""

import numpy as np

from kdlib.models import Outputs

LABELS = np.array([3, 1, 4, 1], np.int32)


def _k(*shape):
    return np.arange(np.prod(shape)).reshape(shape)


def student_logits():
    return (2 * np.sin(1 + 0.7 * _k(4, 10))).astype(np.float32)


def teacher_logits():
    return (3 * np.cos(2 + 0.9 * _k(4, 10))).astype(np.float32)


def student_map(channels, side):
    values = np.maximum(np.sin(0.3 * _k(4, channels, side, side) + 1), 0)
    return values.transpose(0, 2, 3, 1).astype(np.float32)


def teacher_map(channels, side):
    values = np.maximum(np.cos(0.17 * _k(4, channels, side, side) + 2), 0)
    return values.transpose(0, 2, 3, 1).astype(np.float32)


def outputs(logits, features) -> Outputs:
    """Outputs with these feature maps (the stem first)."""
    return Outputs(logits, features[-1].mean((1, 2)), tuple(features), tuple(features[1:]))


def minimised(distiller, cross_entropy, knowledge, progress=1.0):
    """What a student that is taught by a distiller minimises."""
    ce, weight = distiller.weights(progress)
    return ce * cross_entropy + weight * knowledge


# name: (loss, norm of its gradient with respect to the student, or None where unknown)
GOLDEN = {
    "cross-entropy": (3.615938, 0.5255447),
    "soft logits, T 4": (3.601745, 0.4234593),
    "soft logits, T 1": (2.142272, None),
    "0.1 CE + 0.9 soft logits": (3.603164, None),
    "attention, one stage": (0.009522058, 7.953187e-4),
    "attention, pooled 8 to 4": (0.01221255, None),
    "attention, paper": (0.7800405, None),
}
