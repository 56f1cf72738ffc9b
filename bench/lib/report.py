"""report.md: tables of a run's figures, and links to the plots."""
import os

import plots
import targets
from figures import Figures, ratio, spread
from variants import KINDS

PHASES = ["fill", "random", "scan", "stride", "zipf", "chase"]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(r) + " |" for r in rows]) + "\n"


def name_of(variant):
    return KINDS[variant][0] if variant in KINDS else "bare minimum" if variant == "raw" else variant


def turns_of(figures, key, variant):
    return str(len(figures.of[key][variant]))


def memory(figures, key, variant):
    """Program + store = both, in MiB."""
    both = [figures.median(key, variant, m) for m in ("program_mib", "store_mib")]
    return "–" if None in both else f"{both[0]:.0f} + {both[1]:.0f} = {sum(both):.0f}"


def against(figures, key, metrics):
    """Rows: by how much EDM's variants need less than kernel swap."""
    rows = []
    for variant, bases in (("edm", ("zram", "file")), ("edm-lz4", ("zram",)), ("edm-disk", ("file",)),
                           ("edm-remote", ("file",))):
        for base in bases:
            cells = [ratio(figures.ratios(key, base, variant, m)) for m in metrics]
            if any(c != "–" for c in cells):
                rows.append([f"*{base} / {variant}*", ""] + cells)
    return rows


def paging(figures, key):
    _, kind, threads, share = key.split(".")
    what = {"half": "pages differ, compress 2:1", "distinct": "pages do not compress"}[kind]
    rows = [[name_of(v), turns_of(figures, key, v)] + [spread(figures.values(key, v, p)) for p in PHASES]
            + [memory(figures, key, v)] for v in figures.of[key]]
    rows += [r + [""] for r in against(figures, key, PHASES)]
    return (f"\n### {threads[1:]} thread{'s' * (threads != 't1')}, {share[1:]} % local, {what}\n\n"
            + table(["µs", "turns"] + PHASES + ["MiB: program + store"], rows))


def paging_section(figures):
    keys = figures.keys("paging.")
    if not keys:
        return ""
    text = ("\n## Paging\n\nµs per page (fill, scan, stride) or operation, by the clock, all threads together: median"
            " (least–most). *base / variant*: median (quartiles) of the ratios turn by turn, above 1 variant is"
            " faster. Memory is the peak, by the cgroups' count: the program's, and the server's or zram's.\n")
    for kind in sorted({k.split(".")[1] for k in keys}, reverse=True):
        text += f"\n![paging]({plots.link(f'paging-{kind}')})\n"
    text += f"\n![memory]({plots.link('memory')})\n"
    return text + "".join(paging(figures, k) for k in keys)


def latency_section(figures):
    if "latency" not in figures.of:
        return ""
    rows = [[name_of(v), turns_of(figures, "latency", v)]
            + [spread(figures.values("latency", v, m)) for m in ("p50", "p99")]
            + [ratio(figures.ratios("latency", v, "raw", m)) for m in ("p50", "p99")]
            for v in figures.of["latency"]]
    return ("\n## One fault\n\nµs that a touch of a page takes that is away, one thread, random pages, half of the"
            " memory local. The bare minimum is `fault_raw.c`: two processes kept on one CPU, one `UFFDIO_COPY` a"
            " fault, no eviction.\n\n" + f"![fault latency]({plots.link('latency')})\n\n"
            + table(["", "turns", "p50", "p99", "p50 / minimum", "p99 / minimum"], rows))


def programs_section(figures):
    keys = [k for k in figures.keys("program.")]
    if not keys:
        return ""
    text = ("\n## Programs, half of their memory local\n\nSeconds by the clock; half of what the program needs is"
            f" local.\n\n![programs]({plots.link('programs')})\n")
    for key in keys:
        rows = [[name_of(v), turns_of(figures, key, v), figures.said(key, v, "seconds"),
                 spread(figures.values(key, v, "cpu")), memory(figures, key, v)] for v in figures.of[key]]
        rows += [[r[0], "", r[2], "", ""] for r in against(figures, key, ["seconds"])]
        head = ["", "turns", "elapsed", "CPU of the program", "MiB: program + store"]
        text += f"\n### {key[8:]}\n\n" + table(head, rows)
    return text + redis(figures)


def redis(figures):
    if "program.redis" not in figures.of:
        return ""
    what = [f"{c}_{m}" for c in ("get", "set") for m in ("p50", "p99", "p999")]
    rows = [[name_of(v)] + [spread(figures.values("program.redis", v, m)) for m in what + ["get_s"]]
            for v in figures.of["program.redis"]]
    head = [f"{c.upper()} {m}" for c in ("get", "set") for m in ("p50", "p99", "p99.9")] + ["GET/s"]
    return "\nredis-benchmark, 8 clients, keys drawn at random; ms:\n\n" + table([""] + head, rows)


def fits_section(figures):
    rows = []
    for key in figures.keys("fits."):
        metric, base = targets.own_metric(figures, key), targets.base_of(figures, key)
        for v, name in (("again", "native again"), ("edm", "EDM")):
            values, cpu = (figures.ratios(key, v, base, m) for m in (metric, "cpu"))
            if values:
                label = key[5:] if v == "again" else ""
                rows.append([label, name, str(len(values)), ratio(values, 3), ratio(cpu, 3)])
    if not rows:
        return ""
    return ("\n## Programs with room for all their memory\n\nTime relative to native jemalloc (commands: to"
            " native), pair by pair: median (quartiles). The second native run of each pair shows the noise."
            " Programs that time themselves (churn, touch, paging): by that; CPU is the program's, without the"
            " server's.\n\n"
            + f"![programs that fit]({plots.link('fits')})\n\n"
            + table(["", "", "pairs", "elapsed", "CPU"], rows))


def scale_section(figures):
    keys = figures.keys("scale.")
    if not keys:
        return ""
    text = f"\n## What grows with what\n\n![scale]({plots.link('scale')})\n"
    names = {"space": "GiB of address space, 32 MiB of pages in it", "mappings": "mappings, in 1 GiB",
             "instances": "instances; one works, then all", "metadata": "MiB managed"}
    for key in keys:
        points = figures.of[key]
        metrics = list(dict.fromkeys(m for turns in points.values() for t in turns.values() for m in t))
        heads = {"p50": "fault p50, µs", "p99": "p99, µs", "mean": "mean, µs", "all": "all work: µs a fault",
                 "faults": "faults", "per_page": "bytes per page", "percent": "% of managed bytes"}
        rows = [[p, turns_of(figures, key, p)] + [spread(figures.values(key, p, m)) for m in metrics]
                for p in points]
        text += "\n" + table([names[key[6:]], "turns"] + [heads[m] for m in metrics], rows)
    return text


def failures(figures):
    if not figures.failed:
        return ""
    rows = [[key, name_of(v), f"{n} ×", why] for (key, v, why), n in figures.failed.items()]
    return "\n## Turns without a figure\n\n" + table(["workload", "variant", "", "why"], rows)


def targets_section(figures):
    lines = targets.all_of(figures)
    said = [l[4].rstrip("?") for l in lines]
    return (f"\n## Targets: {said.count('reached')} reached, {said.count('**missed**')} missed,"
            f" {said.count('not measured')} not measured\n\nMedian (quartiles) of the ratios turn by turn; a question"
            f" mark where fewer than {targets.ENOUGH} figures, or {targets.PAIRS} pairs, stand behind a verdict. Half of the memory local where"
            " nothing else is said; paging is one thread, pages that compress 2:1."
            f" \"Flat\" is taken as at most {targets.FLAT} times.\n\n"
            f"![targets]({plots.link('targets')})\n\n" + table(["", "target", "measured", "figures", ""], lines))


def make(folder):
    figures = Figures(f"{folder}/report.tsv")
    os.makedirs(f"{folder}/plots", exist_ok=True)
    text = "# What bench/run measured\n\n" + table(["", ""], figures.about)
    for section in (targets_section, paging_section, latency_section, programs_section, fits_section,
                    scale_section, failures):
        text += section(figures)
    plots.make(figures, f"{folder}/plots")
    with open(f"{folder}/report.md", "w", encoding="utf-8") as f:
        f.write(text)
