"""numpy_work.py MIB: arrays of about MIB MiB together: made, gathered in another order, sorted,
summed by groups, multiplied. Prints digests of the results."""
import sys
import zlib

import numpy as np


def show(name, array):
    print(name, array.size, f"{zlib.crc32(np.ascontiguousarray(array)):08x}")


def main():
    n = (int(sys.argv[1]) << 20) // 40
    rng = np.random.default_rng(1)
    keys = rng.integers(0, n, n)
    order = rng.permutation(n)
    show("gathered", keys[order])
    keys.sort()
    show("sorted", keys)
    for _ in range(3):
        keys = keys[order] * 3 + 1
    show("mixed", keys)
    show("groups", np.bincount(keys % 100003))
    side = int(n ** 0.5) // 2
    square = keys[: side * side].reshape(side, side) % 1000
    show("transposed", square.T + square)


main()
