"""Resolve nerfit's dependencies for every system and Python from wheels alone, without installing them.

    python .ci/wheels.py [EXTRA ...] [--pythons 3.11 3.14]

Prints a table with the versions of what is compiled. Exits 1 where a resolution fails, with its reason; 0 with a sentence where the package
index can't be reached.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SYSTEMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux ARM64": "aarch64-manylinux_2_28",
    "macOS 14 ARM64": "aarch64-apple-darwin",
    "Windows x64": "x86_64-pc-windows-msvc",
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SHOWN = ("torch", "numba", "av", "scikit-image", "pycolmap")
UNREACHABLE = r"dns error|[Cc]onnect|timed out|[Nn]etwork|tunnel|503 Service|502 Bad"


def resolve(system: str, python: str, extras: list[str]) -> subprocess.CompletedProcess[str]:
    """The pinned tree, as uv finds it."""
    words = ["--python-platform", SYSTEMS[system], "--python-version", python, *(f"--extra={extra}" for extra in extras)]
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-header", "--no-annotate"]
    env = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
    command += ["--only-binary", ":all:", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, encoding="utf-8")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--pythons", nargs="+", default=PYTHONS)
    options = parser.parse_args()
    cases = [(system, python) for system in SYSTEMS for python in options.pythons]
    first = resolve(*cases[0], options.extras)  # fills uv's cache for the others
    if first.returncode and re.search(UNREACHABLE, first.stderr):
        print(f"wheels: skipped, the package index can't be reached: {first.stderr.strip().splitlines()[-1]}")
        return 0
    with ThreadPoolExecutor(4) as pool:
        found = [first, *pool.map(lambda case: resolve(*case, options.extras), cases[1:])]
    print(f"| system | Python | packages | {' | '.join(SHOWN)} |\n|{'---|' * (3 + len(SHOWN))}")
    for (system, python), done in zip(cases, found, strict=True):
        versions = dict(line.split("==") for line in done.stdout.splitlines() if "==" in line)
        cells = [versions.get(name, "none") for name in SHOWN] if done.returncode == 0 else ["fails"] * len(SHOWN)
        print(f"| {' | '.join([system, python, str(len(versions)), *cells])} |")
        print(done.stderr if done.returncode else "", end="", file=sys.stderr)
    return max(abs(done.returncode) for done in found)


if __name__ == "__main__":
    sys.exit(main())
