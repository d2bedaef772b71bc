"""The command `view`: a run or a scene in the browser."""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nerfit.errors import ConfigError, SceneError
from nerfit.methods.base import Method
from nerfit.runs import new_folder, open_run
from nerfit.scenes import load_scene
from nerfit.scenes.scene import Scene
from nerfit.viewer.ports import free_port
from nerfit.viewer.server import Viewer


def view(options: Any, tell: Callable[[Viewer], None], stop: Callable[[], bool] = lambda: False) -> None:
    """Serve a run's field, or a scene's cameras and pictures, until Ctrl-C or ``stop()``; ``tell`` is called once browsers may come."""
    free_port(options.host, options.port)  # before the scene is read
    scene, method, chunk = _opened(options)
    if scene.format == "image":
        raise ConfigError("a single picture can't be walked around in: the viewer needs pictures with camera poses.")
    videos = options.source / "renders" / "viewer"
    with contextlib.closing(Viewer(scene, options.host, options.port, lambda: new_folder(videos, numbered=True))) as viewer:
        if method is not None:
            viewer.watch(method, chunk)
        tell(viewer)
        with contextlib.suppress(KeyboardInterrupt), contextlib.nullcontext() if method is None else method.session():
            viewer.serve(stop)


def _opened(options: Any) -> tuple[Scene, Method | None, int]:
    """What a path shows: a run's scene and field, or a scene alone."""
    folder: Path = options.source
    if not (folder / "config.yaml").is_file():
        return load_scene(str(folder)), None, 0
    try:
        run = open_run(folder, images=True, source=options.scene, threads=options.threads, device=options.device)
    except SceneError as error:
        if options.scene is not None:
            raise
        warnings.warn(f"{str(error).rstrip('.')}; the cameras are shown without photos, unless --scene says where those are.", stacklevel=2)
        run = open_run(folder, images=False, threads=options.threads, device=options.device)
    return run.scene, run.method, run.chunk
