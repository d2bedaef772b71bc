"""nerfit poses: camera poses of photographs or a video."""

import dataclasses
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from nerfit.commands.options import Common
from nerfit.errors import ConfigError, SceneError
from nerfit.scenes.contents import contents
from nerfit.scenes.formats import photos, video
from nerfit.scenes.posing.registration import Report
from nerfit.training.devices import set_threads


@dataclass(kw_only=True)
class Options(video.VideoConfig, Common):
    """nerfit poses PHOTOS_OR_VIDEO: camera poses of a folder of photographs or a video; nerfit train makes them by itself too.

    Examples:
      nerfit poses photos/garden
      nerfit poses garden.mp4 --fps 3 --out garden
    """

    source: tyro.conf.Positional[str] = ""
    """Folder of photographs, or a video file."""
    out: Path | None = None
    """Folder for the scene (transforms.json, points and pictures); none = leave it in nerfit's cache."""
    threads: int | None = None
    """CPU threads."""
    debug: bool = False
    """Show the traceback of an error, and COLMAP's own messages."""


def run(options: Options) -> dict[str, Any]:
    """Estimate the poses; the report of the reconstruction, where the scene is and the command that trains it."""
    set_threads(options.threads)
    if video.detect(options.source):
        file, report = video.estimate(options.source, options)
    elif photos.detect(options.source):
        if (options.fps, options.most_frames) != (None, video.VideoConfig.most_frames):
            raise ConfigError("--fps and --most-frames are for videos, not for photographs.")
        file, report = photos.estimate(options.source, options)
    else:
        there = contents(options.source, lambda inner: "photos" if photos.detect(inner) else "video" if video.detect(inner) else None)
        raise SceneError(f"'{options.source}' is neither a folder of photographs nor a video ({', '.join(video.SUFFIXES)}): {there}.")
    if options.out is not None:
        file = photos.export(file, report, options.out)
    scene = options.source if options.out is None else options.out
    quoted = subprocess.list2cmdline([str(scene)]) if os.name == "nt" else shlex.quote(str(scene))
    return dataclasses.asdict(report) | {"transforms": str(file), "train": f"nerfit train auto {quoted}"}


def text(answer: dict[str, Any]) -> str:
    """The answer for a reader."""
    report = Report(**{part.name: answer[part.name] for part in dataclasses.fields(Report)})
    return f"{report.text()}\nscene: {answer['transforms']}\ntrain it with: {answer['train']}"
