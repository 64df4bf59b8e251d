"""Files that are whole or not there."""

import contextlib
import os
import pathlib


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
