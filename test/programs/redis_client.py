"""redis_client.py SOCKET fill|read|write|digest COUNT [ROUND]: a client for the redis test.

fill: COUNT values of 1 KiB; read: every one is read back and compared; write: the values of every
third key get contents ROUND, pipelined, until the file named by the environment STOP exists;
digest: one hash over all keys and values, in order; expect: what that should be, without a server."""
import hashlib
import os
import random
import socket
import sys

SIZE = 1024
BATCH = 500


def value(i, turn=0):
    r = random.Random(i * 1000003 + turn)
    return (b"%d:%d:" % (i, turn) + r.randbytes(SIZE // 2).hex().encode())[:SIZE]


class Redis:
    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(path)
        self.f = self.s.makefile("rb", buffering=1 << 20)

    def send(self, commands):
        out = []
        for args in commands:
            out.append(b"*%d\r\n" % len(args))
            for a in args:
                out.append(b"$%d\r\n%s\r\n" % (len(a), a))
        self.s.sendall(b"".join(out))

    def reply(self):
        line = self.f.readline()
        if line[:1] == b"$":
            n = int(line[1:])
            return None if n < 0 else self.f.read(n + 2)[:-2]
        if line[:1] in (b"+", b":"):
            return line[1:-2]
        raise SystemExit(f"redis says {line!r}")

    def call(self, commands):
        self.send(commands)
        return [self.reply() for _ in commands]


def batches(count):
    for first in range(0, count, BATCH):
        yield range(first, min(first + BATCH, count))


def fill(r, count):
    for b in batches(count):
        r.call([(b"SET", b"key:%d" % i, value(i)) for i in b])


def read(r, count):
    order = list(batches(count))
    random.Random(1).shuffle(order)
    for b in order:
        got = r.call([(b"GET", b"key:%d" % i) for i in b])
        for i, v in zip(b, got):
            if v != value(i):
                raise SystemExit(f"key:{i} is {v[:60] if v else v!r}..., not what was set")


def write(r, count):
    turn = 1
    while not os.path.exists(os.environ["STOP"]):
        for b in batches(count):
            r.call([(b"SET", b"key:%d" % i, value(i, turn)) for i in b if i % 3 == 0])
            if os.path.exists(os.environ["STOP"]):
                break
        turn += 1


def digest(r, count):
    h = hashlib.sha256()
    for b in batches(count):
        for v in r.call([(b"GET", b"key:%d" % i) for i in b if i % 3]):
            h.update(v or b"none")
    print(h.hexdigest(), r.call([(b"DBSIZE",)])[0].decode())


def expect(_, count):
    h = hashlib.sha256()
    for i in range(count):
        if i % 3:
            h.update(value(i))
    print(h.hexdigest(), count)


verbs = {"fill": fill, "read": read, "write": write, "digest": digest, "expect": expect}
r = Redis(sys.argv[1]) if sys.argv[2] != "expect" else None
verbs[sys.argv[2]](r, int(sys.argv[3]))
