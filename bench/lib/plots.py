"""The plots of a report, as SVG (text stays text) and PNG. Colours are Okabe and Ito's, which colour-blind
people can tell apart, and every variant has a mark of its own besides."""
import re
import statistics

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter # noqa: E402

import targets # noqa: E402
from figures import quartiles # noqa: E402
from variants import KINDS # noqa: E402

LOOK = { # colour, mark
    "native": ("#000000", "o"), "jemalloc": ("#777777", "s"), "again": ("#777777", "s"), "raw": ("#000000", "*"),
    "zram": ("#E69F00", "^"), "file": ("#D55E00", "v"), "edm": ("#0072B2", "D"), "edm-none": ("#332288", "d"),
    "edm-lz4": ("#56B4E9", "P"), "edm-disk": ("#009E73", "X"), "edm-remote": ("#CC79A7", "h")}
PHASES = ["fill", "random", "scan", "stride", "zipf", "chase"]

plt.rcParams.update({
    "svg.fonttype": "none", "svg.hashsalt": "edm", "font.family": "DejaVu Sans", "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.edgecolor": "#666666", "axes.titlesize": 10.5,
    "axes.titleweight": "bold", "legend.frameon": False, "figure.constrained_layout.use": True})


def link(name):
    return f"plots/{name}.svg"


def name_of(variant):
    return KINDS[variant][0] if variant in KINDS else "bare minimum"


def plain(x, _=None):
    return f"{x:,.0f}" if x >= 1 else f"{x:g}"


def log_axis(axis):
    """With labels enough, also where it spans less than a decade."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_formatter(NullFormatter())


def save(figure, folder, name):
    figure.savefig(f"{folder}/{name}.svg", metadata={"Date": None})
    figure.savefig(f"{folder}/{name}.png", dpi=110)
    plt.close(figure)


def legend(figure, axes, columns=4):
    """One for all panels, above them."""
    found = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            found.setdefault(label, handle)
    inches = 0.1 + 0.24 * -(-len(found) // columns)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, rect=(0, 0, 1, 1 - inches / figure.get_figheight()))
    figure.legend(found.values(), found.keys(), loc="upper left", ncol=columns)


def dots(axis, places, values, variant, horizontal=False):
    """Median as a mark, least to most as a line behind it; places without values are left out."""
    colour, mark = LOOK[variant]
    kept = [(p, v) for p, v in zip(places, values) if v]
    if not kept:
        return
    at, mid = [p for p, _ in kept], [statistics.median(v) for _, v in kept]
    low, high = [min(v) for _, v in kept], [max(v) for _, v in kept]
    lines = axis.hlines if horizontal else axis.vlines
    lines(at, low, high, color=colour, linewidth=2, alpha=0.45)
    xy = (mid, at) if horizontal else (at, mid)
    axis.plot(*xy, mark, color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.7,
              label=name_of(variant), linestyle="none")


def offsets(count, width=0.86):
    return [(i - (count - 1) / 2) * width / max(count, 1) for i in range(count)]


def paging_panel(axis, figures, key):
    """Without native, which is so far below that nothing else could be told apart: it is written."""
    found = [v for v in figures.of[key] if v not in ("native", "jemalloc")]
    for variant, offset in zip(found, offsets(len(found))):
        dots(axis, [i + offset for i in range(len(PHASES))],
             [figures.values(key, variant, p) for p in PHASES], variant)
    for i, phase in enumerate(PHASES):
        native = figures.median(key, "native", phase)
        axis.text(i, 0.015, f"native\n{native:.2g}" if native else "", ha="center", va="bottom", fontsize=8,
                  color="#555555", transform=axis.get_xaxis_transform())
    _, _, threads, share = key.split(".")
    axis.set_title(f"{threads[1:]} thread{'s' * (threads != 't1')}, {share[1:]} % local", loc="left")
    axis.set_xticks(range(len(PHASES)), PHASES)
    axis.grid(axis="x", visible=False)
    for i in range(1, len(PHASES)):
        axis.axvline(i - 0.5, color="#eeeeee", linewidth=1)
    axis.set_xlim(-0.5, len(PHASES) - 0.5)


def paging_axis(axis, figures, keys):
    values = [x for k in keys for v in figures.of[k] if v not in ("native", "jemalloc")
              for p in PHASES for x in figures.values(k, v, p)] or [1]
    axis.set_yscale("log")
    axis.set_ylim(min(values) / 2.2, max(values) * 1.3) # room for what is written below
    log_axis(axis.yaxis)


def paging(figures, folder, kind):
    keys = figures.keys(f"paging.{kind}.")
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.4 * columns + 0.6 + 2 * (columns == 1), 3.5 * rows + 1),
                                sharey=True, squeeze=False)
    for axis, key in zip(axes.flat, keys):
        paging_panel(axis, figures, key)
    paging_axis(axes[0][0], figures, keys)
    for axis in list(axes.flat)[len(keys):]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel("µs per page or operation (log)")
    legend(figure, axes.flat, 4 if columns > 1 else 3)
    save(figure, folder, f"paging-{kind}")


def memory(figures, folder):
    """What program and store take together, by the cgroups' count."""
    key = next(iter(figures.keys("paging.half.t1.l50") + figures.keys("paging.")))
    found = [v for v in figures.of[key] if figures.values(key, v, "program_mib")]
    figure, axis = plt.subplots(figsize=(8.5, 0.42 * len(found) + 1.6))
    for i, v in enumerate(found):
        program, store = (figures.median(key, v, m) for m in ("program_mib", "store_mib"))
        axis.barh(i, program, color="#0072B2", label="program" if i == 0 else None, height=0.62)
        axis.barh(i, store, left=program, color="#E69F00", hatch="///", edgecolor="white", height=0.62,
                  label="zram, or EDM's server" if i == 0 else None)
        axis.text(program + store, i, f" {program + store:,.0f}", va="center")
    axis.set_yticks(range(len(found)), [name_of(v) for v in found])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.1)
    axis.set_xlabel(f"MiB of memory at most ({key})")
    legend(figure, [axis])
    save(figure, folder, "memory")


def rows_of_dots(figures, folder, name, rows, xlabel):
    """rows: [(label, {variant: values})], a line each, on a log scale."""
    figure, axis = plt.subplots(figsize=(9.5, 0.78 * len(rows) + 1.7))
    variants = list(dict.fromkeys(v for _, r in rows for v in r))
    for variant, offset in zip(variants, offsets(len(variants), 0.66)):
        dots(axis, [i + offset for i in range(len(rows))], [r.get(variant, []) for _, r in rows], variant, True)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xscale("log")
    log_axis(axis.xaxis)
    axis.grid(axis="y", visible=False)
    for i in range(1, len(rows)):
        axis.axhline(i - 0.5, color="#dddddd", linewidth=0.8)
    axis.set_xlabel(xlabel)
    legend(figure, [axis], 3)
    save(figure, folder, name)


def latency(figures, folder):
    rows = [(m, {v: figures.values("latency", v, m) for v in figures.of["latency"]}) for m in ("p50", "p99")]
    rows_of_dots(figures, folder, "latency", rows, "µs that one fault takes (log)")


def programs(figures, folder):
    rows = []
    for key in figures.keys("program."):
        rows.append((key[8:], {v: figures.ratios(key, v, "jemalloc", "seconds")
                               for v in figures.of[key] if v != "jemalloc"}))
    rows_of_dots(figures, folder, "programs", rows, "elapsed, relative to native jemalloc with all its memory (log)")


def fits(figures, folder):
    keys = figures.keys("fits.")
    figure, axis = plt.subplots(figsize=(8.5, 0.6 * len(keys) + 1.7))
    for variant, offset in (("again", -0.14), ("edm", 0.14)):
        for i, key in enumerate(keys):
            values = figures.ratios(key, variant, targets.base_of(figures, key), targets.own_metric(figures, key))
            if values:
                percent = [100 * v - 100 for v in values]
                colour, mark = LOOK[variant]
                axis.hlines(i + offset, *quartiles(percent), color=colour, linewidth=3, alpha=0.45)
                axis.plot(statistics.median(percent), i + offset, mark, color=colour, markersize=7,
                          markeredgecolor="white", linestyle="none",
                          label=("EDM" if variant == "edm" else "native again") if i == 0 else None)
    axis.axvline(0, color="#666666", linewidth=1)
    axis.axvline(2, color="#D55E00", linewidth=1, linestyle="--", label="target: 2 %")
    axis.set_yticks(range(len(keys)), [k[5:] for k in keys])
    axis.set_ylim(len(keys) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("% slower than native (median, quartiles of the pairs)")
    legend(figure, [axis])
    save(figure, folder, "fits")


SCALE = {"space": ("Address space, 32 MiB of pages in it", "GiB", ("p50", "p99"), "µs a fault (log)"),
         "mappings": ("Mappings", "mappings", ("p50", "p99"), "µs a fault (log)"),
         "instances": ("Instances", "instances", ("p50", "p99", "all"), "µs a fault (log)"),
         "metadata": ("Metadata", "MiB managed", ("percent",), "% of managed bytes")}
LINES = {"p50": ("p50", "#0072B2", "D-"), "p99": ("p99", "#D55E00", "v-"),
         "all": ("all at work", "#009E73", "X-"), "percent": ("measured", "#0072B2", "D-")}


def scale_panel(axis, figures, key):
    title, xlabel, metrics, ylabel = SCALE[key[6:]]
    points = list(figures.of[key])
    for metric in metrics:
        label, colour, style = LINES[metric]
        found = [(float(p), figures.values(key, p, metric)) for p in points if figures.values(key, p, metric)]
        if found:
            xs = [x for x, _ in found]
            axis.fill_between(xs, [min(v) for _, v in found], [max(v) for _, v in found], color=colour, alpha=0.15,
                              linewidth=0)
            axis.plot(xs, [statistics.median(v) for _, v in found], style, color=colour, label=label,
                      markeredgecolor="white", markersize=7)
    if key == "scale.metadata":
        axis.axhline(0.5, color="#D55E00", linestyle="--", linewidth=1, label="target: 0.5 %")
    axis.set_title(title, loc="left")
    axis.set_xscale("log", base=2 if key in ("scale.space", "scale.metadata") else 10)
    axis.set_xticks([float(p) for p in points], [plain(float(p)) for p in points])
    if key == "scale.metadata":
        axis.set_ylim(bottom=0)
    else:
        axis.set_yscale("log")
        log_axis(axis.yaxis)
    axis.minorticks_off()
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.legend(loc="lower right", bbox_to_anchor=(1.02, 0.99), ncol=3, borderaxespad=0, columnspacing=1,
                handletextpad=0.4)


def scale(figures, folder):
    keys = [k for k in figures.keys("scale.") if any(figures.of[k].values())]
    if not keys:
        return
    columns = min(2, len(keys))
    figure, axes = plt.subplots(-(-len(keys) // columns), columns, squeeze=False,
                                figsize=(5.6 * columns, 3.5 * -(-len(keys) // columns)))
    for axis, key in zip(axes.flat, keys):
        scale_panel(axis, figures, key)
    for axis in list(axes.flat)[len(keys):]:
        axis.set_visible(False)
    save(figure, folder, "scale")


def targets_plot(figures, folder):
    """How far each line is: measured / target, or target / measured where less is better."""
    rows = []
    for what, target, measured, _, said in targets.all_of(figures):
        bound = float(re.search(r"[\d.]+", target)[0])
        if said != "not measured" and float(measured.split()[0]) > 0:
            value = float(measured.split()[0])
            beyond = value / bound if target[0] in "≥>" else bound / value
            rows.append((f"{what}  {target}", beyond, said.startswith("reached")))
    figure, axis = plt.subplots(figsize=(10.5, 0.29 * len(rows) + 1.5))
    for good, colour, mark, label in ((True, "#0072B2", "o", "reached"), (False, "#D55E00", "X", "missed")):
        at = [i for i, r in enumerate(rows) if r[2] == good]
        axis.hlines(at, 1, [rows[i][1] for i in at], color=colour, linewidth=2, alpha=0.5)
        axis.plot([rows[i][1] for i in at], at, mark, color=colour, markersize=7, markeredgecolor="white",
                  linestyle="none", label=label)
    axis.axvline(1, color="#666666", linewidth=1)
    axis.set_yticks(range(len(rows)), [r[0] for r in rows], fontsize=8.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xscale("log")
    log_axis(axis.xaxis)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} ×"))
    axis.set_xlabel("how far beyond (right) or short of (left) the target (log)")
    legend(figure, [axis])
    save(figure, folder, "targets")


def make(figures, folder):
    for kind in sorted({k.split(".")[1] for k in figures.keys("paging.")}):
        paging(figures, folder, kind)
    if figures.keys("paging."):
        memory(figures, folder)
    if "latency" in figures.of:
        latency(figures, folder)
    if figures.keys("program."):
        programs(figures, folder)
    if figures.keys("fits."):
        fits(figures, folder)
    scale(figures, folder)
    if any(l[4] != "not measured" for l in targets.all_of(figures)):
        targets_plot(figures, folder)
