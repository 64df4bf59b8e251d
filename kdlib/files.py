"""Files that are whole or not there, and paths as people type them."""

import contextlib
import json
import os
import pathlib


def expand(path) -> pathlib.Path:
    """A path with ``~`` as the home folder; an unknown user's, ``~no-one``, stays as it is."""
    return pathlib.Path(os.path.expanduser(path))


def read_json(path, advice: str, make=lambda content: content):
    """What ``make`` makes of a JSON file's content.

    Raises ValueError, which ends in ``advice``, for a file that is damaged or holds something else.
    """
    try:
        return make(json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as reason:
        raise ValueError(f"{path} is damaged or of another kind ({reason}): {advice}") from None


@contextlib.contextmanager
def replacing(path):
    """A file to write that then replaces ``path``, so that a kill leaves the old or the new one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path, text: str) -> None:
    """Replace a file's content in one step."""
    with replacing(path) as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")
