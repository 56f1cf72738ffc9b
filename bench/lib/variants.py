"""The competitors: how each of them gives a program a part of the memory that it needs."""
import contextlib
import json
import os
import signal
import subprocess
import time

from machine import MIB, Program, Swap, quietly, read

OWN = 8 * MIB  # what a program needs besides the memory that is counted

# name: what the report calls it, settings of its server (None: no EDM), settings of its programs
KINDS = {
    "native": ("native", None, {}),
    "jemalloc": ("native, jemalloc", None, {}),
    "again": ("native, jemalloc, again", None, {}),
    "zram": ("kernel swap on zram", None, {}),
    "file": ("kernel swap on a file", None, {}),
    "edm": ("EDM", {"compression": "auto", "disk_store": "0"}, {}),
    "edm-new": ("EDM, new server", {"compression": "auto", "disk_store": "0"}, {}),
    "edm-none": ("EDM, compression none", {"compression": "none", "disk_store": "0"}, {}),
    "edm-lz4": ("EDM, compression lz4", {"compression": "lz4", "disk_store": "0"}, {}),
    "edm-disk": ("EDM, disk store alone", {"memory_store": "8M"}, {}),
    "edm-remote": ("EDM, another rank's store", {"disk_store": "0"}, {"placement": "remote"}),
}
USUAL = ["native", "jemalloc", "zram", "file", "edm", "edm-lz4", "edm-disk", "edm-remote"]


def is_edm(name):
    return KINDS[name][1] is not None


class Server:
    """The server of one EDM variant; it lives as long as the run, so that all find it warm."""
    def __init__(self, bench, name):
        self.bench, self.name, self.process, self.leaf = bench, name, None, None
        self.socket = f"{bench.work}/{name}.sock"

    def start(self):
        bench, base = self.bench, f"{self.bench.work}/{self.name}"
        self.leaf = bench.cgroup.leaf(f"server-{self.name}")
        os.makedirs(f"{base}.disk", exist_ok=True)
        options = {"socket": self.socket, "disk_path": f"{base}.disk", "log_file": f"{base}.log",
                   "memory_store": f"{bench.store >> 20}M", **KINDS[self.name][1]}
        options = [o for k, v in options.items() for o in ("-o", f"{k}={v}")]
        if self.name == "edm-remote":
            self.run([bench.edm, "start", "-n", "2", *options]).wait()
        else:
            self.process = self.run([bench.edm_dms, *options])
        end = time.monotonic() + 20
        while self.stat() is None:
            if time.monotonic() > end:
                raise RuntimeError(f"the server of {self.name} does not serve: {read(base + '.log')[-300:]}")
            time.sleep(0.05)

    def run(self, command):
        with open(f"{self.bench.work}/{self.name}.out", "ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    preexec_fn=self.leaf.join, start_new_session=True)

    def stat(self):
        text = quietly([self.bench.edm, "stat", "--json", "-o", f"socket={self.socket}"])
        return json.loads(text) if text else None

    def close(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        elif self.leaf:
            quietly([self.bench.edm, "stop", "-o", f"socket={self.socket}"])
        if self.leaf:
            self.leaf.close()
        self.process = self.leaf = None


class Turn:
    """One program under one variant, from before its start until after its end."""
    def __init__(self, bench, name, local):
        """local: bytes that it may keep in memory; None: all that it wants."""
        self.bench, self.name, self.local = bench, name, local
        self.stats = f"{bench.work}/stats.json"
        self.swap = self.server = self.leaf = None

    def __enter__(self):
        bench = self.bench
        self.leaf = bench.cgroup.leaf("program")
        try:
            if self.name in ("zram", "file") and self.local:
                self.leaf.limit(self.local + OWN)
                self.swap = Swap(self.name, bench.swap, bench.work)
            if is_edm(self.name):
                self.server = bench.server(self.name)
                self.server.leaf.forget_peak()
        except BaseException:
            self.close()
            raise
        return self

    def start(self, command, **more):
        return Program(*self.dressed(command), self.leaf, **more)

    def dressed(self, command):
        """(command, environment) with which it runs."""
        if self.name in ("jemalloc", "again"):
            return command, {"LD_PRELOAD": self.bench.jemalloc}
        if not self.server:
            return command, {}
        local = f"{self.local >> 20}M" if self.local else f"{self.bench.plenty >> 20}M"
        set_here = {"socket": self.server.socket, "local_memory": local, **KINDS[self.name][2]}
        if not self.local: # as users do it who do not count: no process beside it, server = "auto"
            return command, {"LD_PRELOAD": self.bench.shim,
                             **{f"EDM_{k.upper()}": v for k, v in set_here.items()}}
        set_here["server"] = "require"
        options = [o for k, v in set_here.items() for o in ("-o", f"{k}={v}")]
        return [self.bench.edm, "run", *options, "--stats", self.stats, "--", *command], {}

    def counters(self):
        with open(self.stats, encoding="utf-8") as f:
            return json.load(f)["instances"]

    def memory(self):
        """MiB at most: of the program, and of whoever keeps what it has no room for."""
        store = self.swap.peak() if self.swap else self.server.leaf.peak() if self.server else 0
        return {"program_mib": self.leaf.peak() / MIB, "store_mib": store / MIB}

    def close(self):
        if self.leaf: # before the swap: what is in there is not worth fetching
            self.leaf.close()
        if self.swap:
            self.swap.close()
        self.swap = self.leaf = None

    def __exit__(self, *_):
        self.close()
