"""What is measured. A workload has a key, its variants, how many figures one turn takes, and
measure(), which returns {metric: number} for one variant, or raises Failed."""
import os
import re
import time

from machine import Failed, MIB, quietly
from variants import Turn, USUAL, is_edm

PHASES = ["fill", "random", "scan", "stride", "zipf", "chase"]


class Workload:
    repeat = 1  # figures a turn

    def __init__(self, bench, key, variants):
        self.bench, self.key = bench, key
        self.variants = [v for v in variants if v in bench.variants]

    def expect_paged(self, turn):
        """A figure of EDM counts only when EDM did the work."""
        if is_edm(turn.name) and turn.local and not sum(i["evictions"]["pages"] for i in turn.counters()):
            raise Failed("not paged: EDM did not manage its memory")


class Paging(Workload):
    """paging.c: kind of contents, threads, share of its memory that is local in per cent."""
    def __init__(self, bench, kind, threads, share):
        super().__init__(bench, f"paging.{kind}.t{threads}.l{share}", USUAL + ["edm-none"])
        if bench.quick and (threads, share) != (1, 50): # another rank takes its time
            self.variants = [v for v in self.variants if v != "edm-remote"]
        self.local = bench.size * share // 100
        self.arguments = [str(bench.size // MIB), kind, str(bench.ops), str(threads), *PHASES]

    def measure(self, variant):
        fits = variant in ("native", "jemalloc")
        command = [self.bench.program("paging"), *self.arguments]
        with Turn(self.bench, variant, None if fits else self.local) as turn:
            _, _, text, _ = turn.start(command, err=self.bench.err).wait(self.bench.limit)
            self.expect_paged(turn)
            return {**dict(zip(PHASES, map(float, text.split()))), **turn.memory()}


class Latency(Workload):
    """The time of single faults, beside the least that they can cost."""
    def __init__(self, bench):
        super().__init__(bench, "latency", USUAL[2:])
        self.variants.insert(0, "raw")

    def measure(self, variant):
        mib = self.bench.size // MIB // 4
        if variant == "raw":
            with Turn(self.bench, "native", None) as turn:
                command = [self.bench.program("fault_raw"), str(mib << 8)]
                words = turn.start(command, err=self.bench.err).wait(self.bench.limit)[2].split()
                return {"p50": float(words[2]), "p99": float(words[3]), "faults": float(words[1])}
        command = [self.bench.program("fault_latency"), str(mib), str(max(self.bench.ops // 10, 10000))]
        with Turn(self.bench, variant, mib * MIB // 2) as turn:
            words = turn.start(command, err=self.bench.err).wait(self.bench.limit)[2].split()
            self.expect_paged(turn)
            return {"p50": float(words[1]), "p99": float(words[5]), "faults": float(words[3])}


class Command:
    """A program that is measured by the clock; its output must be what it was before."""
    def __init__(self, bench, name, command, by_itself=None):
        self.bench, self.name, self.command = bench, name, command # a function that makes it
        self.by_itself = by_itself  # picks metrics from what it prints
        self.digest = None

    def run(self, turn):
        seconds, cpu, text, digest = turn.start(self.command(), err=self.bench.err).wait(self.bench.limit)
        if self.by_itself:
            return {"seconds": seconds, "cpu": cpu, **self.by_itself(text)}
        if self.digest not in (None, digest):
            raise RuntimeError(f"{self.name} under {turn.name}: another result than before")
        self.digest = digest
        return {"seconds": seconds, "cpu": cpu}


class Redis:
    """redis-server, filled, then asked; the clients are not in its cgroup."""
    name = "redis"

    def __init__(self, bench):
        self.bench, self.digest = bench, None
        self.keys = max(bench.size // MIB, 256) * 600

    @property
    def socket(self):
        return f"{self.bench.work}/redis.sock"

    def make(self, path):
        """Half of each value is noise, so that it shrinks to a half."""
        with open(path, "wb") as f:
            noise, rest = os.urandom(MIB), b"x" * 512
            for i in range(self.keys):
                at = i * 523 % (MIB - 512)
                f.write(b"*3\r\n$3\r\nSET\r\n$16\r\nkey:%012d\r\n$1024\r\n%s%s\r\n"
                        % (i, noise[at:at + 512], rest))

    def cli(self, *words):
        return quietly(["redis-cli", "-s", self.socket, *words])

    def benchmark(self, command):
        """{p50, p99, p999} in ms, and requests a second, of GETs or SETs of keys drawn at random."""
        text = quietly(["redis-benchmark", "-s", self.socket, "-c", "8", "-n", str(self.bench.ops // 4),
                        "-r", str(self.keys), "-d", "1024", "-t", command, "--precision", "3"])
        if not text:
            raise Failed("redis-benchmark failed")
        spread = [(float(p), float(ms)) for p, ms in re.findall(r"([\d.]+)% <= ([\d.]+) milli", text)]
        at = {f"{command}_{n}": min(ms for p, ms in spread if p >= least)
              for n, least in (("p50", 50), ("p99", 99), ("p999", 99.9))}
        return {**at, f"{command}_s": float(re.findall(r"([\d.]+) requests per second", text)[-1])}

    def work(self):
        path = self.bench.once("redis.in", self.make)
        start = time.monotonic()
        if quietly(["sh", "-c", f"redis-cli -s {self.socket} --pipe <{path}"]) is None:
            raise Failed("redis-cli --pipe failed")
        digest = self.cli("debug", "digest")
        if not digest:
            raise Failed("redis-server does not answer")
        if self.digest not in (None, digest):
            raise RuntimeError("redis has other contents than before")
        self.digest = digest
        figures = {**self.benchmark("get"), **self.benchmark("set")}
        return {"seconds": time.monotonic() - start, **figures}

    def run(self, turn):
        command = ["redis-server", "--port", "0", "--unixsocket", self.socket, "--save", "",
                   "--enable-debug-command", "yes", "--loglevel", "warning", "--dir", self.bench.work]
        server = turn.start(command, err=self.bench.err)
        end = time.monotonic() + 20
        while self.cli("ping") != "PONG":
            if time.monotonic() > end or server.process.poll() is not None:
                raise Failed(server.reason())
            time.sleep(0.02)
        try:
            figures = self.work()
        except (Failed, ValueError) as e:
            raise Failed(server.reason() if turn.leaf.was_killed() else str(e)) from e
        self.cli("shutdown", "nosave")
        _, cpu, _, _ = server.wait(self.bench.limit)
        return {**figures, "cpu": cpu}


class Under(Workload):
    """A program with half of the memory that it needs; how much that is, its first native turn tells."""
    def __init__(self, bench, program):
        others = ["zram", "file", "edm"] if bench.quick else USUAL[2:]
        super().__init__(bench, f"program.{program.name}", ["jemalloc"] + others)
        self.program, self.need = program, None

    def measure(self, variant):
        if self.need is None:
            with Turn(self.bench, "native", None) as turn:
                self.program.run(turn)
                self.need = turn.leaf.peak()
        with Turn(self.bench, variant, None if variant == "jemalloc" else self.need // 2) as turn:
            figures = self.program.run(turn)
            self.expect_paged(turn)
            return {**figures, **turn.memory()}


class Stream(Under):
    """Static arrays, which EDM manages when asked to."""
    def measure(self, variant):
        os.environ["EDM_MANAGE"] = "malloc,mmap,bss"
        try:
            return super().measure(variant)
        finally:
            del os.environ["EDM_MANAGE"]


class Fits(Workload):
    """A program with room for all its memory, beside native with the same allocator, twice."""
    def __init__(self, bench, program):
        super().__init__(bench, f"fits.{program.name}", ["jemalloc", "again", "edm"])
        self.variants = ["jemalloc", "again", "edm"]
        self.program, self.repeat, self.checked = program, bench.pairs_a_turn, False

    def measure(self, variant):
        if not self.checked and variant == "edm" and self.program.name != "stream":
            with Turn(self.bench, "edm", self.bench.plenty) as turn: # with --stats
                self.program.run(turn)
                if not turn.counters():
                    raise RuntimeError(f"{self.program.name} was not managed")
            self.checked = True
        with Turn(self.bench, variant, None) as turn:
            return self.program.run(turn)


class Commands(Fits):
    """A thousand processes that are never managed; beside native without another allocator."""
    def __init__(self, bench):
        count = "200" if bench.quick else "1000"
        super().__init__(bench, Command(bench, "commands", lambda: [f"{bench.root}/bench/commands.sh", count]))
        self.variants = ["native", "again", "edm"]
        self.checked = True

    def measure(self, variant):
        return super().measure("native" if variant == "again" else variant)


def text_of(bench, mib):
    """Real text, as much as there is, several times over if need be."""
    def make(path):
        with open(path, "wb") as f:
            while f.tell() < mib * MIB:
                before = f.tell()
                for top in ("/usr/include", "/usr/share/perl"):
                    for folder, _, files in sorted(os.walk(top)):
                        for name in sorted(files):
                            if f.tell() < mib * MIB and os.path.isfile(f"{folder}/{name}"):
                                with open(f"{folder}/{name}", "rb") as part:
                                    f.write(part.read())
                if f.tell() == before:
                    f.write(os.urandom(MIB).hex().encode() + b"\n")
    return bench.once("text", make)


def sqlite_script(bench, rows):
    def make(path):
        with open(f"{bench.root}/bench/sqlite.sql", encoding="utf-8") as f, \
                open(path, "w", encoding="utf-8") as to:
            to.write(f.read().replace("@ROWS", str(rows)))
    return bench.once("sqlite.sql", make)


def programs(bench):
    """{name: program}, each with some hundred MiB of memory where paging has 1 GiB."""
    size = max(bench.size, 256 * MIB) # smaller ones EDM would leave alone
    mib, scale = size // MIB, (size // 400).bit_length() - 1
    return {p.name: p for p in (
        Command(bench, "sort", lambda: ["sort", "--parallel=2", "-S", "4G", text_of(bench, mib // 4)]),
        Command(bench, "sqlite", lambda: ["sqlite3", "-init", sqlite_script(bench, mib * 1500), ":memory:",
                                          ".quit"]),
        Redis(bench),
        Command(bench, "python", lambda: ["/usr/bin/python3", f"{bench.root}/bench/numpy_work.py", str(mib)]),
        Command(bench, "graph", lambda: [bench.program("graph"), str(scale), "8", "3"]),
        Command(bench, "stream", lambda: [bench.program("stream"), str(mib // 2), "5"],
                lambda text: {"triad_gb_s": float(text.split()[3])}))}


def fitting(bench):
    """Programs of our own that tell how long they took."""
    mib = max(bench.size // MIB, 256)
    return {p.name: p for p in (
        Command(bench, "churn", lambda: [bench.program("churn"), str(mib // 4), str(bench.ops // 5)],
                lambda text: {"own": float(text)}),
        Command(bench, "touch", lambda: [bench.program("paging"), str(mib), "half", "1", "1", "touch"],
                lambda text: {"own": float(text)}),
        Command(bench, "paging", lambda: [bench.program("paging"), str(mib // 4), "half", str(bench.ops), "1",
                                          *PHASES],
                lambda text: {"own": sum(map(float, text.split()))}))}


def all_of(bench):
    """{key: workload}, in the order in which they run."""
    kinds = [("half", t, share) for share in (50, 20) for t in (1, 2, 8)] + [("distinct", 1, 50)]
    under = programs(bench)
    found = [Paging(bench, *k) for k in kinds] + [Latency(bench)]
    found += [(Stream if name == "stream" else Under)(bench, p) for name, p in under.items()]
    found += [Fits(bench, p) for p in {**fitting(bench), **under}.values()] + [Commands(bench)]
    return {w.key: w for w in found}
