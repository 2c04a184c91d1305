r"""One command for a GPU on which this project has never run: tests, speeds, memory, resumption.

    python -m benchmarks.gpu_check
    python -m benchmarks.gpu_check --only tests resume --json result.json
    python -m benchmarks.gpu_check --pretend

It needs no network; encoders of the shape of bert-base with random weights, and sentences of the lengths of real data
sets, it makes itself. Each check is a process of its own; after one that fails, the others go on, and what does not fit
into `--minutes` is said. `--pretend` walks through all of it with tiny encoders, on the CPU too.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.checks import CHECKS, PACKAGES, Row
from benchmarks.gpu_check.material import Material
from benchmarks.measuring import hardware, versions, write_json
from bertorch import distributed, log


def main() -> None:
    """Run the checks, print a table, write JSON on demand; exit code 1 if a check failed or did not run."""
    options = _options()
    if options.run:
        _run_one(options)
        return
    if not torch.cuda.is_available() and not options.pretend:
        sys.exit("no CUDA GPU was found; --pretend walks through the checks on the CPU")
    log.setup()
    deadline = time.monotonic() + 60 * options.minutes
    result: dict[str, Any] = {
        "hardware": hardware(distributed.device()),
        "versions": versions("torch", "transformers"),
        "checks": {},
    }
    print(result["hardware"], result["versions"], flush=True)
    names = options.only or list(CHECKS)
    for name in names:
        if missing := [package for package in PACKAGES.get(name, ()) if not find_spec(package)]:
            print(f"{name} will fail without {', '.join(missing)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        Material(Path(folder), options.pretend).make()
        for name in names:
            result["checks"][name] = check = _run(name, folder, options, deadline - time.monotonic())
            _print(name, check)
            write_json(result, options.json)
    failed = [name for name, check in result["checks"].items() if check["failure"]]
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    sys.exit(1 if failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), help="by default all, in this order")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all together")
    parser.add_argument("--pretend", action="store_true", help="tiny encoders and few steps, also on the CPU")
    parser.add_argument("--json", help="also write the result to this file, after each check")
    parser.add_argument("--run", choices=list(CHECKS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(name: str, folder: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run a check in a process of its own; what it has measured until it failed counts."""
    rows_file = Path(folder) / "rows.json"
    rows_file.write_text("[]")
    if seconds < 1:
        return {"seconds": 0.0, "rows": [], "failure": "not run, there was no time left"}
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--run", name, "--folder", folder]
    if options.pretend:
        command.append("--pretend")
    began = time.monotonic()
    output_file = Path(folder) / "output.txt"
    with (
        output_file.open("w") as output,
        # A session of its own, so that what it has started (pytest, compilers) ends with it.
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        try:
            code = process.wait(seconds)
            failure = ""
        except subprocess.TimeoutExpired:
            code, failure = -signal.SIGKILL, f"not done after {seconds:.0f} s"
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    logged = output_file.read_text(errors="replace")
    if code and not failure:
        failure = (logged.strip().splitlines() or ["no output"])[-1]
    rows = [Row(*row)._asdict() for row in json.loads(rows_file.read_text())]
    taken = {"seconds": time.monotonic() - began, "rows": rows, "failure": failure}
    return taken | ({"output": logged} if failure else {})


def _run_one(options: argparse.Namespace) -> None:
    """A check in its own process: rows are written as they come."""
    log.setup()
    rows: list[Row] = []
    for row in CHECKS[options.run](Material(Path(options.folder), options.pretend)):
        rows.append(row)
        (Path(options.folder) / "rows.json").write_text(json.dumps(rows))


def _print(name: str, check: dict[str, Any]) -> None:
    print(f"\n{name}: {'FAILED' if check['failure'] else 'passed'}, {check['seconds']:.0f} s", flush=True)
    for row in check["rows"]:
        print(f"  {row['what']:60} {row['value']:10.4g} {row['unit']}")
    if check["failure"]:
        print(f"  {check['failure']}\n{check.get('output', '')[-4000:]}", flush=True)


if __name__ == "__main__":
    main()
