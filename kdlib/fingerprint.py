"""Checksums of code of one's own, so that what other code has computed is never taken for its."""

import dis
import re
import sys
import types

import jax
import numpy as np
from flax import nnx

from kdlib.checkpoint import digest

# Where libraries keep somebody's function: partial ones, properties, methods, what jax.jit returns.
HELD = "func", "args", "keywords", "fget", "__func__", "__self__", "__wrapped__"


def fingerprint(thing) -> str:
    """16 hexadecimal digits that stand for a function, a class or an object as it is now.

    Of functions that is what runs, bytecode (so that comments change nothing, and another version
    of Python everything), defaults, attributes and all that they find by name, down to helpers of
    helpers; of classes, objects and modules what they hold; of what libraries define, how it shows.
    """
    return digest(np.array(_text(thing, {})))


def is_own(thing) -> bool:
    """Whether a function, a class or a module is neither the cookbook's nor a library's."""
    name = getattr(thing, "__module__", None) or thing.__name__
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    ours = name.partition(".")[0] in {"kdlib", *sys.stdlib_module_names}
    return not ours and "-packages" not in file


def _text(thing, seen: dict) -> str:
    if isinstance(thing, np.ndarray | jax.Array | nnx.Variable):
        return digest(thing)
    kind, parts = type(thing), _parts(thing)
    if not parts:  # addresses and folders say nothing
        return re.sub(r" (at 0x\w+|from '[^']*')", "", repr(thing))
    if id(thing) in seen:
        return kind.__qualname__
    if kind not in (tuple, frozenset):  # of constants, Python decides which are one object
        seen[id(thing)] = thing  # kept, so that nothing else gets its number
    return f"{kind.__qualname__}({', '.join(_text(part, seen) for part in parts)})"


def _parts(thing) -> list:
    """What a thing consists of; nothing, where its own text says it all."""
    if isinstance(thing, set | frozenset):
        return sorted(thing, key=repr)
    if isinstance(thing, list | tuple | dict):
        return list(getattr(thing, "items", thing.__iter__)())
    if isinstance(thing, types.CodeType):  # functions within a function are among its constants
        return [thing.co_code, thing.co_names, thing.co_consts]
    if isinstance(thing, types.FunctionType) and is_own(thing):
        return [thing.__code__, thing.__defaults__, thing.__kwdefaults__, vars(thing), _uses(thing)]
    if isinstance(thing, type | types.ModuleType) and is_own(thing):
        held = {k: v for k, v in vars(thing).items() if k[:2] != "__" or hasattr(v, "__code__")}
        return [*getattr(thing, "__bases__", ()), held]
    if isinstance(thing, nnx.Module) or is_own(type(thing)):
        return [type(thing), getattr(thing, "__dict__", {})]
    return [getattr(thing, name) for name in HELD if hasattr(thing, name)]


def _uses(function) -> dict:
    """What a function, and those within it, find by name."""
    codes, cells = [function.__code__], function.__closure__ or ()
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    asks = [i for code in codes for i in dis.get_instructions(code)]
    names = {i.argval for i in asks if "GLOBAL" in i.opname or i.opname == "LOAD_NAME"}
    found = {k: v for k, v in sorted(function.__globals__.items()) if k in names}
    own = zip(codes[0].co_freevars, cells, strict=True)
    return found | {k: cell.cell_contents for k, cell in own if cell != types.CellType()}
