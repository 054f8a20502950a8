"""Extra memory of one hrel_ext.relevance in a fresh process: peak_memory.py SAMPLES FILTERS POSITIONS THREADS, to JSON.

The kernel keeps the largest resident size of a process (VmHWM in /proc/self/status); writing 5 to /proc/self/clear_refs
sets it back to the present size. What it has grown by when the call returns is everything that the call touched beyond
its operands: scratch, results and stacks, to the few hundred KB within which the kernel counts. Linux with glibc only.
"""
# SPDX-License-Identifier: MIT

import ctypes
import json
import os
import re
import sys
from pathlib import Path

# Blocks of 64 KB and more come from the kernel and go back to it: reused memory would not count.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def status_bytes(field: str) -> int:
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M).group(1))


def main() -> None:
    import torch

    import hrel_ext
    from hrel_ext.testing import Case

    samples, filters, positions, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    sigma = positions**0.5
    # The first call, on few filters, loads what there is to load and fits the weights for this N, once a process.
    for f in (min(filters, 8 * threads), filters):
        acts, labels = Case("", "", samples, f, (positions,), num_classes=10, data="rectified", balanced=False).make()
        ctypes.CDLL(None).malloc_trim(0)  # pages of blocks that are free already would not count either
        Path("/proc/self/clear_refs").write_text("5")
        before = status_bytes("VmHWM")
        hrel_ext.relevance(acts, labels, sigma=sigma)
        extra = status_bytes("VmHWM") - before
    names = ("samples", "filters", "positions", "threads")
    shape = dict(zip(names, (samples, filters, positions, threads), strict=True))
    print(json.dumps({**shape, "operand_bytes": acts.numel() * acts.element_size(), "extra_bytes": extra}))


if __name__ == "__main__":
    if MALLOC.items() <= os.environ.items():
        main()
    else:  # the C library reads them before main
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)
