r"""How often `bertorch.compare` calls runs different that differ by their seed alone.

    python -m benchmarks.false_alarms 'runs/*/report'

The pattern names reports of `bertorch.evaluate`, a run a seed with the same options. Two groups of `--size` runs are
drawn from them at random, `--draws` times, and compared as the command compares groups, by accuracy (or `--measure`);
then each pair of single runs is compared as it compares those. A right test calls a share of 0.05 significant at 0.05.
"""

import argparse
from itertools import combinations

import numpy as np

from benchmarks.measuring import positive
from bertorch.compare import read_groups
from bertorch.significance import paired_test, permutation_test

LEVEL = 0.05


def main() -> None:
    """Draw, compare, print."""
    options = _parser().parse_args()
    (group,), name = read_groups([options.pattern], options.measure)
    measure = group.runs[0].table.measures[name]
    columns = group.columns(measure)
    values = np.array([measure.of(of_run) for of_run in columns])  # (runs,)
    print(f"{name} of {len(values)} runs: mean {values.mean():.4f}, standard deviation {values.std(ddof=1):.4f}")
    random = np.random.default_rng(options.seed)
    alarms = 0
    for _ in range(options.draws):
        chosen = values[random.permutation(len(values))[: 2 * options.size]]
        alarms += permutation_test(chosen[: options.size].tolist(), chosen[options.size :].tolist()).p <= LEVEL
    print(f"{options.draws} draws of {options.size} against {options.size}: {alarms / options.draws:.3f} significant")
    single = [paired_test(measure, *pair).p <= LEVEL for pair in combinations(columns, 2)]
    print(f"{len(single)} pairs of single runs: {np.mean(single):.3f} significant")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", help="of the folders with the reports")
    parser.add_argument("--measure", help="by default the main one")
    parser.add_argument("--size", type=positive, default=5, help="runs of a group")
    parser.add_argument("--draws", type=positive, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    return parser


if __name__ == "__main__":
    main()
