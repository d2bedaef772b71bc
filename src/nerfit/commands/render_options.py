"""What `nerfit render` is asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nerfit.commands.options import SharedOptions


@dataclass
class Options(SharedOptions):
    """nerfit render RUN: pictures and videos along a camera path."""

    path: str | None = None
    """circle, sphere, spiral, spiral-flat, interpolate, ellipse, still, test, or a JSON file (key frames, or a
    transforms file in the scene's world); none = the scene's own."""
    what: str | None = None
    """Any of rgb,depth,disparity,opacity,normal, separated by commas; none = rgb and, of a field, disparity."""
    factor: float = 1.0
    """Shrink the pictures by this factor (the old render_factor)."""
    frames: int | None = None
    """Frames; none = the path's own number."""
    fps: float = 30.0
    """Frames per second of the videos."""
    side_by_side: bool = False
    """One video with all quantities side by side, instead of one video of each."""
    video: Literal["mp4", "gif", "webp"] = "mp4"
    """Format of the videos."""
    out: Path | None = None
    """Folder; none = renders/<path> in the run."""
    workers: int = 0
    """Processes on Ray that draw the frames, in pieces; a command that was stopped goes on. 0 = draw in this process."""
    address: str | None = None
    """Ray cluster that --workers run on (auto, host:port), where the run lies at the same path; none = this machine."""
