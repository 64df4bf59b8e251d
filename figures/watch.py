"""Watch where networks look while they learn: attention on the true objects, by epoch.

    python -m figures.watch                # minutes on a CPU; figures/attention is replaced

Trains the demo's methods on the embedded set, whose pictures come with the object's mask. After
each tested epoch it notes the share of the last stage's attention that lies on the object, and the
maps of a few pictures.
"""

import json
import pathlib

import numpy as np

from kdlib import compare, fit, metrics, preset, report, transfer
from kdlib.files import write_text
from kdlib.history import device, versions
from kdlib.train import predict

OUT = pathlib.Path(__file__).resolve().parent / "attention"
SCORED, SHOWN = 500, 3  # test pictures whose attention is scored, and of which maps are kept


def watch(method: str, chosen, data, teacher) -> dict:
    """Train one method; its epochs, object shares ``[seeds][epochs]`` and the first seed's maps."""
    test, found = data.test.take(slice(SCORED)), {}

    def note(record, epoch, seeds, networks):
        if epoch != 1 and epoch % chosen.recipe.test_every:
            return
        for seed, network in zip(seeds, networks(), strict=True):
            found.setdefault(seed, {})[epoch] = look(network, test)

    fit(chosen.student, data, transfer.make(method, teacher), chosen.recipe, seeds=chosen.seeds,
        label=method, on_epoch=note)  # fmt: skip
    shares = [[share for share, _ in epochs.values()] for epochs in found.values()]
    maps = {epoch: attention for epoch, (_, attention) in found[0].items()}
    return {"epochs": list(found[0]), "shares": shares, "maps": maps}


def look(network, test) -> tuple[float, list]:
    """Mean share of attention on the object, and the first pictures' maps, which sum to one."""
    features = predict(network, test.images).features[-1]
    share = float(metrics.object_share(features, test.masks).mean())
    energy = (features[:SHOWN] ** 2).mean(-1, dtype=float)
    energy /= np.maximum(energy.sum((1, 2), keepdims=True), 1e-12)
    return share, energy.round(3).tolist()


def main():
    chosen = preset("workshop")
    data = compare.load_data(chosen)
    teacher = compare.load_teacher(chosen, data)
    share, maps = look(teacher, data.test.take(slice(SCORED)))
    methods = {m: watch(m, chosen, data, teacher) for m in chosen.table("demo")}
    record = {
        "source": data.source, "student": chosen.student, "epochs": chosen.recipe.epochs,
        "labels": len(data.train), "pictures": SCORED, "seeds": chosen.seeds, "device": device(),
        "versions": versions(), "area": float(data.test.masks[:SCORED].mean()),
        "teacher": {"share": share, "maps": maps}, "methods": methods,
    }  # fmt: skip
    write_text(OUT / "record.json", json.dumps(record))
    print(report.FIGURES / "attention")


if __name__ == "__main__":
    main()
