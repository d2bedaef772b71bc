"""A camera path of a run, drawn frame by frame; its frames may be divided between processes on Ray."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nerfit.cameras import Cameras
from nerfit.cameras.paths import make_path
from nerfit.commands.cluster import Needs, Stop
from nerfit.commands.render_options import Options
from nerfit.errors import ConfigError, NerfitError, RunError
from nerfit.files import peek_json, write_json
from nerfit.outputs.pictures.render_path import PathFrames, checked_quantities
from nerfit.progress import tick
from nerfit.runs import Run, new_folder, numbered_folders, open_run
from nerfit.scenes.formats.transforms import listed_cameras
from nerfit.scenes.scene import Scene
from nerfit.training import distributed


def scene_path(scene: Scene, kind: str, frames: int | None) -> tuple[Cameras, Cameras | None]:
    """The cameras of a path through a scene, and those whose view directions are shown where they are others.

    A path may also be a transforms file in the scene's own world, such as one of test views without pictures.
    """
    if kind.endswith(".json") and isinstance((meta := peek_json(Path(kind))), dict) and isinstance(meta.get("frames"), list):
        cameras = listed_cameras(Path(kind), scene)
        count = min(frames or len(cameras), len(cameras))
        return cameras[[i * len(cameras) // count for i in range(count)]], None
    default = scene.default_path if scene.default_path != "test" else "spiral"
    return make_path(kind, scene.cameras, frames, scene.depth_range, scene.splits.get("test"), default, scene.name)


@dataclass
class Film:
    """The frames to draw: a path of some kind through a run's scene."""

    run: Run
    kind: str
    frames: PathFrames

    @classmethod
    def planned(cls, options: Options) -> "Film":
        """The film that options ask for, with the run's newest checkpoint."""
        names = checked_quantities(options.what) if options.what else None
        with distributed.leaders_first():
            run = open_run(options.run, images=False, threads=options.threads, device=options.device)
        if options.factor <= 0:
            raise ConfigError("--factor must be above 0.")
        kind = options.path or run.scene.default_path
        cameras, look = scene_path(run.scene, kind, options.frames)
        look = None if look is None else look.rescale(1 / options.factor)
        names = names or (["rgb", "disparity"] if run.method.has_density else ["rgb"])
        return cls(run, kind, PathFrames(run.method, run.scene, cameras.rescale(1 / options.factor), names, run.chunk, look))

    def record(self) -> dict[str, Any]:
        """The identity of this film: the checkpoint, the cameras, the quantities."""
        cameras, look = self.frames.cameras.state(), self.frames.look
        digest = hashlib.sha256(json.dumps([cameras, None if look is None else look.state()]).encode()).hexdigest()
        return {"checkpoint": dataclasses.asdict(self.run.state), "cameras": digest, "what": self.frames.names}


@dataclass(frozen=True)
class Piece:
    """Some frames of a film that a worker draws, and the record of that film."""

    options: Options
    folder: Path
    frames: tuple[int, ...]
    record: dict[str, Any]


@lru_cache(maxsize=1)
def _opened(run: Path, kind: str | None, what: str | None, factor: float, frames: int | None, threads: int, device: str) -> Film:
    """A worker's film, kept for its next piece."""
    return Film.planned(Options(run=run, path=kind, what=what, factor=factor, frames=frames, threads=threads, device=device))


def draw_piece(piece: Piece) -> int:
    """Draw a piece; returns how many frames it has. Raises RunError if the run has gone on since the film was begun."""
    o = piece.options
    film = _opened(o.run, o.path, o.what, o.factor, o.frames, o.threads or 1, o.device)
    if film.record() != piece.record:
        raise RunError(f"{o.run} was trained on while it was filmed: choose another --out, or render again.")
    film.frames.draw(piece.folder, piece.frames)
    return len(piece.frames)


def draw_in_pieces(film: Film, options: Options, folder: Path, on_workers: Callable[..., Iterator[tuple[int, Any]]], stop: Stop) -> None:
    """Have workers draw the missing frames, about four pieces each so that none waits long for another; raises the first error."""
    left = film.frames.missing(folder)
    size = min(32, max(1, len(left) // (4 * options.workers)))
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.workers)
    path = str(Path(options.path).resolve()) if options.path and Path(options.path).is_file() else options.path
    own = dataclasses.replace(options, run=options.run.resolve(), path=path, threads=threads)
    pieces = [Piece(own, folder.resolve(), tuple(left[i : i + size]), film.record()) for i in range(0, len(left), size)]
    gpus = int(film.run.method.device.type == "cuda")
    done = len(film.frames.cameras) - len(left)
    for _, outcome in on_workers(draw_piece, pieces, Needs(threads, gpus, options.workers, address=options.address), stop):
        if isinstance(outcome, NerfitError):
            raise outcome
        done += outcome
        tick(done, len(film.frames.cameras), "frames")


def unfinished(out: Path, film: Film, numbered: bool) -> Path:
    """The folder where this very film was begun and has no video yet, else a new one, with the film's record in it."""
    for folder in numbered_folders(out):
        if not folder.exists() or (not numbered and not (folder / "film.json").exists()):
            folder = new_folder(folder, numbered)
            write_json(folder / "film.json", film.record())
            return folder
        if _read_record(folder) == film.record() and not any(p.is_file() and p.suffix not in (".json", ".part") for p in folder.iterdir()):
            return folder
        if not numbered:
            raise RunError(f"{folder} exists already and holds another film, or a finished one: choose another --out.")
    raise AssertionError("numbers end nowhere")


def _read_record(folder: Path) -> Any:
    try:
        return json.loads((folder / "film.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
