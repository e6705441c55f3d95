"""``make coverage``: right everywhere? Each model of torchvision and many of timm, at random weights, into a table."""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch

from tests.zoo import table
from tests.zoo.check import timed
from tests.zoo.models import cases


def main() -> None:
    """Try the models, write the table as it grows, count the verdicts."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="models or kinds to try; the other lines stay")
    parser.add_argument("--resume", action="store_true", help="leave out models that the table calls right")
    options = parser.parse_args()
    every = {case.key: case for case in cases()}
    rows = {key: row for key, row in table.read().items() if key in every} if options.only or options.resume else {}
    chosen = [c for c in every.values() if options.only is None or {c.name, c.kind, c.key} & set(options.only)]
    if options.resume:
        chosen = [c for c in chosen if c.key not in rows or rows[c.key].verdict != "right"]
    # One thread each: most of these networks are too small for more.
    workers = min(os.cpu_count() or 1, 4)
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(timed, case): case for case in chosen}
        for done, future in enumerate(as_completed(futures), 1):
            key = futures[future].key
            rows[key], seconds = future.result()
            print(f"{done}/{len(chosen)} {key}, {seconds:.1f} s: {', '.join(rows[key][1:])}", flush=True)
            table.write([(case.kind, rows[key]) for key, case in every.items() if key in rows])
    print(table.summary(list(rows.values())))


if __name__ == "__main__":
    main()
