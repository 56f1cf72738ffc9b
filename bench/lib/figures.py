"""The figures of a run, read back from report.tsv, and what is computed from them."""
import collections
import statistics


class Figures:
    """[workload][variant][turn][metric], the turns that gave none, and what the run was."""
    def __init__(self, path):
        self.about, self.failed = [], collections.Counter()
        self.of = {}
        with open(path, encoding="utf-8") as f:
            for line in f:
                self.add(*line.rstrip("\n").split("\t"))

    def add(self, key, variant, turn, metric, value):
        if key == "about":
            self.about.append((variant, value))
        elif metric == "failed":
            self.failed[key, variant, value] += 1
            self.of.setdefault(key, {}).setdefault(variant, {})
        else:
            turns = self.of.setdefault(key, {}).setdefault(variant, {})
            turns.setdefault(int(turn), {})[metric] = float(value)

    def values(self, key, variant, metric):
        turns = self.of.get(key, {}).get(variant, {}).values()
        return [t[metric] for t in turns if metric in t]

    def median(self, key, variant, metric):
        found = self.values(key, variant, metric)
        return statistics.median(found) if found else None

    def said(self, key, variant, metric):
        """Median (least-most), or why there is none."""
        why = [w for k, v, w in self.failed if (k, v) == (key, variant)]
        values = self.values(key, variant, metric)
        return why[-1] if why and not values else spread(values)

    def ratios(self, key, base, variant, metric):
        """base / variant, turn by turn: above 1, variant needs less."""
        of = self.of.get(key, {})
        both = [(turn[metric], of[variant][n][metric]) for n, turn in of.get(base, {}).items()
                if metric in turn and metric in of.get(variant, {}).get(n, {})]
        return [b / v for b, v in both if v > 0]

    def keys(self, start):
        return [k for k in self.of if k.startswith(start)]


def quartiles(values):
    if len(values) < 2:
        return (values[0], values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def short(x):
    """Three digits that count."""
    if x == 0:
        return "0"
    if abs(x) >= 100:
        return f"{x:.0f}"
    return f"{x:.3g}" if abs(x) >= 0.01 else f"{x:.4f}"


def spread(values):
    """Median (least-most), or a dash."""
    if not values:
        return "–"
    return f"{short(statistics.median(values))} ({short(min(values))}–{short(max(values))})"


def ratio(values, digits=2):
    """Median (quartiles)."""
    if not values:
        return "–"
    low, high = quartiles(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
