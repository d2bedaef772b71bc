"""nerfit view: a run or a scene in the browser."""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from nerfit.commands.options import DeviceOptions
from nerfit.errors import ConfigError, SceneError

if TYPE_CHECKING:
    from nerfit.methods.base import Method
    from nerfit.scenes.scene import Scene


@dataclass
class Options(DeviceOptions):
    """nerfit view RUN|SCENE: a run's field in the browser, or a scene's cameras and pictures before any training.

    Examples:
      nerfit view runs/lego-instant
      nerfit view data/lego --port 8080
      nerfit view runs/lego-instant --host 0.0.0.0
    """

    source: tyro.conf.Positional[Path] = field(default_factory=Path)
    """Run folder, or what nerfit train takes as SCENE."""
    host: str = "127.0.0.1"
    """Address to serve on; 0.0.0.0 = reachable from other machines, with a token."""
    port: int = 7007
    """Port; if it is in use, the next free one."""
    scene: str | None = None
    """Read a run's pictures from here, not from the path that it was trained on."""


def run(options: Options, show: Callable[[dict[str, Any]], None], stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Serve a run's field, or a scene's cameras and pictures, until Ctrl-C or ``stop()``; ``show`` is given the answer before."""
    from nerfit.runs import new_folder
    from nerfit.viewer.ports import free_port
    from nerfit.viewer.server import Viewer

    free_port(options.host, options.port)  # before the scene is read
    scene, method, chunk = _opened(options)
    if scene.format == "image":
        raise ConfigError("a single picture can't be walked around in: the viewer needs pictures with camera poses.")
    videos = options.source / "renders" / "viewer"
    with contextlib.closing(Viewer(scene, options.host, options.port, lambda: new_folder(videos, numbered=True))) as viewer:
        if method is not None:
            viewer.watch(method, chunk)
        answer = {"url": viewer.url, "port": viewer.port, "source": str(options.source), "asked_port": options.port}
        show(answer)
        with contextlib.suppress(KeyboardInterrupt), contextlib.nullcontext() if method is None else method.session():
            viewer.serve(stop)
    return answer


def text(answer: dict[str, Any]) -> str:
    """The address for a reader."""
    moved = "" if answer["port"] == answer["asked_port"] else f" (port {answer['asked_port']} is in use)"
    return f"{answer['source']} -> {answer['url']}{moved}; Ctrl-C ends the viewer"


def _opened(options: Options) -> "tuple[Scene, Method | None, int]":
    """The scene, field and rays at a time of a run, or a scene alone."""
    from nerfit.runs import open_run
    from nerfit.scenes import load_scene

    folder = options.source
    if not (folder / "config.yaml").is_file():
        return load_scene(str(folder)), None, 0
    try:
        found = open_run(folder, images=True, source=options.scene, threads=options.threads, device=options.device)
    except SceneError as error:
        if options.scene is not None:
            raise
        warnings.warn(f"{str(error).rstrip('.')}; the cameras are shown without photos: --scene names another folder.", stacklevel=2)
        found = open_run(folder, images=False, threads=options.threads, device=options.device)
    return found.scene, found.method, found.chunk
