"""What EDM has to reach, and whether it did: a line each, computed from the run's own figures."""
import statistics

from figures import ratio

PAGING = "paging.half.t1.l50"
ENOUGH = 5   # figures; a verdict from fewer has a question mark
PAIRS = 20   # the same for overheads of a few per cent
FLAT = 1.25  # "flat": the dearest point costs at most so much of the cheapest

# what, workload, base, variant, metric, at least (base / variant)
LEAST = [
    ("random read+write, against zram", PAGING, "zram", "edm", "random", 1.8),
    ("random read+write, against a file", PAGING, "file", "edm", "random", 5),
    ("random read+write, lz4, against zram", PAGING, "zram", "edm-lz4", "random", 1.2),
    ("scan, lz4, against zram", PAGING, "zram", "edm-lz4", "scan", 3),
    ("scan, against zram", PAGING, "zram", "edm", "scan", 6),
    ("scan, against a file", PAGING, "file", "edm", "scan", 5),
    ("fill, against zram", PAGING, "zram", "edm", "fill", 2.5),
    ("fill, against a file", PAGING, "file", "edm", "fill", 2),
    ("zipf-hot set plus scans, against zram", PAGING, "zram", "edm", "zipf", 1.5),
    ("random, disk store alone, against a file", PAGING, "file", "edm-disk", "random", 2),
    ("scan, disk store alone, against a file", PAGING, "file", "edm-disk", "scan", 4),
]
# what, workload, variant, base, metric, at most (variant / base)
MOST = [
    ("fault p50, page in the memory store, of the bare minimum", "latency", "edm", "raw", "p50", 1.3),
    ("fault p99, page in the memory store, of the bare minimum", "latency", "edm", "raw", "p99", 3),
]
PROGRAMS = ["sort", "sqlite", "redis", "python", "graph"]


def own_metric(figures, key):
    """A program that times itself knows best."""
    return "own" if figures.values(key, "edm", "own") else "seconds"


def base_of(figures, key):
    """What a program that fits is compared with."""
    return "native" if "native" in figures.of[key] else "jemalloc"


def line(what, target, values, reached, digits=2, note="", turns=None, enough=None):
    """turns: how many figures stand behind it, where that is not the number of values."""
    if not values:
        return (what, target, "–", "", "not measured")
    turns = len(values) if turns is None else turns
    said = "reached" if reached(statistics.median(values)) else "**missed**"
    return (what, target, ratio(values, digits) + note, str(turns), said + ("" if turns >= (enough or ENOUGH) else "?"))


def least(figures, what, key, base, variant, metric, bound, sign="≥"):
    values = figures.ratios(key, base, variant, metric)
    above = (lambda x: x > bound) if sign == ">" else (lambda x: x >= bound)
    return line(what, f"{sign} {bound:g} ×", values, above)


def most(figures, what, key, variant, base, metric, bound, digits=2, note="", enough=None):
    values = figures.ratios(key, variant, base, metric)
    return line(what, f"≤ {bound:g} ×", values, lambda x: x <= bound, digits, note, enough=enough)


def programs(figures):
    lines, against, turns = [], [], []
    for name in PROGRAMS:
        for base in ("zram", "file"):
            lines.append(least(figures, f"{name}, elapsed, against {base}", f"program.{name}", base, "edm",
                               "seconds", 1, ">"))
        ratios = figures.ratios(f"program.{name}", "file", "edm", "seconds")
        against += [statistics.median(ratios)] if ratios else []
        turns.append(len(ratios))
    lines.append(line(f"median of {len(against)} programs, against a file", "≥ 2 ×", against, lambda x: x >= 2,
                      turns=min(turns)))
    return lines


def fits(figures):
    lines = []
    for key in figures.keys("fits."):
        metric = own_metric(figures, key)
        base = base_of(figures, key)
        noise = figures.ratios(key, "again", base, metric)
        note = f"; native again {ratio(noise, 3)}" if noise else ""
        bound = 1.05 if key == "fits.touch" else 1.02
        lines.append(most(figures, f"{key[5:]}, all of it local, of {base}", key, "edm", base, metric, bound, 3,
                          note, PAIRS))
    return lines


def scale(figures):
    lines = []
    for key, what in (("space", "1 GiB to 1 TiB"), ("mappings", "10 to 50,000 mappings"),
                      ("instances", "1 to 100 instances")):
        points = figures.of.get(f"scale.{key}", {})
        taken = [t for t in (figures.values(f"scale.{key}", p, "p50") for p in points) if t]
        medians = [statistics.median(t) for t in taken]
        worst = [max(medians) / min(medians)] if len(medians) > 1 else []
        lines.append(line(f"fault p50, {what}: dearest of cheapest", f"≤ {FLAT} ×", worst, lambda x: x <= FLAT,
                          turns=min(map(len, taken), default=0)))
    shares = [v for p in figures.of.get("scale.metadata", {})
              for v in figures.values("scale.metadata", p, "percent")]
    lines.append(line("metadata, per cent of managed bytes", "≤ 0.5", shares, lambda x: x <= 0.5))
    return lines


def all_of(figures):
    """[(what, target, measured, figures, said)]"""
    return ([least(figures, *t) for t in LEAST] + programs(figures) + fits(figures)
            + [most(figures, *t) for t in MOST] + scale(figures))
