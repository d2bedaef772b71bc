"""Many runs in one table: what each reached, mean and standard deviation over seeds, and the mean over scenes."""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from nerfit.files import write_json, write_text

MEASURES = {
    "psnr": ("PSNR", 2),
    "ssim": ("SSIM", 4),
    "lpips_vgg": ("LPIPS vgg", 4),
    "lpips_alex": ("LPIPS alex", 4),
    "seconds": ("seconds", 1),
    "steps": ("steps", 0),
}
"""The measures that are compared, each with its title and decimals. A run may lack some."""

COLUMNS = ("job", "scene", "recipe", "seed", *MEASURES, "failed", "run")
"""The columns of a job; ``failed`` gives the reason if it has no measures."""


def compare(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``rows`` with their means over seeds (``scenes``, a row for each scene and recipe) and over scenes (``recipes``).

    A measure is a mean and, from two runs on, their standard deviation (n - 1); over scenes it is the mean of the scenes' means,
    of which every scene must have one.
    """
    done = [row for row in rows if row["failed"] is None]
    scenes, recipes = (list(dict.fromkeys(row[name] for row in rows)) for name in ("scene", "recipe"))
    of_scenes = []
    for scene in scenes:
        for recipe in recipes:
            own = [row for row in done if (row["scene"], row["recipe"]) == (scene, recipe)]
            of_scenes.append({"scene": scene, "recipe": recipe, "runs": len(own)} | {name: _spread(own, name) for name in MEASURES})
    of_recipes = []
    for recipe in recipes:
        means = {name: [row[name] and row[name]["mean"] for row in of_scenes if row["recipe"] == recipe] for name in MEASURES}
        whole = {name: statistics.fmean(values) if None not in values else None for name, values in means.items()}
        of_recipes.append({"recipe": recipe, "scenes": len(scenes)} | whole)
    return {"jobs": list(rows), "scenes": of_scenes, "recipes": of_recipes}


def _spread(rows: Sequence[dict[str, Any]], name: str) -> dict[str, float] | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values or len(values) < len(rows):
        return None
    return {"mean": statistics.fmean(values)} | ({"sd": statistics.stdev(values)} if len(values) > 1 else {})


def table(found: dict[str, Any]) -> str:
    """The comparison in Markdown, and below it why jobs failed."""
    shown = [name for name in MEASURES if any(row[name] for row in found["scenes"])]
    drawn = Table(box=box.MARKDOWN)
    for title in ("scene", "recipe", "runs"):
        drawn.add_column(title)
    for name in shown:
        drawn.add_column(MEASURES[name][0], justify="right")
    for row in found["scenes"]:
        drawn.add_row(row["scene"], row["recipe"], str(row["runs"]), *(_cell(row[name], MEASURES[name][1]) for name in shown))
    for row in found["recipes"] if len({row["scene"] for row in found["scenes"]}) > 1 else ():
        means = (_cell(None if row[name] is None else {"mean": row[name]}, MEASURES[name][1]) for name in shown)
        drawn.add_row(f"mean of {row['scenes']}", row["recipe"], "", *means)
    failed = [f"- {row['job']}: {row['failed']}" for row in found["jobs"] if row["failed"] is not None]
    return "\n".join([_text(drawn), *([""] if failed else []), *failed])


def _text(drawn: Table) -> str:
    console = Console(width=1000)
    with console.capture() as capture:
        console.print(drawn)
    return "\n".join(line.strip() for line in capture.get().strip().splitlines())


def _cell(value: dict[str, float] | None, decimals: int) -> str:
    if value is None:
        return "–"
    return " ± ".join(f"{value[key]:.{decimals}f}" for key in ("mean", "sd") if key in value)


def write(found: dict[str, Any], folder: Path) -> None:
    """sweep.json with all of it, sweep.csv with a line for each job, sweep.md with the table."""
    write_json(folder / "sweep.json", found)
    write_text(folder / "sweep.csv", _csv(found["jobs"]))
    write_text(folder / "sweep.md", table(found) + "\n")


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
