"""What is taught: one short file per method, and the table of their names."""

import ast

from kdlib.distillers.attention import AttentionTransfer, attention_loss, attention_map
from kdlib.distillers.base import Distiller, Sum
from kdlib.distillers.soft_logits import SoftLogits, soft_logit_loss
from kdlib.names import unknown

__all__ = [
    "DISTILLERS",
    "AttentionTransfer",
    "Distiller",
    "SoftLogits",
    "Sum",
    "attention_loss",
    "attention_map",
    "make",
    "soft_logit_loss",
]

# The one table of methods: command line, notebooks, README and tests all read it.
DISTILLERS: dict[str, type[Distiller]] = {
    "SoftLogits": SoftLogits,
    "AT": AttentionTransfer,
    "AttentionTransfer": AttentionTransfer,
}


def make(spec: str) -> Distiller:
    """A distiller from text: a name, settings in brackets, and plus signs.

    ``"SoftLogits"``, ``"AT(beta=500)"``, ``"SoftLogits(temperature=2, alpha=0.5) + AT"``.

    Raises:
        ValueError: the text is no such expression, or a name, setting or value is wrong; the
            message says which.
    """
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(
            f"distiller '{spec}': write it like 'SoftLogits(alpha=0.5) + AT'"
        ) from error
    return _make(tree, spec)


def _make(node: ast.expr, spec: str) -> Distiller:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _make(node.left, spec) + _make(node.right, spec)
    name = node.func if isinstance(node, ast.Call) else node
    if not isinstance(name, ast.Name) or (isinstance(node, ast.Call) and node.args):
        raise ValueError(f"distiller '{spec}': write it like 'SoftLogits(alpha=0.5) + AT'")
    if name.id not in DISTILLERS:
        raise ValueError(unknown("distiller", name.id, DISTILLERS))
    distiller = DISTILLERS[name.id]
    accepted = distiller.settings()
    settings = {}
    for keyword in node.keywords if isinstance(node, ast.Call) else []:
        if keyword.arg not in accepted:
            known = ", ".join(f"{p.name}={p.default!r}" for p in accepted.values())
            raise ValueError(f"{name.id} has no setting '{keyword.arg}': it takes {known}")
        try:
            settings[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError as error:
            raise ValueError(f"{name.id}: {keyword.arg} must be a plain value") from error
    return distiller(**settings)
