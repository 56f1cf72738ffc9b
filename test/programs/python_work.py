"""python_work.py dict|bytes|fork|subprocess|numpy SCALE: prints digests of what it computed."""
import hashlib
import multiprocessing
import random
import subprocess
import sys


def digest(*parts):
    h = hashlib.sha256()
    for p in parts:
        h.update(p if isinstance(p, (bytes, bytearray)) else repr(p).encode())
    return h.hexdigest()


def work_dict(scale):
    d = {f"key-{i}": [i, str(i) * 3] for i in range(scale * 500000)}
    order = random.Random(3).sample(range(len(d)), 100000)
    for i in order:
        d[f"key-{i}"].append(i)
    for i in range(0, len(d), 7):
        del d[f"key-{i}"]
    print(len(d), digest(*(f"{k}{v}" for k, v in d.items())))


def work_bytes(scale):
    bufs = [bytearray(random.Random(i).randbytes(1 << 20) * 4) for i in range(scale * 64)]
    for i, b in enumerate(bufs):
        b.extend(bytes([i % 256]) * 100000)
        b[i * 1000:i * 1000 + 10] = b"0123456789"
    for i in range(0, len(bufs), 3):
        bufs[i].reverse()
    print(digest(*bufs))


def child(args):
    first, last = args
    return digest(*DATA[first:last])


def work_fork(scale):
    global DATA
    DATA = [random.Random(i).randbytes(1 << 20) for i in range(scale * 192)]
    step = len(DATA) // 8
    with multiprocessing.get_context("fork").Pool(2) as pool:
        got = pool.map(child, [(i * step, (i + 1) * step) for i in range(8)])
    print(got == [child((i * step, (i + 1) * step)) for i in range(8)], digest(got))


def work_subprocess(scale):
    data = [random.Random(i).randbytes(1 << 20) for i in range(scale * 128)]
    out = []
    for i in range(0, len(data), 8):
        r = subprocess.run(["sha256sum"], input=b"".join(data[i:i + 8]), capture_output=True, check=True)
        out.append(r.stdout)
        pre = subprocess.run(["cat"], input=data[i], capture_output=True, check=True, preexec_fn=lambda: None)
        assert pre.stdout == data[i]
    print(digest(*out))


def work_numpy(scale):
    import numpy as np
    rng = np.random.default_rng(5)
    a = rng.integers(0, 1 << 40, scale * 8000000)
    b = np.sort(a)
    m = rng.random((scale * 1000, 2000))
    print(digest(b.tobytes()), int(b[a.size // 2]), digest((m * 2 + 1).cumsum(axis=0).tobytes()))
    idx = rng.integers(0, a.size, 1000000)
    print(int(a[idx].sum()), digest(np.unique(a & 0xFFFFF).tobytes()))


globals()["work_" + sys.argv[1]](int(sys.argv[2]))
