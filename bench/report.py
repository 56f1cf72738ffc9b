"""report.py TSV MIB ALLOWED: the tables of bench/run, as markdown on standard output."""
import collections
import os
import platform
import statistics
import sys

PAGING = ("fill", "random", "scan")


def read(path):
    """{workload: {variant: {repetition: numbers}}}, in the order of the file."""
    runs = collections.OrderedDict()
    with open(path, encoding="utf-8") as f:
        for line in f:
            workload, variant, turn, *numbers = line.rstrip("\n").split("\t")
            row = runs.setdefault(workload, collections.OrderedDict()).setdefault(variant, {})
            row[turn] = [float(n) for n in numbers]
    return runs


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def ratio(runs, variant, base, column):
    """Median over the turns that both have of base / variant: above 1, variant is faster."""
    pairs = [(b, runs[variant][turn]) for turn, b in runs[base].items() if turn in runs[variant]]
    return statistics.median(b[column] / v[column] for b, v in pairs if v[column] > 0)


def paging(name, runs, mib, allowed):
    print(f"\n### {name}: {mib} MiB, {allowed} MiB allowed; microseconds per page or operation\n")
    print("| | turns | " + " | ".join(PAGING) + " |\n|---|---|" + "---|" * len(PAGING))
    for variant, turns in runs.items():
        cells = [spread([t[i] for t in turns.values()]) for i in range(len(PAGING))]
        print(f"| {variant} | {len(turns)} | " + " | ".join(cells) + " |")
    for variant, bases in (("edm", ("zram", "file")), ("edm-disk", ("file",))):
        for base in bases:
            if variant in runs and base in runs:
                cells = [f"{ratio(runs, variant, base, i):.2f}" for i in range(len(PAGING))]
                print(f"| {base} / {variant} | | " + " | ".join(cells) + " |")


def pairs(name, runs):
    print(f"\n### {name}: seconds\n")
    print("| | turns | elapsed | CPU |\n|---|---|---|---|")
    for variant, turns in runs.items():
        cells = [spread([t[i] for t in turns.values()]) for i in range(2)]
        print(f"| {variant} | {len(turns)} | " + " | ".join(cells) + " |")
    for variant in ("again", "edm"):
        if variant in runs and "base" in runs:
            cells = [f"{100 / ratio(runs, variant, 'base', i) - 100:+.1f} %" for i in range(2)]
            print(f"| {variant} against base | | " + " | ".join(cells) + " |")


def main():
    path, mib, allowed = sys.argv[1:4]
    print("# What bench/run measured\n")
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs. Medians (least-most);")
    print("ratios are medians over the turns, in which the variants ran one after the other.")
    for name, runs in read(path).items():
        if name.startswith("paging"):
            paging(name, runs, mib, allowed)
        else:
            pairs(name, runs)


if __name__ == "__main__":
    main()
