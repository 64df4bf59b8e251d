"""A benchmark's JSON record, to which every call adds what it measured."""

import json
import pathlib

from kdlib import files


def begin(path: pathlib.Path, facts: dict, part: str) -> dict:
    """The record at ``path`` if it is of the same ``facts``, else a new one, and says so.

    Args:
        facts: how it is measured: device, versions, sizes. Times of others don't belong beside.
        part: the key of what is measured, a dict by name, empty in a new record.

    Raises:
        ValueError: the file holds no record.
    """
    facts = json.loads(json.dumps(facts))  # as they are read back: keys are text, tuples lists
    if path.exists():
        old = files.read_json(path, "delete it, or choose another", dict)
        other = [name for name in facts if old.get(name) != facts[name]]
        if not other:
            return old
        print(f"{path} was of another {', '.join(other)}: begun anew")
    return facts | {part: {}}


def left(done: dict, asked) -> list:
    """Which of the ``asked`` names aren't ``done`` yet; all of them, and none is done, if all are.

    So the call after one that was cut goes on there, and the call after a whole one measures anew.
    """
    missing = [name for name in asked if name not in done]
    if not missing:
        done.clear()
    return missing or list(asked)


def save(path: pathlib.Path, record: dict) -> None:
    """Write it, lest a run that is cut leave nothing."""
    files.write_text(path, json.dumps(record, indent=1))
