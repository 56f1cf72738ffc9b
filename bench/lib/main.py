"""bench/run: what is measured in which order, and how far it is."""
import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import machine
import scale
import variants
import workloads
from machine import MIB, Failed

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAMS = ["paging", "churn", "graph", "stream", "sparse", "fault_raw", "fault_latency"]
QUICK_SECONDS = 145
ORDER = ["paging", "latency", "scale", "fits", "program"] # what takes longest last
QUICK = ["paging.half.t1.l50", "paging.half.t8.l20", "latency", "fits.churn", "fits.touch", "fits.sort",
         "fits.commands", "scale.", "program.sort", "program.redis", "program.graph"]
TRIES = 5

HELP = """workloads (a part of a name stands for all that have it):
  paging.CONTENTS.tTHREADS.lPERCENT  paging.c with so much of its memory local: fill, random, scan,
                                     stride, zipf, chase
  latency           p50 and p99 of a fault, beside the least that one can cost
  program.NAME      sort sqlite redis python graph stream with half of their memory local
  fits.NAME         the same and churn touch paging commands with all of it: pairs, native against native too
  scale.WHAT        space mappings instances metadata: what grows with them

Needs root, for cgroups and swap; installs what it needs from Debian. Writes into --out: report.md,
plots/, report.tsv (every single figure). Ctrl-C ends it and leaves nothing switched on."""


class Bench:
    """One run: sizes, folders, and what has to be undone at its end."""
    def __init__(self, args, undo):
        self.quick, self.undo = args.quick, undo
        self.root, self.build = ROOT, os.environ.get("EDM_BUILD", f"{ROOT}/build")
        self.edm, self.edm_dms = f"{self.build}/dms/edm", f"{self.build}/dms/edm-dms"
        self.shim = f"{self.build}/preload/libedm_preload.so"
        self.size = (args.size or (64 if args.quick else 1024)) * MIB
        self.ops = args.ops or (15000 if args.quick else 1000000)
        self.limit = 40 if args.quick else 900
        least = max(self.size, 384 * MIB) # programs are not made smaller than they are then
        self.swap, self.store, self.plenty = least * 2, least * 3, least * 5
        self.pairs_a_turn = args.pairs or (1 if args.quick else 4)
        self.variants = args.variants
        self.servers, self.made = {}, {}

    def open(self, chosen):
        """Everything that must be undone goes onto undo first."""
        for name in list(os.environ):
            if name.startswith("EDM_"):
                del os.environ[name]
        self.work = tempfile.mkdtemp(prefix="edm-bench.", dir="/var/tmp")
        self.undo.callback(shutil.rmtree, self.work, ignore_errors=True)
        self.cgroup = machine.Cgroup.base(os.path.basename(self.work))
        self.undo.callback(self.cgroup.close)
        self.err = f"{self.work}/program.err"
        machine.write(f"{self.work}/edm.conf", "") # this machine's own settings are not what is measured
        os.environ["EDM_CONF"] = f"{self.work}/edm.conf"
        self.env = dict(os.environ)
        libraries = machine.quietly(["ldconfig", "-p"]) or ""
        self.jemalloc = next(l.split()[-1] for l in libraries.splitlines() if "libjemalloc.so.2 " in l)
        unload = machine.have_zram()
        if unload:
            self.undo.callback(unload)
        elif "zram" in self.variants:
            print("no zram on this kernel: left out", file=sys.stderr)
            for workload in chosen.values():
                workload.variants = [v for v in workload.variants if v != "zram"]

    def set_env(self, **settings):
        os.environ.update(settings)

    def reset_env(self):
        for name in set(os.environ) - set(self.env):
            del os.environ[name]

    def server(self, name):
        """Started when it is first needed; all later turns find it."""
        if name not in self.servers:
            server = self.servers[name] = variants.Server(self, name)
            self.undo.callback(server.close)
            server.start()
        return self.servers[name]

    def end_server(self, name):
        self.servers.pop(name).close()

    def once(self, name, make):
        """A file of this run."""
        path = f"{self.work}/{name}"
        if not os.path.exists(path):
            make(path)
        return path

    def program(self, name):
        """The path of a program of bench/, compiled when it is first needed."""
        def make(path):
            subprocess.run(["gcc", "-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE",
                            "-pthread", "-o", path, f"{ROOT}/bench/{name}.c", "-lm"], check=True)
        return self.once(f"bench-{name}", make)


class Progress:
    """How far it is; estimates from what each figure took the last time."""
    def __init__(self, plan, turns):
        self.plan, self.turns, self.took = plan, turns, {}

    def guess(self, turn, key, variant):
        if (key, variant) in self.took:
            return self.took[key, variant]
        same = [t for (k, v), t in self.took.items() if v == variant] or list(self.took.values()) or [3.0]
        return sum(same) / len(same)

    def left(self, at):
        return sum(self.guess(*step) for step in self.plan[at:])

    def say(self, at, text):
        turn, key, variant = self.plan[at]
        left = int(self.left(at))
        print(f"{at + 1:4}/{len(self.plan)}  {left // 60:3}:{left % 60:02} left  turn {turn}/{self.turns}  "
              f"{key:<22} {variant:<11}{text}", file=sys.stderr, flush=True)


def steps(chosen, turns):
    """[(turn, key, variant)]: turn after turn, the variants of a workload side by side, there and
    back, so that what the machine does meanwhile hits all alike."""
    plan = []
    for turn in range(1, turns + 1):
        for w in chosen.values():
            for again in range(w.repeat):
                order = w.variants if (turn + again) % 2 else w.variants[::-1]
                plan += [(turn, w.key, v) for v in order]
    return plan


def tried(workload, variant, fail):
    """The figures of one turn. The kernel kills programs in a cgroup at times though swap is left:
    such a turn is repeated; fail() hears of each."""
    for _ in range(TRIES):
        try:
            return workload.measure(variant)
        except Failed as e:
            fail(e)
            if variant not in ("zram", "file") or "killed" not in str(e):
                break
        finally:
            workload.bench.reset_env()
    return None


def measure(bench, chosen, turns, seconds, tsv):
    plan = steps(chosen, turns)
    progress, begin, counts = Progress(plan, turns), time.monotonic(), {}
    for at, (turn, key, variant) in enumerate(plan):
        start = time.monotonic()
        if seconds and start - begin + progress.guess(turn, key, variant) > seconds:
            print(f"out of time after {at} of {len(plan)} figures", file=sys.stderr)
            break
        counts[key, variant] = number = counts.get((key, variant), 0) + 1

        def note(metric, value):
            print("\t".join((key, variant, str(number), metric, value)), file=tsv, flush=True)

        def fail(why):
            note("failed", str(why))
            progress.say(at, f"no figure: {why}")
        figures = tried(chosen[key], variant, fail)
        for metric, value in (figures or {}).items():
            note(metric, repr(value))
        if figures:
            progress.say(at, " ".join(f"{m} {v:.4g}" for m, v in figures.items()))
        progress.took[key, variant] = time.monotonic() - start


def arguments():
    known = [v for v in variants.KINDS if v not in ("again", "edm-new")] # which workloads use themselves
    p = argparse.ArgumentParser(prog="bench/run", formatter_class=argparse.RawDescriptionHelpFormatter,
                                description="Measures EDM beside the same memory without it.", epilog=HELP)
    p.add_argument("--quick", action="store_true", help="small sizes, under three minutes in all")
    p.add_argument("--turns", "--reps", type=int, help="turns (default 5; with --quick at most 3)")
    p.add_argument("--pairs", type=int, help="pairs of fits a turn (default 4, with --quick 1)")
    p.add_argument("--size", type=int, metavar="MIB", help="memory of paging (default 1024, with --quick 64)")
    p.add_argument("--ops", type=int, help="operations of paging (default 1000000, with --quick 15000)")
    p.add_argument("--variants", metavar="A,B...", help="of " + " ".join(known))
    p.add_argument("--out", default=f"{ROOT}/bench", help="folder of the report (default bench)")
    p.add_argument("--list", action="store_true", help="list the workloads, and end")
    p.add_argument("--report", action="store_true", help="make the report again from report.tsv, and end")
    p.add_argument("workload", nargs="*", help="default: all")
    args = p.parse_args()
    args.variants = args.variants.split(",") if args.variants else list(variants.USUAL)
    for v in args.variants:
        if v not in known:
            p.error(f"no variant {v}: {' '.join(known)}")
    return args


def choose(found, words):
    chosen = {k: w for part in ORDER for k, w in found.items()
              if k.startswith(part) and w.variants and (not words or any(x in k for x in words))}
    if not chosen:
        raise RuntimeError(f"no workload is called {' '.join(words)}: bench/run --list")
    return chosen


def run(args, undo):
    bench = Bench(args, undo)
    found = {**workloads.all_of(bench), **scale.all_of(bench)}
    if args.list:
        return print("\n".join(f"{k:<22} {' '.join(w.variants)}" for k, w in found.items()))
    chosen = choose(found, args.workload or (QUICK if args.quick else []))
    bench.open(chosen)
    facts = machine.describe(ROOT, bench.edm)
    turns = args.turns or (3 if args.quick else 5)
    path = f"{args.out}/report.tsv"
    with open(path, "w", encoding="utf-8") as tsv:
        facts += [("begun", time.strftime("%F %T %Z")), ("load before", machine.read("/proc/loadavg")),
                  ("paging", f"{bench.size // MIB} MiB, {bench.ops} operations"),
                  ("command", "bench/run " + " ".join(sys.argv[1:]))]
        for what, value in facts:
            print("\t".join(("about", what, "0", "text", value)), file=tsv)
        measure(bench, chosen, turns, QUICK_SECONDS if args.quick else 0, tsv)
        load = machine.read("/proc/loadavg")
        print("\t".join(("about", "load after", "0", "text", load)), file=tsv)


def stop(number, _):
    for n in machine.ENDING:
        signal.signal(n, signal.SIG_IGN) # cleaning up is not interrupted
    raise SystemExit(128 + number)


def main():
    args = arguments()
    os.makedirs(args.out, exist_ok=True)
    if not args.report:
        for n in machine.ENDING:
            signal.signal(n, stop)
        try:
            with contextlib.ExitStack() as undo:
                run(args, undo)
        except RuntimeError as e:
            sys.exit(f"bench/run: {e}")
    if args.list:
        return
    import report # with the libraries for plots, which --list and --help do without
    report.make(args.out)
    print(f"{args.out}/report.md")


main()
