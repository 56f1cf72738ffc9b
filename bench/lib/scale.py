"""What EDM costs as things grow: address space, mappings, instances, managed memory."""
import os
import re
import select
import subprocess
import time

from machine import Failed, MIB
from variants import Turn
from workloads import Workload

GIB_MIB = 1024
PAGES = 8192  # 32 MiB, whatever they are spread over


def ask(program, limit=120):
    """The next line that a program of sparse.c prints."""
    if not select.select([program.process.stdout], [], [], limit)[0]:
        raise Failed("sparse says nothing")
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(program.process.stdout.fileno(), 1)
        if not part:
            program.process.wait()
            raise Failed(program.reason())
        line += part
    return line.decode().split()


class Scale(Workload):
    """The points of the horizontal axis take the place of variants."""
    def __init__(self, bench, key, points):
        super().__init__(bench, f"scale.{key}", [])
        self.variants = points if "edm" in bench.variants else []

    def start(self, turn, span, pages, mappings, touches):
        command = [self.bench.program("sparse"), *map(str, (span, pages, mappings, touches))]
        turn.bench.set_env(EDM_ATTACH_THRESHOLD="0", EDM_ARENA_SIZE="4T")
        p = turn.start(command, stdin=subprocess.PIPE, err=self.bench.err)
        ask(p)
        return p

    @staticmethod
    def go(program):
        program.process.stdin.write(b"\n")
        program.process.stdin.flush()

    @staticmethod
    def end(program):
        program.process.stdin.close()
        program.process.wait()

    def faults(self, span, mappings):
        with Turn(self.bench, "edm", PAGES * 4096 // 2) as turn:
            p = self.start(turn, span, PAGES, mappings, max(self.bench.ops // 10, 10000))
            for _ in range(2): # the first is the warming up
                self.go(p)
                p50, p99, faults, seconds = map(float, ask(p))
            self.end(p)
            return {"p50": p50, "p99": p99, "mean": seconds * 1e6 / max(faults, 1), "faults": faults}


class Space(Scale):
    def __init__(self, bench):
        spans = [1, 32, 1024] if bench.quick else [1, 4, 16, 64, 256, 1024]
        super().__init__(bench, "space", [str(s) for s in spans])

    def measure(self, variant):
        return self.faults(int(variant) * GIB_MIB, 1)


class Mappings(Scale):
    def __init__(self, bench):
        counts = [10, 1000, 50000] if bench.quick else [10, 100, 1000, 10000, 50000]
        super().__init__(bench, "mappings", [str(c) for c in counts])

    def measure(self, variant):
        """In 1 GiB, so that a mapping of 50,000 still has some pages."""
        return self.faults(GIB_MIB, int(variant))


class Instances(Scale):
    """So many instances, of 8 MiB and 4 MiB local: one works; then all do."""
    def __init__(self, bench):
        counts = [1, 10, 100] if bench.quick else [1, 3, 10, 30, 100]
        super().__init__(bench, "instances", [str(c) for c in counts])

    def measure(self, variant):
        touches = 10000
        with Turn(self.bench, "edm", 4 * MIB) as turn:
            all_ = [self.start(turn, 8, 2048, 1, touches) for _ in range(int(variant))]
            self.go(all_[0])
            p50, p99, faults, seconds = map(float, ask(all_[0]))
            start = time.monotonic()
            for p in all_:
                self.go(p)
            done = sum(float(ask(p)[2]) for p in all_)
            took = time.monotonic() - start
            for p in all_:
                self.end(p)
        return {"p50": p50, "p99": p99, "mean": seconds * 1e6 / max(faults, 1),
                "all": took * 1e6 / max(done, 1)}


def proportional(pid, skip_managed):
    """Bytes of a process by the kernel's count, its share of what it shares; without page store,
    and without managed memory and what is in flight between program and server."""
    total, name, size = 0, "", 0
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as f:
        for line in f:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                name = line.split(maxsplit=5)[5].strip() if len(line.split()) > 5 else ""
            elif line.startswith("Pss:"):
                size = int(line.split()[1]) << 10
            elif line.startswith("VmFlags:"):
                flags = line.split()[1:]
                managed = skip_managed and ("um" in flags or "uw" in flags)
                store = "/dev/shm" in name or "edm-store" in name or "edm-channel" in name
                total += 0 if managed or store else size
    return total


class Metadata(Scale):
    """Memory of server and program that is neither managed memory nor contents of pages, per page;
    half of the memory is local. What both need with 32 MiB is taken off, so that code does not count."""
    def __init__(self, bench):
        super().__init__(bench, "metadata", ["128", "512"] if bench.quick else ["256", "1024", "4096"])

    def measure(self, variant):
        small, large = self.bytes_at(32), self.bytes_at(int(variant))
        return {"per_page": (large - small) / ((int(variant) - 32) << 8),
                "percent": 100 * (large - small) / ((int(variant) - 32) * MIB)}

    def bytes_at(self, mib):
        """With a server that has not grown yet."""
        with Turn(self.bench, "edm-new", mib * MIB // 2) as turn:
            p = self.start(turn, mib, mib << 8, 1, 1000)
            self.go(p)
            ask(p)
            time.sleep(0.5)
            pids = [q for q in turn.leaf.pids() if q != p.process.pid]
            total = sum(proportional(q, True) for q in pids)
            total += sum(proportional(q, False) for q in turn.server.leaf.pids())
            self.end(p)
        self.bench.end_server("edm-new")
        return total


def all_of(bench):
    return {w.key: w for w in (Space(bench), Mappings(bench), Instances(bench), Metadata(bench))}
