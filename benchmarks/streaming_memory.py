"""Memory of `hrel_ext.collect` over 10,000 mini-batches: does it stay flat?    writes results/streaming_memory.json

The resident size of the process (VmRSS) is read before every 500th mini-batch. Up to 1024 mini-batches the table of
scores grows by 4 bytes for each filter; after that its rows are thinned and nothing grows.
"""
# SPDX-License-Identifier: MIT

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

import hrel_ext
from hrel_ext.experiment import environment
from hrel_ext.scores import MOST_ROWS

ROOT = Path(__file__).parents[1]
FILTERS, SAMPLES, SEED = 512, 16, 1790
TOLERANCE_BYTES = 2**21  # what the allocator and the interpreter may move by


def resident_bytes() -> int:
    return 1024 * int(re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M).group(1))


def measure(count: int, every: int, filters: int = FILTERS, samples: int = SAMPLES) -> dict[str, object]:
    """Score a layer over so many mini-batches.

    Returns:
        Resident bytes by the number of mini-batches before; bytes of the table; how much the second half grew.
    """
    generator = torch.Generator().manual_seed(SEED)
    labels = torch.arange(samples) % 4
    images = torch.randn(samples, 1, 2, 2, generator=generator) + labels[:, None, None, None]
    sizes: dict[int, int] = {}

    def watched(batches: Iterable) -> Iterator:
        for number, batch in enumerate(batches):
            if number % every == 0:
                sizes[number] = resident_bytes()
            yield batch

    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Conv2d(1, filters, 1))
    scores = hrel_ext.collect(model, ((images, labels) for _ in range(count)), sigma=2.0, progress=watched)
    layer = scores["0"]
    later = [size for number, size in sizes.items() if number >= count / 2]
    return {
        "mini_batches": layer.count,
        "filters": filters,
        "samples": samples,
        "resident_bytes": sizes,
        "rows": len(layer.per_batch),
        "table_bytes": layer.per_batch.nbytes
        + layer.widths.nbytes
        + (0 if layer.moments is None else layer.moments.nbytes),
        "unbounded_table_bytes": 4 * layer.count * (filters + 1),
        "second_half_grew_bytes": max(later) - later[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--json", type=Path, default=ROOT / "results/streaming_memory.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.batches, 500)
    settings = {"command": "python benchmarks/streaming_memory.py", "seed": SEED, "environment": environment()}
    args.json.write_text(json.dumps(settings | {"most_rows": MOST_ROWS} | found, indent=1) + "\n")
    print(
        f"{found['mini_batches']} mini-batches, {found['filters']} filters: {found['rows']} rows, "
        f"{found['table_bytes'] / 1e6:.1f} MB; the second half grew by {found['second_half_grew_bytes'] / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
