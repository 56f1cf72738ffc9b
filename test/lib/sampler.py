"""sampler.py EDM CGROUP BUDGET FILE: while the program in CGROUP runs, stops it for a moment again
and again, and compares what the server says is resident (edm stat) with what the kernel says is
mapped in the managed ranges, and both with the budget; and how many pages other ranks keep. Writes
what it saw to FILE at SIGTERM.

The program is stopped because neither the kernel's list nor ours can be read at one instant while
pages come and go; stopped, only what is in flight may differ.
"""
import ctypes
import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time

IN_FLIGHT = 4 << 20
PAGE_IS_PRESENT = 1 << 3
PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
REGIONS = 4096


def cgroup_pids(cgroup):
    try:
        with open(cgroup + "/cgroup.procs") as f:
            return [int(line) for line in f]
    except OSError:
        return []


def managed_ranges(pid):
    """Mappings under a userfaultfd (VmFlags um, uw), without the LPET's staging: [(start, end)],
    and the sum of their Rss in bytes."""
    ranges, rss, span, size = [], 0, None, 0
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            m = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
            if m:
                span = int(m[1], 16), int(m[2], 16)
            elif line.startswith("Rss:"):
                size = int(line.split()[1]) << 10
            elif line.startswith("VmFlags:"):
                flags = line.split()[1:]
                staging = "dc" in flags and "um" not in flags and span[1] - span[0] <= 2 << 20
                if ("um" in flags or "uw" in flags) and not staging:
                    ranges.append(span)
                    rss += size
    return ranges, rss


def present_scan(pid, ranges):
    """Bytes present in the ranges, zero pages included; None where the kernel has no PAGEMAP_SCAN."""
    vec = ctypes.create_string_buffer(24 * REGIONS)
    total = 0
    with open(f"/proc/{pid}/pagemap", "rb") as f:
        for start, end in ranges:
            while start < end:
                arg = bytearray(struct.pack("12Q", 96, 0, start, end, 0, ctypes.addressof(vec), REGIONS,
                                            0, 0, PAGE_IS_PRESENT, 0, PAGE_IS_PRESENT))
                try:
                    n = fcntl.ioctl(f, PAGEMAP_SCAN, arg)
                except OSError:
                    return None
                for i in range(n):
                    a, b, _ = struct.unpack_from("3Q", vec, 24 * i)
                    total += b - a
                walked = struct.unpack_from("Q", arg, 32)[0]
                start = max(walked, start + 4096)
    return total


def stopped(pid):
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/stat") as f:
                if f.read().rsplit(")", 1)[1].split()[0] not in "tTZX":
                    return False
    except OSError:
        pass
    return True


class Sampler:
    def __init__(self, edm, cgroup, budget):
        self.edm, self.cgroup, self.budget = edm, cgroup, budget
        self.seen = {"samples": 0, "compared": 0, "resident_max": 0, "mapped_max": 0,
                     "away_max": 0, "violations": []}
        self.held = []

    def stop(self):
        me = [p for p in cgroup_pids(self.cgroup) if self.command(p) != "edm"]
        for pid in me:
            try:
                os.kill(pid, signal.SIGSTOP)
                self.held.append(pid)
            except ProcessLookupError:
                pass
        end = time.monotonic() + 0.2
        while time.monotonic() < end and not all(stopped(p) for p in self.held):
            time.sleep(0.001)

    def resume(self):
        for pid in self.held:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
        self.held = []

    @staticmethod
    def command(pid):
        try:
            with open(f"/proc/{pid}/comm") as f:
                return f.read().strip()
        except OSError:
            return ""

    def instances(self):
        r = subprocess.run([self.edm, "stat", "--json"], capture_output=True, timeout=30)
        if r.returncode != 0:
            return []
        stat = json.loads(r.stdout)
        away = sum(p["pages"] for p in stat["server"]["peers"])
        self.seen["away_max"] = max(self.seen["away_max"], away)
        return stat["instances"]

    def violation(self, text):
        if len(self.seen["violations"]) < 100:
            self.seen["violations"].append(text)

    def compare(self, inst):
        pid, resident = inst["pid"], inst["resident_bytes"]
        limit = self.budget + IN_FLIGHT
        try:
            ranges, rss = managed_ranges(pid)
            present = present_scan(pid, ranges)
        except (OSError, TypeError):
            return  # ended meanwhile
        if not ranges or pid not in self.held:
            return
        present = rss if present is None else present
        see = self.seen
        see["compared"] += 1
        see["resident_max"] = max(see["resident_max"], resident)
        see["mapped_max"] = max(see["mapped_max"], rss)
        who = f"pid {pid} ({inst['command']})"
        if max(resident, inst["resident_max_bytes"]) > limit:
            self.violation(f"{who}: resident {resident}, most {inst['resident_max_bytes']}: over {limit}")
        if rss > limit:
            self.violation(f"{who}: {rss} bytes mapped: over {limit}")
        # Zero pages are no memory: whether the server counts them does not matter.
        limbo = inst.get("limbo_bytes", 0)  # resident by our count, no longer mapped
        if not rss - IN_FLIGHT <= resident <= present + limbo + IN_FLIGHT and inst["evictions"]["pages"]:
            self.violation(f"{who}: edm stat says {resident} resident, the kernel {rss} of memory"
                           f" and {present - rss} of zero pages")

    def sample(self):
        self.seen["samples"] += 1
        self.stop()
        try:
            for inst in self.instances():
                self.compare(inst)
        finally:
            self.resume()


def main():
    sampler = Sampler(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    ended = []
    signal.signal(signal.SIGTERM, lambda *a: ended.append(1))
    pause = 0.1
    while not ended:
        sampler.sample()
        time.sleep(pause)
        pause = min(pause * 1.2, 1.0)
    with open(sys.argv[4], "w") as f:
        json.dump(sampler.seen, f)


main()
