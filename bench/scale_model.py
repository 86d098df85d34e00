"""Predicts how a fit scales from 1 to 64 nodes of 8 GPUs, and says where that ends and why.

``python -m bench.scale_model [K [D]]`` prints a table. No GPU has run streamkm on several nodes:
the rates are assumptions, and `ASSUMED` names the source of each. The model is in `bench.scaling`.
``--check OUT.json`` compares it with what several processes do on this machine, from rates that are
measured here (see `bench.scale_check`).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench.scale_check import check
from bench.scaling import Job, Machine, Network, Rates, predict, where_it_ends

#: Nodes, and GPUs of each, that the table shows.
WITHIN_A_NODE = ((1, 1), (1, 2), (1, 4), (1, 8))
OVER_NODES = ((1, 8), (2, 8), (4, 8), (8, 8), (16, 8), (32, 8), (64, 8))


class Assumed(NamedTuple):
    """A figure that was not measured here."""

    value: float
    what: str
    source: str


ASSUMED = {
    "storage": Assumed(
        40e9, "bytes/s that a node reads",
        "DGX SuperPOD H100 reference architecture: over 40 GB/s",
    ),
    "decode": Assumed(
        2.5e9, "bytes/s that a reader decodes of LZ4",
        "measured on two cores (Zen 4): 5.0 GB/s",
    ),
    "deal": Assumed(
        1.5e-8, "s for the place of a row in mini-batches",
        "measured on one core (Zen 5)",
    ),
    "readers": Assumed(
        12, "readers of a process",
        "DGX H100: 112 cores for 8 GPUs",
    ),
    "host link": Assumed(
        41e9, "bytes/s from the host to a GPU",
        "cuVS on an H100: 30M x 1024 float32, 20 passes, 59.8 s",
    ),
    "GPU memory": Assumed(
        4.3e12, "bytes/s that a GPU copies, read and written",
        "published for the H200",
    ),
    "score": Assumed(
        0.34e-12, "s for a score of a row and a centroid",
        "line through flashlib's Triton kernel, bfloat16, whole passes: "
        "208, 266, 353 TFLOP/s at 64, 128, 256 features",
    ),
    "score's feature": Assumed(
        4.35e-15, "s more for each feature of it",
        "the same line, within 7 % of the three",
    ),
    "tiles": Assumed(
        132 * 128, "rows that fill a GPU",
        "132 multiprocessors of an H100 x tiles of 128 rows",
    ),
    "launch": Assumed(
        6e-6, "s for the launch of an operation",
        "published: 5 to 25 microseconds on the host",
    ),
    "minibatch": Assumed(
        94, "operations of a batch, mini-batches",
        "counted",
    ),
    "lloyd": Assumed(
        37, "operations of a batch, lloyd",
        "counted, on a CPU",
    ),
    "NVLink": Assumed(
        476e9, "bytes/s of an all-reduce within a node",
        "nccl-tests on 8 x H100: nccl-tests#290",
    ),
    "reduction": Assumed(
        6.8e-6, "s for an all-reduce without its hops",
        "NCCL's model of itself, src/graph/tuning.cc",
    ),
    "NVLink hop": Assumed(
        0.6e-6, "s from GPU to GPU",
        "the same",
    ),
    "InfiniBand": Assumed(
        8 * 47e9, "bytes/s of a node, 8 adapters of 400 Gb/s",
        "46 to 48 GB/s each: nccl-tests#290",
    ),
    "InfiniBand hop": Assumed(
        5e-6, "s from node to node",
        "NCCL's model of itself",
    ),
    "Ethernet": Assumed(
        2.9e9, "bytes/s of a node, one adapter of 25 Gb/s",
        "the same share of its 25 Gb/s",
    ),
    "Ethernet hop": Assumed(
        25e-6, "s from node to node, by TCP",
        "no source",
    ),
}  # fmt: skip


def assumed(name: str) -> float:
    return ASSUMED[name].value


def networks() -> dict[str, Network]:
    """NVLink within a node, and either between nodes."""
    inside = assumed("reduction"), assumed("NVLink"), assumed("NVLink hop")
    return {
        name: Network(*inside, assumed(name), assumed(f"{name} hop"))
        for name in ("InfiniBand", "Ethernet")
    }


def gpu_rates(job: Job) -> Rates:
    """Of one process with a GPU."""
    row_bytes, numbers = job.spec.row_bytes, job.k * job.d
    score_s = assumed("score") + job.d * assumed("score's feature")
    return Rates(
        read_s=row_bytes / assumed("decode"),
        deal_s=assumed("deal") if job.in_steps else 0.0,
        copy_s=row_bytes / assumed("host link"),
        # Each byte is read and written.
        prepare_s=2 * row_bytes / assumed("GPU memory"),
        assign_s=job.k * score_s,
        batch_s=assumed(job.algorithm) * assumed("launch"),
        # Sums of 8 bytes are read twice and written once, centroids of 4 read and written.
        move_s=32 * numbers / assumed("GPU memory"),
        least_rows=int(assumed("tiles")),
    )


def table(jobs: list[Job]) -> str:
    """Rows/s of each job on each network, what bounds them, and where more processes do not pay."""
    machine = Machine(int(assumed("readers")), storage=assumed("storage"))
    sizes = dict.fromkeys(WITHIN_A_NODE + OVER_NODES)
    columns, ends = [], {}
    for job in jobs:
        for name, network in networks().items():
            title = f"{job.algorithm}, {name}"
            found = {size: predict(job, gpu_rates(job), machine, network, *size) for size in sizes}
            columns.append((title, found))
            within = where_it_ends(job, [found[size] for size in WITHIN_A_NODE])
            ends[f"{job.algorithm}, in a node"] = within
            ends[title] = where_it_ends(job, [found[size] for size in OVER_NODES])
    lines = [f"{'nodes':>5}{'GPUs':>5}  " + "".join(f"{title:<23}" for title, _ in columns)]
    for n_nodes, n_local in sizes:
        shown = [found[n_nodes, n_local] for _, found in columns]
        cells = (f"{each.rows_per_s / 1e6:>9,.1f} {each.bound:<13}" for each in shown)
        lines.append(f"{n_nodes:>5}{n_nodes * n_local:>5}  {''.join(cells)}")
    said = (f"{title}: {end}" for title, end in ends.items())
    return "\n".join(line.rstrip() for line in (*lines, "", *said))


def assumptions() -> str:
    """Every assumption with its source."""
    return "\n".join(
        f"{name:<16} {value:<9.3g} {what:<44} {source}"
        for name, (value, what, source) in ASSUMED.items()
    )


def main(argv: list[str] | None = None) -> int:
    """Print the table, or check the model."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale_model", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("k", metavar="K", type=int, nargs="?", default=1000)
    parser.add_argument("d", metavar="D", type=int, nargs="?", default=128)
    parser.add_argument("--rows", type=int, default=10**9, help="rows (%(default)s)")
    parser.add_argument(
        "--block-bytes", type=int, default=1 << 20, help="bytes of a block (%(default)s)"
    )
    parser.add_argument("--batch-rows", type=int, help="rows of a batch (as streamkm chooses)")
    parser.add_argument(
        "--check", metavar="OUT.json", type=Path, help="compare it with this machine"
    )
    parser.add_argument("--minutes", type=float, default=20, help="of the check (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.check:
        return check(arguments.check, 10**6, {64: 8, 1024: 3}, arguments.minutes)
    jobs = []
    for algorithm in ("lloyd", "minibatch"):
        job = Job.usual(algorithm, arguments.k, arguments.d, arguments.rows, arguments.block_bytes)
        jobs.append(replace(job, batch_rows=arguments.batch_rows or job.batch_rows))
    print(
        f"K={arguments.k:,}, D={arguments.d:,}, {arguments.rows:,} rows of float32, blocks of "
        f"{jobs[0].block_rows:,} rows, batches of {jobs[0].batch_rows:,}:\n"
        "millions of rows a second, and what bounds them, predicted from assumed rates\n"
    )
    print(table(jobs))
    print(f"\nassumed:\n{assumptions()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
