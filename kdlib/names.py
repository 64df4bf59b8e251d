"""Names that people type: finding the one they meant."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line that says a name is unknown, and which one was probably meant."""
    lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.4)
    hint = f"did you mean '{lower[near[0]]}'?" if near else f"known are {', '.join(lower.values())}"
    return f"unknown {kind} '{name}': {hint}"
