"""Break the program on purpose, and count what holds.

    make faults                            all groups (under 30 minutes)
    make faults GROUP=mutations
            one of kills, mutations, hostile, disks; groups may run side by side
    python tests/faults --share 0.02       a fiftieth of the counts

Prints a table, and writes results/faults/GROUP.json with every count, the place of every kill and
every failure. Files that failed are kept under results/faults/. Ends with 1 on any failure.
"""
from __future__ import annotations

import os

# A child of a fork has one thread: a pool of its parent's would never answer it.
os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "GDAL")})

import argparse
import shutil
import sys
import time
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parents[n]) for n in (1, 2))

import disks
import harness
import hostile
import kills
import mutations

GROUPS = {"kills": kills.run, "mutations": mutations.run, "hostile": hostile.run,
          "disks": disks.run}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP",
                        help=f"of {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--share", type=float, default=1.0, help="of the counts (default: 1)")
    parser.add_argument("--seed", type=int, default=2021,
                        help="of the draws (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/faults"),
                        help="(default: %(default)s)")
    options = parser.parse_args()
    tallies = []
    for group in options.groups or GROUPS:
        scratch, begin = options.out.absolute() / group, time.perf_counter()
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        found = []
        for tally in GROUPS[group](scratch, options.share, options.seed):
            found.append(tally)
            print(f"{group}: {tally.what}: {dict(tally.outcomes)}, {len(tally.failures)} failures",
                  file=sys.stderr, flush=True)
            for failure in tally.failures[:5]:
                print(f"  {failure}", file=sys.stderr)
        harness.save(options.out / f"{group}.json", found)
        print(f"{group}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        if not any(tally.failures for tally in found):
            shutil.rmtree(scratch)
        tallies += found
    print(harness.table(tallies))
    failures = sum(len(tally.failures) for tally in tallies)
    print(f"\n{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
