"""The options that every kind of nerfit export shares, and the place that it writes to."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nerfit.commands.options import DeviceOptions, RunOptions
from nerfit.errors import RunError
from nerfit.progress import tick
from nerfit.runs import Run, numbered_folders, open_run


@dataclass(kw_only=True)
class ExportOptions(RunOptions):
    """Options of every export."""

    out: Path | None = None
    """File or folder to write; none = into exports/ in the run."""


@dataclass(kw_only=True)
class FieldOptions(ExportOptions, DeviceOptions):
    """Options of every export that asks the trained field."""

    def open(self) -> Run:
        """The trained run."""
        return open_run(self.run, images=False, threads=self.threads, device=self.device)

    def place(self, name: str, beside: Callable[[Path], list[Path]] = lambda path: []) -> Path:
        """The path of the export, by default ``name`` in exports/; neither it nor the files that come ``beside`` it exist yet.

        Raises RunError where nothing can be written, before any work is done.
        """

        def taken(path: Path) -> list[Path]:
            return [p for p in (path, *beside(path)) if p.exists()]

        if self.out is None:
            stem, suffix = Path(name).stem, Path(name).suffix
            numbered = (p.with_name(p.name + suffix) for p in numbered_folders(self.run / "exports" / stem))
            return _writable(next(p for p in numbered if not taken(p)))
        for there in taken(self.out):
            raise RunError(f"{there} exists already: choose another --out.")
        return _writable(self.out)


def _writable(path: Path) -> Path:
    """``path``, if something can be written there; RunError where its folder is none, or is protected."""
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RunError(
            f"{path} can't be written, for {above} is {'write-protected' if above.is_dir() else 'no folder'}: choose another --out."
        )
    return path


def extent(points: torch.Tensor) -> dict[str, Any]:
    """The corners of the box around points [n, 3]."""
    low, high = points.amin(0), points.amax(0)
    return {"low": [round(x, 6) for x in low.tolist()], "high": [round(x, 6) for x in high.tolist()]}


def report(done: int, of: int) -> None:
    """Show how many views are done."""
    tick(done, of, "views")


def text(answer: dict[str, Any]) -> str:
    """The file, and its facts on a line."""
    details = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in answer.items() if name != "written")
    return "\n".join(filter(None, [answer["written"], details]))
