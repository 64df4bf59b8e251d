"""Names that people type: finding the one they meant, and objects written as text."""

import ast
import difflib
import importlib
import inspect
import re
import runpy
import typing
from collections.abc import Callable, Iterable

from kdlib.files import expand

OWN_FILE = r"[^\s(,=+][^(,=+]*\.py"  # of a path in text; it may have spaces


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line that says a name is unknown, and which one was probably meant."""
    lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.4)
    hint = f"did you mean '{lower[near[0]]}'?" if near else f"known are {', '.join(lower.values())}"
    return f"unknown {kind} '{name}': {hint}"


def require(condition, message: str, error: type[Exception] = ValueError) -> None:
    """An error unless the condition holds; its one line names the value and what to give."""
    if not condition:
        raise error(message)


def read(text: str, kind: str, table: dict, wrap: Callable | None = None):
    """The object that text describes: names of a table, settings in brackets, plus signs.

    Args:
        text: ``"AT"``, ``"AT(beta=500) + SoftLogits"``; a setting may itself be such an expression.
            ``module:Name`` and ``path/file.py:Name`` name an object of one's own.
        kind: what to call it in errors.
        table: name → class.
        wrap: makes what the table's classes are from an object of one's own.

    Raises:
        ValueError: the text is no such expression, or a name, setting or value is wrong.
        FileNotFoundError, ModuleNotFoundError: a file or module that is not there.
    """
    own = {}  # stand-in → address
    note = lambda match: own.setdefault(f"own_{len(own)}", match[0]) and f"own_{len(own) - 1}"
    try:
        ours = re.sub(rf"({OWN_FILE}|[\w.]+):[A-Za-z_]\w*", note, text.strip())
        tree = ast.parse(ours, mode="eval").body
    except SyntaxError:
        tree = None
    return _build(tree, text, kind, table, wrap, own)


def _build(node, text, kind, table, wrap, own):
    again = lambda inner: _build(inner, text, kind, table, wrap, own)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = again(node.left), again(node.right)
        require(all(hasattr(s, "__add__") for s in sides), f"'{text}': only distillers add up")
        return sides[0] + sides[1]
    name = node.func if isinstance(node, ast.Call) else node
    plain = isinstance(name, ast.Name) and not getattr(node, "args", None)
    require(plain, f"{kind} '{text}': write it like 'SoftLogits(alpha=0.5) + AT'")
    require(name.id in own or name.id in table, unknown(kind, name.id, table))
    found = load_object(own[name.id]) if name.id in own else table[name.id]
    require(callable(found), f"{text} is {found!r}: give a function or a class")
    values, accepted, label = {}, settings(found), own.get(name.id, name.id)
    for keyword in getattr(node, "keywords", []):
        try:
            value = keyword.value
            is_object = isinstance(value, ast.Call | ast.Name | ast.BinOp)
            values[keyword.arg] = again(value) if is_object else ast.literal_eval(value)
        except ValueError as error:
            raise ValueError(f"{label}: {keyword.arg} must be a plain value ({error})") from error
    shared = {k: values.pop(k) for k in ("warmup", "pretrain") if k in values}
    known = ", ".join(f"{p.name}={p.default!r}" for p in accepted.values()) or "none"
    for setting, value in values.items():
        require(setting in accepted, f"{label} has no setting '{setting}': it takes {known}")
        fits = name.id in own or _is(value, accepted[setting].annotation)
        require(fits, f"{label} takes {known}, not {setting}={value!r}")
    try:
        makes = values or name.id not in own or (name is not node and not shared)  # f() is called
        made = found(**values) if makes else found
        if makes and not isinstance(found, type):  # a function: its text is all that is known
            label = written(label, values | shared)
        made = wrap(made, label) if name.id in own else made
        require(not shared or hasattr(made, "scheduled"), f"{name.id} takes no {', '.join(shared)}")
        return made.scheduled(**shared) if shared else made
    except TypeError as error:
        raise ValueError(f"{kind} '{text}': {error}") from error


def _is(value, kind) -> bool:
    """Whether a value is what an argument is annotated as; any number is a float."""
    alone = typing.get_origin(kind) in (None, tuple)  # else float | None
    kinds = [typing.get_origin(k) or k for k in ([kind] if alone else typing.get_args(kind))]
    return isinstance(value, (*kinds, *[int] * (float in kinds), *[list] * (tuple in kinds)))


def settings(made_by) -> dict[str, inspect.Parameter]:
    """What text can set of a class or function, by name: its arguments but networks."""
    function = made_by.__init__ if isinstance(made_by, type) else made_by
    parameters = inspect.signature(function).parameters
    return {k: p for k, p in parameters.items() if k not in ("self", "teacher", "args", "kwargs")}


def written(name: str, values: dict) -> str:
    """What :func:`read` makes an object of these settings from."""
    texts = (f"{k}={getattr(value, 'spec', None) or repr(value)}" for k, value in values.items())
    return re.sub(r" at 0x\w+", "", f"{name}({', '.join(texts)})")  # addresses differ every time


def load_object(address: str):
    """What ``module:Name`` or ``file.py:Name`` names.

    Raises:
        FileNotFoundError, ModuleNotFoundError: there is no such file or module.
        ValueError: it has no such name.
    """
    place, _, name = address.rpartition(":")
    path, is_file = expand(place), place.endswith(".py")
    require(not is_file or path.is_file(), f"no file {path}: give file.py:Name", FileNotFoundError)
    found = runpy.run_path(str(path)) if is_file else vars(importlib.import_module(place))
    require(name in found, unknown(f"name in {place}", name, [n for n in found if n[0] != "_"]))
    return found[name]
