"""``scripts/torture``: kill runs at drawn moments, and compare what they end with."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.torture.campaign import Campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument(
        "--executed",
        metavar="N",
        type=int,
        help="of these, kills of `python -m streamkm` over large arrays, seconds each; the others "
        "are of forks that run it over small ones (default: one of 20)",
    )
    parser.add_argument(
        "--processes",
        action="store_true",
        help="kill one of 1 to 4 processes that share a run; their number changes at every attempt",
    )
    parser.add_argument("--seed", type=int, default=0, help="of every draw (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary one)")
    arguments = parser.parse_args()
    executed = arguments.kills // 20 if arguments.executed is None else arguments.executed
    with tempfile.TemporaryDirectory(prefix="torture-", dir=arguments.folder) as folder:
        campaign = Campaign(Path(folder), arguments.seed)
        if arguments.processes:
            campaign.several(arguments.kills - executed, executed=False)
            campaign.several(executed, executed=True)
        else:
            campaign.small(arguments.kills - executed)
            campaign.large(executed)
    print(json.dumps(campaign.figures.as_dict(), indent=2))
    print(campaign.figures, file=sys.stderr)
    return 1 if campaign.figures.differences else 0


if __name__ == "__main__":
    sys.exit(main())
