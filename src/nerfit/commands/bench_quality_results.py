"""The files that a time-to-quality benchmark writes: results.json, results.csv and results.svg."""

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from nerfit.errors import RunError
from nerfit.files import write_json, write_text

_GIVEN = ("method", "source", "flags")


@dataclass
class Results:
    """One row per training: budget (seconds), seed, and what `COLUMNS` names; the first three fields say of what."""

    method: str
    source: str
    flags: list[str]
    machine: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def resume(self, folder: Path) -> None:
        """Take over the rows in ``folder``; RunError if they are of another training."""
        path = folder / "results.json"
        try:
            found = json.loads(path.read_text("utf-8"))
            rows, given = sorted(found["rows"], key=_place), [found[key] for key in _GIVEN]
            _ = [row[column] for row in rows for column in COLUMNS]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} can't be read ({type(error).__name__}): choose another --out.") from error
        if given != [getattr(self, key) for key in _GIVEN]:
            was = " ".join([given[0], given[1], *given[2]])
            raise RunError(f"{folder} holds results of another training ({was}): choose another --out.")
        self.rows = rows

    def holds(self, budget: float, seed: int) -> bool:
        """Whether this training is done."""
        return (budget, seed) in map(_place, self.rows)

    def add(self, row: dict[str, Any], folder: Path) -> None:
        """One more training, written at once."""
        self.rows = sorted([*self.rows, row], key=_place)
        self.save(folder)

    def save(self, folder: Path) -> None:
        """Write the table as JSON and CSV, and the chart where there is a row."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list[str](COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "results.json", asdict(self))
            write_text(folder / "results.csv", text.getvalue())
            if self.rows:
                title = f"{self.method} on {Path(self.source).name} ({self.machine['cpu']}, threads: {self.machine['threads']})"
                write_text(folder / "results.svg", quality_chart([(r["seconds"], r["psnr"], r["budget"]) for r in self.rows], title))
        except OSError as error:
            raise RunError(f"the results can't be written to {folder}: {error.strerror}.") from error


COLUMNS = ("budget", "seed", "steps", "rays", "seconds", "psnr", "peak_memory_mb", "matrix_peak_gflops", "threads", "date", "run")


def _place(row: dict[str, Any]) -> tuple[float, int]:
    return row["budget"], row["seed"]


_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 20, 36, 48


def quality_chart(points: Sequence[tuple[float, float, float]], title: str) -> str:
    """SVG of PSNR over the logarithm of seconds: a dot for each (seconds, PSNR, budget), a line through each budget's means."""
    budgets = sorted({budget for *_, budget in points})
    step = _nice((max(p for _, p, _ in points) - min(p for _, p, _ in points)) / 6)
    low = step * math.floor(min(p for _, p, _ in points) / step)
    high = max(step * math.ceil(max(p for _, p, _ in points) / step), low + step)
    times = [*budgets, *(s for s, *_ in points)]
    first, last = math.log(min(times) / 1.15), math.log(max(times) * 1.15)

    def across(seconds: float) -> str:
        return f"{_LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log(seconds) - first) / (last - first):.1f}"

    def down(psnr: float) -> str:
        return f"{_TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - psnr) / (high - low):.1f}"

    marks = [low + i * step for i in range(round((high - low) / step) + 1)]
    floor = _HEIGHT - _BOTTOM
    grid = [f'<path d="M{_LEFT} {down(y)}H{_WIDTH - _RIGHT}"/>' for y in marks]
    grid += [f'<path d="M{across(x)} {_TOP}V{floor}"/>' for x in budgets]
    labels = [f'<text x="{_LEFT - 8}" y="{down(y)}" dy="4" text-anchor="end">{y:.{_digits(step)}f}</text>' for y in marks]
    labels += [f'<text x="{across(x)}" y="{floor + 18}" text-anchor="middle">{x:g}</text>' for x in budgets]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    labels.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">seconds of training (logarithmic)</text>')
    labels.append(f'<text transform="translate(14 {(_TOP + floor) / 2}) rotate(-90)" text-anchor="middle">test PSNR in dB</text>')
    labels.append(f'<text x="{middle}" y="20" text-anchor="middle">{escape(title)}</text>')
    mean: Callable[[int, float], float] = lambda i, budget: statistics.fmean(p[i] for p in points if p[2] == budget)  # noqa: E731
    line = " ".join(f"{across(mean(0, budget))},{down(mean(1, budget))}" for budget in budgets)
    dots = [f'<circle cx="{across(s)}" cy="{down(p)}" r="3.5"/>' for s, p, _ in points]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            '<g stroke="#ddd" fill="none">',
            *grid,
            '</g>\n<g font-family="sans-serif" font-size="12" fill="#333">',
            *labels,
            f'</g>\n<polyline points="{line}" fill="none" stroke="#1f5fa8" stroke-width="2"/>\n<g fill="#1f5fa8">',
            *dots,
            "</g>\n</svg>\n",
        ]
    )


def _nice(step: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is no smaller, at least 0.1."""
    power = 10.0 ** math.floor(math.log10(max(step, 0.1)) + 1e-9)
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9) or m == 10)


def _digits(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))
