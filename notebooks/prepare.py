"""Make notebooks ready to commit: the same set-up cell in each, and no metadata of one machine.

    python notebooks/prepare.py            # all of them, in place

What stays is how long a run took, which README shows and the first cell says.

The set-up cell clones the address that pyproject.toml gives as [project.urls] Repository. While
there is none, it unpacks an uploaded archive instead.
"""

import base64
import datetime
import io
import json
import pathlib
import re
import tomllib

from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
ADDRESS = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"].get("urls", {})

SETUP = """\
# Colab only: fetch the cookbook and the little that Colab lacks. Locally this does nothing.
import sys

if "google.colab" in sys.modules:
    import pathlib
    import shutil
    import subprocess

    root, address = pathlib.Path("/content/kd-cookbook"), {address!r}
    if address and not root.exists():
        subprocess.run(["git", "clone", "-q", "--depth=1", address, str(root)], check=True)
    if not root.exists():  # whatever the folder in the archive is called
        archive = pathlib.Path("/content/kd-cookbook.zip")
        assert archive.exists(), "upload kd-cookbook.zip (folder symbol, left), then run again"
        shutil.unpack_archive(archive, "/content/unpacked")
        found = pathlib.Path("/content/unpacked").rglob("pyproject.toml")
        min(found, key=lambda file: len(file.parts)).parent.rename(root)
    install = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*install, "--no-deps", "-e", str(root)], check=True)
    subprocess.run([*install, "safetensors", "tensorboardX", "importlib_resources"], check=True)
    sys.path.insert(0, str(root))
"""
MARK = "# Colab only:"


def setup_cell() -> str:
    """The set-up cell, with the repository's address if it is known."""
    return SETUP.format(address=ADDRESS.get("Repository", "")).rstrip("\n")


def shrink(png: str) -> str:
    """A chart with a palette of 256 colours, a third of the size; pictures stay as they are."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "P" or image.convert("RGB").getcolors(6000) is None:
        return png
    content = io.BytesIO()
    palette = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette.save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def seconds(cells: list[dict]) -> int | None:
    """How long cells took, by what ``jupyter nbconvert --execute`` notes in them; None without."""
    noted = [cell["metadata"].get("execution", {}) for cell in cells]
    at = lambda times, event: datetime.datetime.fromisoformat(times[f"iopub.status.{event}"])
    ended = [times for times in noted if "iopub.status.idle" in times]  # one that was stopped isn't
    return round(sum((at(t, "idle") - at(t, "busy")).total_seconds() for t in ended)) or None


def duration(took: int) -> str:
    """Seconds as the first cell says them."""
    minutes = round(took / 60)
    about = f"about {minutes} minutes" if minutes > 1 else "a minute or less"
    return f"{about} on one CPU core, with another job beside it"


def prepare(notebook: dict) -> dict:
    """A notebook with the current set-up cell, small charts, and only the metadata others need."""
    took = seconds(notebook["cells"]) or notebook["metadata"].get("kdlib", {}).get("seconds")
    for place, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if source.startswith(MARK):
            source = setup_cell()
        if place == 0 and took:
            source = re.sub(r"(?<=\*\*Time\*\* )[^.]*", duration(took), source)
        cell["source"] = source.splitlines(keepends=True)
        cell["id"] = f"cell-{place:02d}"
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = shrink("".join(output["data"]["image/png"]))
    notebook["metadata"] = {
        "accelerator": "GPU",
        "kdlib": {"seconds": took},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main():
    for path in sorted(HERE.glob("*.ipynb")):
        notebook = prepare(json.loads(path.read_text()))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
