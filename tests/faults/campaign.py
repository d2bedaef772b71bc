"""Disturb trainings and damage inputs for hours, and count: ``python tests/faults/campaign.py OUT HOURS``.

Each round is a process of its own: some kills of a method's trainings, with full and read-only disks and clocks that jump between
them, or some damaged inputs of one kind (every scene format, checkpoints, runs, recipes, weights, the viewer's messages). Rounds take
turns so that all kinds come on evenly. OUT/totals.json is written after each; started again, the campaign goes on where it ended.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import test_faults
import test_fuzz_readers
import test_fuzz_runs
import test_fuzz_viewer

from nerfit.files import write_json

KILLS, FIRST_SEED = 50, 1_000_000
"""Kills of one round, and the first seed of its own inputs, which no test uses."""
INPUTS = {test_fuzz_readers: 250, test_fuzz_runs: 250, test_fuzz_viewer: 50}
"""Inputs of one round of each module's kinds."""
LIMIT = 1800
"""Seconds after which a round hangs."""
COUNTS = ("kills", "full_disks", "read_only_disks", "clock_jumps", "runs_finished", "runs_lost", "inputs", "tracebacks", "hangs")


@dataclass
class Round:
    """A kind of trouble, and the command that makes the ``turn``-th portion of it; ``inputs`` are how many it damages, 0 for kills."""

    name: str
    script: str
    inputs: int = 0

    def command(self, turn: int, folder: Path) -> list[str]:
        own = [sys.executable, self.script]
        if self.inputs:
            return [*own, str(FIRST_SEED + turn * self.inputs), str(self.inputs), str(folder / "fuzz"), self.name]
        odd_disks = subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode == 0
        return [*(["unshare", "-Urm"] if odd_disks else []), *own, self.name, str(KILLS), str(turn), *(["disks"] if odd_disks else [])]


def all_rounds() -> list[Round]:
    rounds = [Round(method, test_faults.__file__) for method in test_faults.KILLED]
    kinds = {
        test_fuzz_readers: test_fuzz_readers.READERS,
        test_fuzz_runs: test_fuzz_runs.SUBJECTS,
        test_fuzz_viewer: test_fuzz_viewer.SUBJECTS,
    }
    return rounds + [Round(name, str(module.__file__), INPUTS[module]) for module, names in kinds.items() for name in names]


def play(one: Round, turn: int) -> tuple[dict[str, int], list[str]]:
    """What a round counted, its peak memory in MB among it, and its failures."""
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    with (folder / "said").open("w") as said, (folder / "complained").open("w") as complained:
        process = subprocess.Popen(
            one.command(turn, folder), cwd=folder, env=test_fuzz_readers.environment(), stdout=said, stderr=complained
        )
        end = time.monotonic() + LIMIT
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < end:
            time.sleep(0.2)
        hung = time.monotonic() >= end
        if hung:
            process.kill()
        _, status, used = os.wait4(process.pid, 0)
    found = dict.fromkeys(COUNTS, 0) | {"megabytes": used.ru_maxrss >> 10, "hangs": int(hung)}
    lines, complaint = (folder / "said").read_text().splitlines(), (folder / "complained").read_text()
    shutil.rmtree(folder, ignore_errors=True)
    if hung or status:
        return found, [f"{one.name} {turn}: it {'hung' if hung else 'died'}: {complaint[-1500:]}"]
    told = [json.loads(line) for line in lines if line[:1] in "[{"]
    if one.inputs:
        found |= {"inputs": one.inputs, "tracebacks": len(told)}
        return found, [f"{one.name}, seed {seed}: {what[-1500:]}" for _, seed, what in told]
    figures: dict[str, Any] = told[0]
    found |= {"kills": sum(figures["deaths"].values()), "runs_finished": figures["finished"], "runs_lost": len(figures["wrong"])}
    found |= {key: figures[key] for key in ("full_disks", "read_only_disks", "clock_jumps")}
    return found, [f"{one.name} {turn}: {what}" for what in figures["wrong"]]


class Campaign:
    """Totals in a file, and the next round of each kind."""

    def __init__(self, out: Path, rounds: list[Round]) -> None:
        self.file, self.rounds, self.lock = out / "totals.json", rounds, Lock()
        self.totals: dict[str, Any] = {"seconds": 0.0, **dict.fromkeys(COUNTS, 0), "megabytes": 0, "turns": {}, "failures": []}
        if self.file.exists():
            self.totals |= json.loads(self.file.read_text())

    def work(self, end: float) -> None:
        """Play rounds, the kinds with the fewest turns first, until ``end``."""
        while time.monotonic() < end:
            with self.lock:
                turns = self.totals["turns"]
                one = min(self.rounds, key=lambda r: turns.get(r.name, 0))
                turn = turns[one.name] = turns.get(one.name, 0) + 1
            start = time.monotonic()
            found, failures = play(one, turn)
            with self.lock:
                for key in COUNTS:
                    self.totals[key] += found[key]
                self.totals["megabytes"] = max(self.totals["megabytes"], found["megabytes"])
                self.totals["seconds"] += time.monotonic() - start
                self.totals["failures"] += failures
                write_json(self.file, self.totals)
                print(f"{one.name} {turn}: " + ", ".join(f"{self.totals[key]:,} {key}" for key in COUNTS), flush=True)
                for failure in failures:
                    print(" ", failure, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("hours", type=float, help="of this call")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", help="kinds, by name")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rounds = [one for one in all_rounds() if not given.only or one.name in given.only]
    campaign, end = Campaign(given.out, rounds), time.monotonic() + 3600 * given.hours
    with ThreadPoolExecutor(given.processes) as pool:
        for done in [pool.submit(campaign.work, end) for _ in range(given.processes)]:
            done.result()


if __name__ == "__main__":
    main()
