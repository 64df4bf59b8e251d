"""Checksums of code of one's own, so that what other code has computed is never taken for its."""

import contextlib
import dis
import re
import sys
import types

import jax
import numpy as np
from flax import nnx

from kdlib.checkpoint import digest

# Where partial functions, properties and methods keep somebody's.
KEPT = "func", "args", "keywords", "fget", "fset", "__func__", "__self__"


def fingerprint(thing) -> str:
    """16 hexadecimal digits that stand for a function, a class or an object as it is now.

    Of functions that is what runs, bytecode (so that comments change nothing, and another version
    of Python everything), defaults, attributes and all that they find by name, down to helpers of
    helpers; of classes, objects and modules what they hold; of what libraries define, how it shows
    and, of their functions, what those were made with. It raises nothing.
    """
    found, known, said = [[thing]], {}, []
    for part in (part for parts in found for part in parts):  # it grows, level by level
        # Of constants, Python decides which are one object.
        if id(part) not in known or type(part) in (tuple, frozenset):
            known[id(part)] = type(part).__qualname__
            with contextlib.suppress(Exception):  # some objects can't be looked at
                parts = [] if type(part) in (str, int, float) else _parts(part)
                known[id(part)] += f" {len(parts)} at {len(found)}" if parts else repr(part)
                found += [parts] if parts else []  # kept alive, so that no number comes twice
        said.append(known[id(part)])
    # Addresses and folders say nothing.
    return digest(np.array(re.sub(r" (at 0x\w+|from '[^']*')", "", "\n".join(said))))


def is_own(thing) -> bool:
    """Whether a function, a class or a module is neither the cookbook's nor a library's."""
    name = getattr(thing, "__module__", None) or thing.__name__
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    ours = name.partition(".")[0] in {"kdlib", *sys.stdlib_module_names}
    return not ours and "-packages" not in file


def _parts(thing) -> list:
    """What a thing consists of; nothing, where its own text says it all."""
    kind, held = type(thing), getattr(thing, "__dict__", {})
    # But for the line where jax.jit was called.
    held = {k: v for k, v in held.items() if (k[:2] != "__" or callable(v)) and k != "_jit_info"}
    if isinstance(thing, np.ndarray | jax.Array | nnx.Variable) and thing.dtype != object:
        return [str(thing.dtype), thing.shape, digest(thing)]
    if isinstance(thing, types.CodeType):  # functions within a function are among its constants
        return [thing.co_code, thing.co_names, thing.co_consts]
    if isinstance(thing, types.FunctionType):
        # What wraps a function gives itself that one's module.
        own = is_own(sys.modules.get(thing.__globals__.get("__name__"), thing))
        runs = thing.__code__ if own else f"{thing.__module__}.{thing.__qualname__}"
        return [runs, thing.__defaults__, thing.__kwdefaults__, held, _uses(thing, own)]
    if isinstance(thing, type | types.ModuleType):
        return [kind, *getattr(thing, "__bases__", ()), held] if is_own(thing) else []
    items = list(thing) if isinstance(thing, list | tuple) else []
    items += sorted(thing, key=repr) if isinstance(thing, set | frozenset) else []
    items += dict.items(thing) if isinstance(thing, dict) else []
    if isinstance(thing, nnx.Module | nnx.State) or is_own(kind):
        return [kind, object.__getstate__(thing), *items]  # of slots too
    kept = [getattr(thing, name) for name in KEPT if not items and hasattr(kind, name)]
    if kept or (held and (callable(thing) or hasattr(kind, "__get__"))):
        return [str(getattr(thing, "__name__", "")), held, *kept]
    return items


def _uses(function, own: bool) -> dict:
    """What a function of one's own, and those within it, find by name; of others their closure."""
    codes, cells = [function.__code__], function.__closure__ or ()
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    asks = [i for code in codes for i in dis.get_instructions(code)] if own else []
    names = {i.argval for i in asks if "GLOBAL" in i.opname or i.opname == "LOAD_NAME"}
    found = {k: v for k, v in sorted(function.__globals__.items()) if k in names}
    held = zip(codes[0].co_freevars, cells, strict=True)
    return found | {k: cell.cell_contents for k, cell in held if cell != types.CellType()}
