"""What the measurements stand on: memory cgroups, swap that is switched on for a moment, programs
that run in a cgroup. Whatever is made here is undone by close(), also after Ctrl-C."""
import contextlib
import hashlib
import os
import re
import select
import signal
import subprocess
import time

MIB = 1 << 20
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Failed(Exception):
    """No figure from this turn; the text says why."""


def read(path, default=""):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read().strip()
    except OSError:
        return default


def write(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(str(text))


def quietly(command):
    """Its output, or None when it failed."""
    r = subprocess.run(command, capture_output=True, text=True, check=False)
    return r.stdout.strip() if r.returncode == 0 else None


@contextlib.contextmanager
def unbroken():
    """Ctrl-C waits: between the making of something and the note that it was made."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Cgroup:
    """A memory cgroup, version 1 or 2, with leaves."""
    V1 = os.path.isdir("/sys/fs/cgroup/memory")

    def __init__(self, path):
        self.path = path

    @classmethod
    def base(cls, name):
        top = "/sys/fs/cgroup"
        if cls.V1:
            own = re.search(r":memory:(.*)", read("/proc/self/cgroup"))
            own = own[1].rstrip("/") if own else ""
            top += "/memory" + (own if os.path.isdir(f"{top}/memory{own}") else "")
        group = cls(f"{top}/{name}")
        os.mkdir(group.path)
        if not cls.V1:
            write(f"{top}/cgroup.subtree_control", "+memory")
            write(f"{group.path}/cgroup.subtree_control", "+memory")
        return group

    def leaf(self, name):
        leaf = Cgroup(f"{self.path}/{name}")
        os.mkdir(leaf.path)
        return leaf

    def limit(self, size):
        """Bytes of memory, and as much swap as there is."""
        if self.V1:
            write(f"{self.path}/memory.limit_in_bytes", size)
            write(f"{self.path}/memory.swappiness", 100)
        else:
            write(f"{self.path}/memory.max", size)

    def join(self):
        write(f"{self.path}/cgroup.procs", os.getpid())

    def now(self):
        return int(read(f"{self.path}/memory." + ("usage_in_bytes" if self.V1 else "current"), "0"))

    def peak(self):
        return int(read(f"{self.path}/memory." + ("max_usage_in_bytes" if self.V1 else "peak"), "0"))

    def forget_peak(self):
        """Version 2 forgets it for the one who asks only; the peak is of the whole life there."""
        if self.V1:
            write(f"{self.path}/memory.max_usage_in_bytes", 0)

    def was_killed(self):
        events = read(f"{self.path}/memory." + ("oom_control" if self.V1 else "events"))
        return any(int(n) for n in re.findall(r"^oom_kill (\d+)", events, re.M))

    def pids(self):
        return [int(p) for p in read(f"{self.path}/cgroup.procs").split()]

    def close(self):
        """Ends who is left in it, and removes it."""
        for name in [e.name for e in os.scandir(self.path) if e.is_dir()]:
            Cgroup(f"{self.path}/{name}").close()
        for _ in range(200):
            for pid in self.pids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            try:
                os.rmdir(self.path)
                return
            except OSError:
                time.sleep(0.05)


class Swap:
    """Kernel swap on zram or on a file, for the time of one turn."""
    def __init__(self, kind, size, folder):
        self.kind, self.number, self.on = kind, None, False
        self.path = f"{folder}/swap"
        try:
            with unbroken():
                (self.make_zram if kind == "zram" else self.make_file)(size)
                subprocess.run(["swapon", "-p", "32767", self.path], check=True)
                self.on = True
        except BaseException:
            self.close()
            raise

    def make_zram(self, size):
        self.number = read("/sys/class/zram-control/hot_add")
        self.path = f"/dev/zram{self.number}"
        write(f"/sys/block/zram{self.number}/disksize", size)
        subprocess.run(["mkswap", self.path], check=True, stdout=subprocess.DEVNULL)

    def make_file(self, size):
        """Once a run: it is the writing that takes time."""
        if os.path.exists(self.path) and os.path.getsize(self.path) >= size:
            return
        with open(self.path, "wb") as f:
            os.chmod(self.path, 0o600)
            for _ in range(-(-size // MIB)):
                f.write(bytes(MIB))
            os.fsync(f.fileno())
        subprocess.run(["mkswap", self.path], check=True, stdout=subprocess.DEVNULL)

    def peak(self):
        """Most memory that it took: what zram's pages need; a file takes none."""
        if self.kind != "zram":
            return 0
        return int(read(f"/sys/block/zram{self.number}/mm_stat").split()[4])

    def close(self):
        if self.on:
            subprocess.run(["swapoff", self.path], check=False)
        if self.number is not None:
            for _ in range(50): # the kernel may still look at a device that was swap
                try:
                    write("/sys/class/zram-control/hot_remove", self.number)
                    break
                except OSError:
                    time.sleep(0.1)
        self.on, self.number = False, None


def have_zram():
    """The module is loaded where that is needed; returns what undoes it, or None without zram."""
    if os.path.isdir("/sys/class/zram-control"):
        return lambda: None
    if quietly(["modprobe", "zram", "num_devices=0"]) is None:
        return None
    return lambda: quietly(["modprobe", "-r", "zram"])


class Program:
    """A program in a cgroup and a session of its own, so that Ctrl-C reaches only who runs it."""
    def __init__(self, command, env, leaf, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                 err="/dev/null"):
        self.leaf, self.command, self.err = leaf, command, err
        with open(err, "wb") as errors:
            self.start = time.monotonic()
            self.process = subprocess.Popen(
                command, env={**os.environ, **env}, stdin=stdin, stdout=stdout, stderr=errors,
                preexec_fn=leaf.join, start_new_session=True)

    def wait(self, limit):
        """(seconds, seconds of CPU, first KiB of output, its digest); Failed when it does not end well."""
        digest, head, end = hashlib.sha1(), b"", self.start + limit
        while True:
            if not select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                raise Failed(f"not done after {limit:.0f} s")
            part = os.read(self.process.stdout.fileno(), MIB)
            if not part:
                break
            digest.update(part)
            head = head if len(head) > 1024 else head + part[:1024]
        _, status, usage = os.wait4(self.process.pid, 0)
        seconds = time.monotonic() - self.start
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            raise Failed(self.reason())
        return seconds, usage.ru_utime + usage.ru_stime, head.decode(errors="replace"), digest.hexdigest()

    def reason(self):
        if self.leaf.was_killed():
            return "killed for lack of memory in its cgroup"
        last = read(self.err).splitlines()[-1:] or ["nothing said"]
        return f"{os.path.basename(self.command[0])} ended with {self.process.returncode}: {last[0]}"


def describe(root, edm):
    """[(what, value)] of the machine and what runs on it."""
    cpu = re.search(r"model name\s*: (.*)", read("/proc/cpuinfo"))
    memory = int(re.search(r"MemTotal:\s*(\d+)", read("/proc/meminfo"))[1]) / MIB
    commit = quietly(["git", "-C", root, "log", "-1", "--format=%h %s"]) or "unknown"
    changed = quietly(["git", "-C", root, "status", "--porcelain", "--untracked-files=no"])
    packages = "libjemalloc2 redis-server sqlite3 python3 python3-numpy mpich gcc".split()
    versions = quietly(["dpkg-query", "-W", "-f", "${Package} ${Version}, ", *packages]) or ""
    disk = quietly(["findmnt", "-no", "SOURCE,FSTYPE", "-T", "/var/tmp"]) or "?"
    huge = re.search(r"\[(.*)\]", read("/sys/kernel/mm/transparent_hugepage/enabled"))
    return [("commit", commit + (", with changes" if changed else "")),
            ("EDM", quietly([edm, "--version"]) or "?"),
            ("machine", f"{os.cpu_count()} × {cpu[1] if cpu else '?'}, {memory:.0f} GiB"),
            ("kernel", f"{os.uname().release}, cgroups version {1 if Cgroup.V1 else 2}, huge pages "
             f"{huge[1] if huge else '?'}, swappiness {100 if Cgroup.V1 else read('/proc/sys/vm/swappiness')}"),
            ("disk of swap file and store", " ".join(disk.split())),
            ("packages", versions.rstrip(", "))]
