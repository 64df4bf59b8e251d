"""Draw every published table, figure and sentence with a number from the records beside this file.

    python -m figures.draw                 # what `make figures` runs; nothing is trained

README.md holds what is written here between ``<!-- draw.py: NAME -->`` and ``<!-- end -->``. A
sentence says more than its numbers, so those that draw a conclusion name the verdict they need:
where the records no longer give it, the sentence is refused and has to be written anew.
"""

import itertools
import json
import pathlib
import re

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from figures import charts, teachers, which_teacher
from kdlib import checkpoint, compare, load, metrics, plots, report
from kdlib.history import History
from kdlib.names import require

HERE = pathlib.Path(__file__).resolve().parent
README = HERE.parent / "README.md"
TABLES = ("shapes", "offline", "online", "self", *(
    f"{scale}/{table}" for scale in ("reduced", "short", "full")
    for table in ("demo", "baselines", "offline", "online", "self")))  # fmt: skip
SAME_WORK = "Supervised(longer=1.5)"  # of a run that ResNet-56 teaches ResNet-32
MINUS = "\N{MINUS SIGN}"
WORDS = "no one two three four five six seven eight nine ten eleven twelve".split()
# One run each, on the original CIFAR-10 (sseung0703/Lightweighting_Cookbook: KD/README.md).
ORIGINAL = {
    "teacher": 93.96, "plain": 93.15, "SoftLogits": 93.41, "AT(beta=1000)": 93.74,
    "SoftLogits + AT(beta=1000)": None,
}  # fmt: skip

NOTEBOOKS = {
    "00_quickstart": "the whole story: two losses, four students, where they look",
    "01_teacher_training": "the network, the recipe, the jitted step, checkpoints",
    "02_soft_logits": "temperature, dark knowledge and a control for it, why T², sweeping T and α honestly, pictures without labels, which teacher",
    "03_attention_transfer": "attention maps scored against the true objects, which weight, which stage",
    "04_online_distillation": "co-training, mutual learning, ONE, collaborative targets; what they cost",
    "05_self_distillation": "one's own past, depth, views and batch-mates; the cheap baselines; calibration",
    "06_method_zoo": "the map of all methods, a card each, the tables read critically",
    "07_write_your_own_distiller": "a loss from nothing: checked, weighed, trained, in the table",
    "08_scaling_up": "compiling, an epoch as one program, seeds, several devices, half the bits, what it costs",
    "09_results": "every table and figure from its records: what they say, and what they don't",
    "solutions": "answers to the exercises",
}  # fmt: skip


def verdict_of(values, baseline, expected: str, what: str = "") -> str:
    """The paired difference of values by seed, ``"4.7 ± 3.6"``, if its verdict is the expected one."""
    difference, found = metrics.compare(values, baseline)
    require(found == expected, f"{what}{difference} is {found}, not {expected}: rewrite this")
    return str(difference).lstrip("-")


def verdict(records, name: str, expected: str, baseline: str = "plain") -> str:
    """The paired difference of two methods, ``"4.7 ± 3.6"``, if its verdict is the expected one."""
    values, against = (records.histories[each].last() for each in (name, baseline))
    return verdict_of(values, against, expected, f"{name} against {baseline}: ")


def judged(records, wanted: str, baseline: str = "plain") -> list[str]:
    """Methods with that verdict against the baseline, the best first."""
    last = {name: history.last() for name, history in records.histories.items()}
    found = [
        n for n in last if n != baseline and metrics.compare(last[n], last[baseline])[1] == wanted
    ]
    return sorted(found, key=lambda name: -last[name].mean())


def kept(records, baseline: str = "plain", beside: int | None = None) -> list[str]:
    """Gains over the baseline that hold up beside all comparisons with it, or beside so many
    (Holm's correction)."""
    base = records.histories[baseline].last()
    others = {name: history.last() for name, history in records.histories.items()}
    p = {n: stats.ttest_rel(v, base).pvalue for n, v in others.items() if n != baseline}
    order = sorted(p, key=p.get)
    fails = (
        place for place, name in enumerate(order) if p[name] > 0.05 / ((beside or len(p)) - place)
    )
    return [n for n in order[: next(fails, None)] if n in judged(records, "better", baseline)]


def accuracy(records, name: str) -> str:
    """Last-epoch accuracy of a method, ``"86.1 ± 2.4"``, in per cent."""
    return str(metrics.interval(records.histories[name].last()))


def closed(records, name: str) -> str:
    """What a method closes of plain training's distance to the teacher, in per cent,
    ``"80.1 ± 6.5"``."""
    mine, plain = (records.histories[each].last() for each in (name, "plain"))
    return str(metrics.interval(charts.shares(mine, plain, records.teacher)))


def taught(records) -> list[str]:
    """The methods of a table in which somebody teaches."""
    return [n for n, each in records.histories.items() if each.config["transfer"] != "Supervised"]


def work(records, teacher, longer: str) -> str:
    """What the plain training that is so much longer takes, and a run with this teacher."""
    epochs = records.histories[longer].epochs / records.histories["plain"].epochs
    # A picture of a student's epoch: forward and backward, which is twice the forward's work.
    forward = records.histories["plain"].protocol["multiply_adds"] / 1e6
    above = teacher.protocol["multiply_adds"] / 1e6
    run, plain = 3 * forward + above, records.histories["plain"]
    alike = teacher.config["data"]["train"] == plain.config["data"]["train"]
    require(alike, "the teacher has other pictures: count them")
    whole = (3 * above * teacher.epochs + run * plain.epochs) / (3 * forward)
    return (
        f"about as many operations as a run with this teacher ({3 * epochs * forward:.0f} and {run:.0f} million "
        f"multiply-adds for each picture of the taught run's epoch; counting the teacher's own training too, one taught "
        f"run is the work of {whole:.0f} plain epochs)"
    )


def listed(words) -> str:
    """``"a, b and c"``."""
    if not words:
        return "none"
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def quoted(names) -> str:
    """``"`a`, `b` and `c`"``."""
    return listed([f"`{name}`" for name in names])


def against(records, rival: str, names) -> str:
    """Each method's paired difference to another, with its verdict, in one row of words."""
    found = []
    for name in names:
        two = (records.histories[each].last() for each in (name, rival))
        difference, verdict = metrics.compare(*two)
        sign = "+" if difference.mean >= 0 else ""
        found.append(f"`{name}` {sign}{difference} ({verdict})".replace("-", MINUS))
    return listed(found)


def versus(records, rivals) -> str:
    """Differences to several rivals, paired by seed, the most accurate method on top: ▲ better, ▼
    worse, and in bold the gains that Holm's correction keeps of all comparisons with a rival."""
    last = {name: history.last() for name, history in records.histories.items()}
    rows = [["method", "test accuracy (%)", *(f"to {rival}" for rival in rivals)]]
    for name in sorted(last, key=lambda name: -last[name].mean()):
        row = [name, accuracy(records, name)]
        for rival in rivals:
            difference, found = metrics.compare(last[name], last[rival])
            sign = "+" if difference.mean >= 0 else ""
            text = f"{sign}{difference}".replace("-", MINUS)
            text += {"better": " ▲", "worse": " ▼", "inconclusive": ""}[found]
            bold = "**" if name in kept(records, rival) else ""
            row.append("" if name == rival else f"{bold}{text}{bold}")
        rows.append(row)
    return str(report.markdown(rows))


def legend(records, by: str = "seed") -> str:
    """How the table of :func:`versus` is read."""
    return (
        f"Differences in points, paired by {by}; ▲ better, ▼ worse by an interval that excludes zero; bold: a gain that "
        f"remains in Holm's correction for the {len(records.histories) - 1} comparisons of its column."
    )


def table(records) -> str:
    """The table of results and the line that says how they were measured."""
    found = report.results_table(records.histories, teacher=records.teacher)
    return f"{found}\n\n*{report.protocols(records.histories)}.*"


def protocol(records) -> str:
    """How a table was measured, from its first record."""
    return report.protocol(next(iter(records.histories.values())))


def recorded(name: str) -> report.Records:
    """The records of a table; those of baselines that were measured beside a demo stand in it."""
    records = report.recorded(name)
    if name.endswith("/demo") and (HERE / name / "../baselines/records.json").exists():
        beside = report.recorded(name.replace("demo", "baselines")).histories
        records = records._replace(histories=records.histories | beside)
    return records


def shapes() -> str:
    """The embedded set: the demo's methods with ten seeds, and with half the labels."""
    records, half = report.recorded("shapes"), report.recorded("labels/labels-128")
    more, few = map(report.recorded, ("unlabelled/labels-4096", "controls"))
    less, new = map(report.recorded, ("unlabelled/labels-1024", "unlabelled/unseen-1024"))
    answers = "SoftLogits(alpha=1.0)"
    verdict(more, answers, "inconclusive")
    (count,) = {f"{r.histories[answers].config['data']['train']:,}" for r in (less, new)}
    pictures, of = (f"{each.histories['plain'].config['data']['train']:,}" for each in (more, few))
    steps = {
        h.epochs * h.config["data"]["train"] for r in (more, few) for h in r.histories.values()
    }
    require(len(steps) == 1, "they take different numbers of steps: rewrite this")
    which = report.recorded("which_teacher")
    seeds, (whole, early, _, small, alike) = which.histories["plain"].seeds, which_teacher.KINDS
    both, attention = "SoftLogits + AT(beta=100)", "AT(beta=100)"
    verdict(records, attention, "inconclusive")
    return f"""{table(records)} Intervals are 95 % over seeds, differences are paired by seed, and a verdict needs the interval to exclude zero. The recipe and attention's weight, 100, were chosen with these test pictures in view.

![Test accuracy of four ways to train the same student, one dot per seed](figures/shapes/comparison.png)

With 256 labelled pictures the small student stays below its teacher, which was trained on 16,000. Soft logits gain {verdict(records, "SoftLogits", "better")} points, {verdict(records, both, "better")} with attention beside them; attention transfer alone, at weight 100, makes no difference that ten seeds could show. With *half* the labels, and with them half the steps, the plain student falls to {accuracy(half, "plain")} %, soft logits gain {verdict(half, "SoftLogits", "better")}, and attention {verdict(half, attention, "better")}; which of the two gains more, ten seeds don't tell ({verdict(half, attention, "inconclusive", "SoftLogits")} lie between them, [figures/labels](figures/labels)).

A teacher can also answer for pictures whose labels a student lacks. Taught by its answers alone on {pictures} of them, in as many steps as on {of} above, the student has {accuracy(more, answers)} % ({accuracy(few, answers)} on the {of}); with the labels of all {pictures} it would have {accuracy(more, "plain")}. (The teacher was trained on these pictures, with their labels; {count} that it has never seen bring {accuracy(new, answers)} %, {count} of the others {accuracy(less, answers)}: [02](notebooks/02_soft_logits.ipynb#Pictures-without-labels), [figures/unlabelled](figures/unlabelled).)

The most accurate teacher wasn't the best one. Where each of {WORDS[len(seeds)]} seeds has a teacher of its own, students gain {verdict(which, early, "better")} points on labels alone from the demo's network stopped after three epochs of nine, {verdict(which, small, "better")} from one as small as themselves, {verdict(which, alike, "better")} from one that has seen no more than their own {of} pictures, and {verdict(which, whole, "inconclusive")}, undecided, from the demo's trained to its end ([02](notebooks/02_soft_logits.ipynb#Which-teacher?), [figures/which_teacher](figures/which_teacher))."""


def short() -> str:
    """What has been found so far, in a few sentences."""
    embedded, cifar = report.recorded("draws"), recorded("reduced/demo")
    pair = recorded("short/demo")
    epochs = WORDS[pair.histories["plain"].protocol["epochs"]]
    both, attention = "SoftLogits + AT(beta=1000)", "AT(beta=1000)"
    verdict(cifar, both, "inconclusive", "Longer")
    seeds = lambda records: WORDS[len(records.histories["plain"].seeds)]
    full = (HERE / "full" / "demo" / "records.json").exists()
    teacher = History.load(HERE / "short" / "demo" / compare.TEACHER)
    runs = embedded.histories
    timed = charts.timed(report.recorded("offline").histories)  # the draws' own were too disturbed
    slow = timed["ReviewKD"].seconds() / timed["Longer"].seconds()
    sizes = runs["SimKD"].protocol
    larger = 100 * (sizes["deployed_parameters"] / sizes["parameters"] - 1)
    return (
        "**In short.** On 256 labelled pictures, a teacher that has seen more helps: "
        f"{quoted(kept(embedded, 'Longer'))} beat plain training for twice as long by more than chance (`ReviewKD` "
        f"in {slow:.1f} times its time, `SimKD` with a network {larger:.0f} % larger), over "
        f"{WORDS[len(embedded.histories['plain'].seeds)]} draws of the pictures and corrected for "
        f"{len(embedded.histories) - 1} comparisons. On a JPEG copy of CIFAR-10 at reduced scale, over "
        f"{seeds(cifar)} seeds, plain training for twice as long can't be told from soft logits with attention; `OFD` is "
        f"{verdict(recorded('reduced/offline'), 'OFD', 'better', 'Longer')} points ahead of it. With the original's pair and "
        f"all {pair.histories['plain'].config['data']['train']:,} pictures of that copy, but {epochs} epochs in place of 200 and {seeds(pair)} seeds, attention transfer gains {verdict(pair, attention, 'better')} points over "
        f"plain training, and {verdict(pair, attention, 'better', SAME_WORK)} over plain training with about as many operations; "
        f"`OFD`, which transfers maps from before the ReLU, gains {verdict(pair, 'OFD', 'better')} and "
        f"{verdict(pair, 'OFD', 'better', SAME_WORK)}, and closes {closed(pair, 'OFD')} % of the gap to the teacher of "
        f"{WORDS[teacher.protocol['epochs']]} epochs that taught it, the least accurate of {WORDS[len(teacher.seeds)]} that were trained. At full scale "
        f"{'the table below says' if full else 'nothing has been measured yet'}."
    )


def baseline_says() -> str:
    """What the plain runs of the five-seed tables are among the ten of the demo's."""
    ten, few = report.recorded("shapes").histories, report.recorded("offline").histories
    count = len(few["plain"].seeds)
    for name in ("plain", "SoftLogits"):
        same = np.array_equal(ten[name].last()[:count], few[name].last())
        require(same, f"the runs of {name} are not the first of the demo's: rewrite this")
    low = ten["plain"].last().mean() - few["plain"].last().mean()
    require(low > 0, "the plain runs are not low ones: rewrite this")
    others = {name: ten[name].last()[count:] for name in ("plain", "SoftLogits")}
    gain, found = metrics.compare(others["SoftLogits"], others["plain"])
    return (
        f"The plain runs behind these tables are the first {WORDS[count]} of the ten above, and low ones: "
        f"{accuracy(report.recorded('offline'), 'plain')} %, where the other {WORDS[len(others['plain'])]} have "
        f"{metrics.interval(others['plain'])} %. Against the mean of all ten, gains over plain training are "
        f"{100 * low:.1f} points smaller; with the other seeds soft logits gain {gain} ({found})."
    )


def methods() -> str:
    """Every method on the embedded set: what the three tables show."""
    records, online, alone = (report.recorded(name) for name in ("offline", "online", "self"))
    cheap = lambda name: records.histories[name].protocol["teacher_passes"] == 1
    better = [name for name in judged(records, "better") if cheap(name)]
    late = [name for name in better if name not in judged(records, "better", "Longer")]
    ahead = [name for name in judged(records, "better", "SoftLogits") if cheap(name)]
    lower = list(reversed(judged(records, "worse")))
    own, deep = "CSKD", "BYOT(alpha=0, beta=0)"
    for others, expected in ((online, set()), (alone, {own})):
        beat = {*judged(others, "better")} - {"Longer"}
        require(beat == expected, f"{beat} beat plain: rewrite this")
        require(not judged(others, "better", "Longer"), "a method beats Longer: rewrite this")
        require(kept(others) == ["Longer"], f"{kept(others)} remain: rewrite this")
    scores = lambda names: ", ".join(f"`{name}` {accuracy(records, name)}" for name in names)
    remain = {base: quoted(kept(records, base)) for base in ("plain", "Longer", "SoftLogits")}
    seeds = WORDS[len(records.histories["plain"].seeds)]
    return f"""![Test accuracy of every distiller on the embedded set, one dot per seed](figures/offline/comparison.png)

*{protocol(records)}. Blue: better than plain training (black) by an interval that excludes zero; orange: worse; grey: neither.* Four things to read from them:

- Plain training reaches {accuracy(records, "plain")} %, and {accuracy(records, "Longer")} % with twice the epochs. {WORDS[len(better)].capitalize()} distillers beat it by more than chance at one forward pass of the teacher per picture ({scores(better)}); all of them but {quoted(late)} also beat twice the epochs. {quoted(ahead)} are ahead of `SoftLogits` by more than chance. Each of these intervals stands for itself. Corrected for the {len(records.histories) - 1} comparisons of a column (Holm, notebook [06](notebooks/06_method_zoo.ipynb)), these gains remain: over plain training those of {remain["plain"]}, over twice the epochs those of {remain["Longer"]}, and over soft logits those of {remain["SoftLogits"]}. The teacher was trained on 16,000 labelled pictures: these rows show what it hands over to a student with 256, not what its compute is worth.
- {baseline_says()}
- Published settings do not travel by themselves: {scores(lower)} are far below plain training at this length, learning rate and batch. For `RKD` and `SP` notebook [06](notebooks/06_method_zoo.ipynb) shows that a smaller weight helps, one seed each; `CC` stays down with one, and the others were not examined. The weights of `SP` and `PKT` are for batches of 64, and twice as strong with 32.
- Of the online and self-distillation methods one beats plain training by more than chance: `{own}`, where a picture learns from another one of its class, with {accuracy(alone, own)} %, a gain of {verdict(alone, own, "better")} that doesn't remain in Holm's correction. None is ahead of twice the epochs by more than chance. Deep supervision, `BYOT` without its distillation (`alpha=0, beta=0`), gains {verdict(alone, deep, "inconclusive")}, which {seeds} seeds can't tell from nothing.

![What share of its distance to the teacher each distiller closes, paired by seed](figures/offline/gap.png)"""


def draws() -> str:
    """Results over ten draws of the labelled pictures, beside those of one draw."""
    records, one = report.recorded("draws"), report.recorded("shapes").histories["plain"].last()
    last = {name: history.last() for name, history in records.histories.items()}
    plain, count = last["plain"], WORDS[len(last["plain"])]
    rivals = "plain", "SoftLogits", "Longer"
    require(plain.std() > one.std(), "draws add nothing to seeds: rewrite this")
    ahead = judged(records, "better", "Longer")
    lost = [
        n
        for n in judged(report.recorded("offline"), "better", "Longer")
        if n in last and n not in ahead
    ]
    spread = lambda values: f"{100 * values.std(ddof=1):.1f}"
    total, seeds = plain.var(ddof=1), one.var(ddof=1)
    freedom = len(plain) - 1, len(one) - 1
    p = stats.f.sf(total / seeds, *freedom)
    ratios = total / seeds, *(total / seeds / stats.f.ppf(q, *freedom) for q in (0.975, 0.025))
    own, low, high = (100 * np.sqrt(max(ratio - 1, 0) * seeds) for ratio in ratios)
    require(p > 0.05 and low == 0, "draws vary more than that: rewrite this")
    tables = [report.recorded(name).histories for name in ("offline", "online", "self")]
    rows = len({name for table in tables for name in table} - {"Longer"})
    return (
        f"All tables of the embedded set so far share one draw of the 256 labelled pictures. Here each of {count} seeds has a draw of "
        f"its own, so that intervals are over pictures too. Plain training's accuracy has a standard deviation of "
        f"{spread(plain)} points, from {100 * plain.min():.1f} to {100 * plain.max():.1f} %; the {WORDS[len(one)]} seeds on "
        f"one draw above, {spread(one)}. The first holds both, seed and draw: if they add, the draw's part is "
        f"{own:.1f} points, but anything from 0 to {high:.1f} by its 95 % interval: so few runs show neither that the draw has an "
        f"effect (F test, p = {p:.2f}) nor that it has none. Run again were attention transfer and the methods that had "
        "beaten plain training on the one draw; the test pictures are the same."
        f"\n\n{versus(records, rivals)}\n\n"
        f"*{protocol(records)}. {legend(records, 'draw and seed')}*\n\n"
        f"{quoted(ahead)} beat twice the epochs; the gains of {quoted(kept(records, 'Longer'))} remain in Holm's correction, "
        f"and beside all {rows} other rows of the three tables, from which these were picked, those of "
        f"{quoted(kept(records, 'Longer', rows))}."
        + (
            f" Of those that did on one draw, {quoted(lost)} can't be told from it here."
            if lost
            else ""
        )
    )


def full() -> str:
    """The original's table and ours; rows that nobody has measured say so."""
    folder = HERE / "full" / "demo"
    there = (folder / "records.json").exists()
    records = report.recorded("full/demo") if there else None
    rows = [["method", "original (one run, %)", "here (%)", "difference to plain", "verdict"]]
    for name, published in ORIGINAL.items():
        row = [name, f"{published}" if published else "", "not measured", "", ""]
        if there and name == "teacher":
            row[2] = str(metrics.interval(History.load(folder / compare.TEACHER).last()))
        elif there and name in records.histories:
            row[2] = accuracy(records, name)
            if name != "plain":
                base = records.histories["plain"].last()
                row[3:] = map(str, metrics.compare(records.histories[name].last(), base))
        rows.append(row)
    how = protocol(records) if there else "ResNet-56 to ResNet-32, CIFAR-10, 200 epochs, 5 seeds"
    return f"{report.markdown(rows)}\n\n*{how}.*"


def pair_says() -> str:
    """What the original's pair shows in a few epochs: differences with their verdicts, in words."""
    records = recorded("short/demo")
    here = taught(records)
    best = max(here, key=lambda name: records.histories[name].last().mean())
    above = History.load(HERE / "short" / "demo" / compare.TEACHER)
    ahead = judged(records, "better", SAME_WORK)
    again = [n for n in here if n in judged(recorded("reduced/offline"), "better", "Longer")]
    require(
        best in again and {*again} < {*ahead},
        f"{ahead} beat {SAME_WORK} here and {again} twice the epochs at reduced scale: rewrite this",
    )
    require(above.last().argmin() == 0, "another teacher is lower: rewrite this")
    (second,) = (name for name in again if name != best)
    alone = kept(records, "AT(beta=1000)") == [best]
    require(alone, f"not {best} alone beats attention transfer: rewrite this")
    verdict(records, best, "inconclusive", second)
    return (
        f"{versus(records, ('plain', SAME_WORK, 'AT(beta=1000)'))}\n\n"
        f"*{legend(records)}*\n\n"
        f"`{SAME_WORK}` is the plain student with half as many epochs again, {work(records, above, SAME_WORK)}. "
        "So over so few epochs this teacher, once it is there, is worth more than the same compute spent on the "
        f"student, by {quoted(ahead)}; of these, only {quoted(again)} showed that at the reduced scale too (and were "
        "run here because they led there, on the same test pictures; the other distillers of that table were not run "
        f"here). `{best}` alone beats attention transfer, and can't be told from `{second}`.\n\n"
        f"`{best}` closes {closed(records, best)} % of the gap to "
        f"its teacher of {WORDS[above.protocol['epochs']]} epochs (an interval over seeds, with this one teacher and "
        f"these test pictures). That teacher, with {100 * records.teacher:.1f} %, is the lowest of "
        f"{WORDS[len(above.seeds)]} that were trained ({metrics.interval(above.last())} %). {by_teacher(records, above)}\n\n"
        "Such short runs say how fast a student learns, not where it ends, and part of the gains may be the start "
        "of the blocks, as it was at the reduced scale. Other work shared the cores at times, so times are rough."
    )


def by_teacher(records, above: History) -> str:
    """What the students of one seed, each taught by another of the teachers, end at."""
    first = records.histories[teachers.METHOD]
    others = [History.load(teachers.record_of(seed)) for seed in teachers.others()]
    settings = lambda record: record.config | {"teacher": None, "seeds": record.seeds[:1]}
    alike = all(settings(record) == settings(first) for record in others)
    require(alike, "other teachers taught other runs than the table's: measure them anew")
    students = np.array([record.last()[0] for record in (first, *others)])
    plain = records.histories["plain"].last().mean()
    share = metrics.interval((students - plain) / (above.last() - plain))
    points = lambda values: listed([f"{100 * value:.1f}" for value in values])
    return (
        f"Taught by each of them, students of seed {above.seeds[0]} end at {points(students)} % (teachers: "
        f"{points(above.last())} %) and close {share} % of the gap to their own teacher, here an interval over "
        "teachers (`python -m figures.teachers`; the other teachers and their students on "
        f"{others[0].protocol['device']})."
    )


def pair() -> str:
    """The original's pair on all pictures, for as many epochs as a CPU has time for."""
    return f"""{table(recorded("short/demo"))}

![Training loss (each method's own sum, so heights can't be compared) and test accuracy of ResNet-32 by epoch, plain, plain for half as long again, and taught by ResNet-56, on all of CIFAR-10, JPEG copy; means of three seeds and their range](figures/short/demo/curves.png)

{pair_says()}"""


def reduced_says() -> str:
    """What the comparison on CIFAR-10 at reduced scale shows, each difference with its verdict."""
    records = recorded("reduced/demo")
    above = History.load(HERE / "reduced" / "demo" / compare.TEACHER)
    here = taught(records)
    require(not judged(records, "better", "Longer"), "a method beats Longer: rewrite this")
    best = max(here, key=lambda name: records.histories[name].last().mean())
    return (
        f"Against `Longer`, the plain student with twice the epochs, {work(records, above, 'Longer')}: "
        f"{against(records, 'Longer', here)}. So with these losses "
        f"{WORDS[len(records.histories['plain'].seeds)]} seeds don't show that the teacher is "
        f"worth more than the same compute spent on the student. `{best}` "
        f"closes {closed(records, best)} % of the gap to a teacher of {100 * records.teacher:.1f} %, "
        f"the first of {WORDS[len(above.seeds)]} that were trained "
        f"({metrics.interval(above.last())} %). Other work shared the cores while all but `plain`, `Longer` and, "
        "below, `DKD` were trained, so their training times are too long."
    )


def winners_say() -> str:
    """How distillers that beat twice the epochs on the embedded set do on CIFAR-10, where measured."""
    records, embedded = report.recorded("reduced/offline"), report.recorded("offline")
    winners = judged(embedded, "better", "Longer")
    names = [name for name in winners if name in records.histories]
    which = f"{WORDS[len(names)]} of the" if names != winners else f"all {WORDS[len(names)]}"
    ahead, (best, second) = judged(records, "better", "Longer"), ("CATKD", "OFD")
    require(ahead == [best, second], f"{ahead} beat Longer: rewrite this")
    verdict(records, best, "inconclusive", second)
    (behind,) = judged(records, "worse")
    require({*names} - {*judged(records, "better")} == {behind}, "not all beat plain: rewrite this")
    return (
        f"{which.capitalize()} distillers that beat twice the epochs on the embedded set have been measured on "
        "these pictures too, with their published weights (but `FSP`'s, which its sources train first and alone; to "
        "add it to the cross-entropy with weight 1 is ours):\n\n"
        f"{versus(records, ('plain', 'SoftLogits', 'Longer'))}\n\n"
        f"*{legend(records)}*\n\n"
        f"Only `{second}` and `{best}` beat twice the epochs here too, and in Holm's correction "
        f"{quoted(kept(records, 'Longer'))} alone; `{best}` closes {closed(records, best)} % of the gap to the "
        "teacher. Three seeds don't tell which of the two is better. All but one are ahead of plain training: "
        f"{against(records, 'plain', [behind])}. What leads on one data set can be last on another."
    )


def alone_says() -> str:
    """How methods without a pretrained teacher do on CIFAR-10, where measured."""
    said, better = [], []
    for name in ("online", "self"):
        records = report.recorded(f"reduced/{name}")
        names = [name for name in records.histories if name not in ("plain", "Longer")]
        better += judged(records, "better")
        behind = {*names} <= {*judged(records, "worse", "Longer")}
        require(behind, "not all are behind Longer: rewrite this")
        said.append(against(records, "plain", names))
    require("BYOT(alpha=0, beta=0)" in better, "deep supervision isn't better: rewrite this")
    require(set(better) <= {"Longer", "BYOT(alpha=0, beta=0)"}, "more are better: rewrite this")
    remains = "BYOT(alpha=0, beta=0)" in kept(report.recorded("reduced/self"))
    corrected = f"a gain that {'remains' if remains else 'does not remain'} in Holm's correction"
    winner, base = (records.histories[name].last() for name in ("CSKD", "plain"))
    words = {"worse": "is behind", "inconclusive": "can't be told from"}
    here = words[metrics.compare(winner, base)[1]]  # a third verdict is refused above
    return (
        "Methods without a pretrained teacher, of which a few have been measured: against the plain student "
        f"{'; '.join(said)}. All of them are behind twice the epochs. The one that beats plain "
        f"training by more than chance is deep supervision, `BYOT` without its distillation ({corrected}); "
        f"on the embedded set it was `CSKD`, which {here} plain training here."
    )


def start_says() -> str:
    """What the start of the blocks is worth in the reduced table."""
    other, here = report.recorded("reduced/start"), recorded("reduced/demo")
    ours, theirs = (
        {n: h.last() for n, h in records.histories.items()} for records in (here, other)
    )
    rise = verdict_of(theirs["plain"], ours["plain"], "better")
    gain = verdict(other, "SoftLogits", "better")
    less = verdict_of(
        theirs["SoftLogits"] - theirs["plain"], ours["SoftLogits"] - ours["plain"], "worse"
    )
    return (
        "Part of soft logits' gain is the start: blocks start as the identity, which in so short a run holds a plain "
        "student back more than a taught one (notebook [03](03_attention_transfer.ipynb)). Without that "
        f"(`zero_init=False`, the same seeds, {other.histories['plain'].protocol['device']}, figures/reduced/start) plain training reaches {accuracy(other, 'plain')} %, {rise} "
        f"points more, and soft logits {accuracy(other, 'SoftLogits')} %: a gain of {gain}, smaller by {less}. "
        "The other rows were not measured so."
    )


def reduced() -> str:
    """CIFAR-10 at a scale that a CPU can measure: table, figure, sentences."""
    records = recorded("reduced/demo")
    return f"""{table(records)}

![Test accuracy on CIFAR-10, JPEG copy, at reduced scale, one dot per seed](figures/reduced/demo/comparison.png)

{reduced_says()}

{start_says().replace("](03", "](notebooks/03")} The recipe is the original's, shortened: ten epochs leave a student unfinished.

{winners_say()} The table is [figures/reduced/offline](figures/reduced/offline/table.md).

{alone_says()} The tables are [figures/reduced/online](figures/reduced/online/table.md) and [figures/reduced/self](figures/reduced/self/table.md)."""


def notebooks() -> str:
    """What each notebook does, and how long its recorded run took."""
    rows = [["notebook", "what it does",
             "seconds, `workshop` preset, one CPU core, another job beside it"]]  # fmt: skip
    for name, does in NOTEBOOKS.items():
        path = f"notebooks/{name}.ipynb"
        seconds = json.loads((README.parent / path).read_text())["metadata"]["kdlib"]["seconds"]
        rows.append([f"[{name}]({path})", does, str(seconds or "not measured")])
    return report.markdown(rows)


def networks() -> str:
    """The networks of ``pretrained/``, from their manifest."""
    rows = [["file", "network", "trained with", "pictures", "epochs", "seed", "test accuracy (%)",
             "all seeds (%)"]]  # fmt: skip
    for name, facts in checkpoint.manifest().items():
        data, every = facts["data"], facts.get("every_seed")
        rows.append([
            f"`{name}`", facts["architecture"],
            facts.get("method", facts["distiller"]) + " (chosen on the test set)" * ("chosen" in facts),
            f"{data['train']:,} of {data['source']}", str(facts["recipe"]["epochs"]),
            str(facts["seed"]), f"{100 * facts['test_accuracy']:.2f}",
            str(metrics.interval(every)) if every and len(every) > 1 else "",
        ])  # fmt: skip
    return report.markdown(rows)


BLOCKS = {
    "short": short, "shapes": shapes, "full": full, "pair": pair, "reduced": reduced, "methods": methods, "draws": draws,
    "notebooks": notebooks, "networks": networks,
}  # fmt: skip


def fill(text: str) -> str:
    """A text whose blocks are written anew from the records; ValueError for an unknown block."""

    def write(match):
        require(match[2] in BLOCKS, f"no block '{match[2]}': there are {', '.join(BLOCKS)}")
        return f"{match[1]}\n{BLOCKS[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- draw\.py: (\w+) -->)\n.*?\n(<!-- end -->)", write, text, flags=re.DOTALL)


def comparison(records):
    """Test accuracies, the best method on top, in the colour of the verdict against plain training."""
    base = records.histories["plain"].last()
    last = {name: history.last() for name, history in records.histories.items()}
    order = sorted(last, key=lambda name: -last[name].mean())
    verdicts = {name: metrics.compare(last[name], base)[1] for name in order}
    colours = [charts.VERDICTS[verdict] for verdict in (verdicts | {"plain": "plain"}).values()]
    return plots.comparison({name: last[name] for name in order}, records.teacher, colours=colours)


def draw(records, folder: pathlib.Path) -> None:
    """The figures of a table, written to its folder."""
    teacher, histories = records
    curves = plots.curves if len(histories) <= len(plots.COLOURS) else charts.panels
    for name, figure in {
        "curves": curves(histories, teacher=teacher), "comparison": comparison(records),
        "cost": charts.cost(histories), "calibration": charts.calibration(histories),
        "gap": charts.gap_closed(histories, teacher),
    }.items():  # fmt: skip
        plots.save(figure, folder / f"{name}.png")


def attention(folder: pathlib.Path) -> None:
    """Attention on the object by epoch, and the maps of one seed, from ``watch.py``'s record."""
    record = json.loads((folder / "record.json").read_text())
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for place, (name, found) in enumerate(record["methods"].items()):
        shares, colour = 100 * np.array(found["shares"]), plots.COLOURS[place]
        axis.plot(found["epochs"], shares.mean(0), label=name, color=colour)
        axis.fill_between(
            found["epochs"], shares.min(0), shares.max(0), color=colour, alpha=0.15, lw=0
        )
    for level, words in ((record["teacher"]["share"], "teacher"), (record["area"], "its area")):
        axis.axhline(100 * level, color="black", ls="--", lw=1, marker="")
        axis.annotate(words, (1, 100 * level), (0, 3), textcoords="offset points")
    axis.set(xlabel="epoch", ylabel="attention on the object (%)")
    axis.legend()
    plots.save(figure, folder / "share.png")

    epochs = (1, 8, 24, 48, record["epochs"])
    pictures = load("shapes").test.images[: len(record["teacher"]["maps"])]
    rows = {"": [pictures, record["teacher"]["maps"]]}
    rows |= {name: [found["maps"][str(epoch)] for epoch in epochs]
             for name, found in record["methods"].items()}  # fmt: skip
    figure, axes = plt.subplots(len(rows), len(epochs), figsize=(10, 3.6))
    for line, (name, tiles) in zip(axes, rows.items(), strict=True):
        heads = [f"epoch {epoch}" for epoch in epochs] if name else ["pictures", "teacher"]
        for axis, head, tile in itertools.zip_longest(line, heads, tiles):
            if tile is None:
                axis.axis("off")
                continue
            axis.imshow(np.concatenate(list(np.asarray(tile)), 1), cmap="magma", vmax=0.08)
            axis.set(xticks=[], yticks=[])
            if not name or name == "plain":
                axis.set_title(head, fontsize=9)
        line[0].set_ylabel(name.replace("AT(", "\nAT("), rotation=0, ha="right", va="center",
                           fontsize=9)  # fmt: skip
    plots.save(figure, folder / "maps.png")


def main() -> None:
    plots.use_style()
    for name in TABLES:
        if (HERE / name / "records.json").exists():
            draw(recorded(name), HERE / name)
            compare.tables(recorded(name), HERE / name)
    labels = {int(f.name.removeprefix("labels-")): f for f in (HERE / "labels").glob("labels-*")}
    found = {count: report.Records.load(folder) for count, folder in labels.items()}
    for count, records in found.items():
        compare.tables(records, labels[count])
    curves = {count: records.histories for count, records in found.items()}
    plots.save(plots.efficiency(curves), HERE / "labels" / "efficiency.png")
    attention(HERE / "attention")
    README.write_text(fill(README.read_text()))


if __name__ == "__main__":
    main()
