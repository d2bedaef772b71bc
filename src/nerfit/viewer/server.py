"""The viewer: a web server for any number of browsers, and pictures drawn by the thread that owns the field."""

import contextlib
import io
import logging
import threading
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import viser
from jaxtyping import UInt8

from nerfit.cameras import Cameras
from nerfit.cameras.poses import rays_meet, world_up
from nerfit.errors import NerfitError
from nerfit.methods.base import Method
from nerfit.outputs.pictures.render_path import PathFrames, render_path
from nerfit.scenes.images import resize_area, to_bytes
from nerfit.scenes.scene import Scene
from nerfit.viewer.drawing import QUANTITIES, Viewpoint, draw, orbit
from nerfit.viewer.gate import Gate
from nerfit.viewer.pacing import MOVING_SHARE, TRAINING_SHARE, Pace, Ration, Sight, most_in_need
from nerfit.viewer.panel import Panel
from nerfit.viewer.ports import LOOPBACK, free_port, host_in_url, start_viser

PORT = 7007
INNER_PORT = 17_007
"""From here on is the port of the viewer behind its gate."""
THUMBNAIL = 96
"""Longest side in pixels of the photos on the frusta."""
REFRESH = 1.0
"""Seconds that a picture may take while training."""
IDLE = 0.5
"""Seconds after which a waiting thread looks for work without being woken."""


class Viewer:
    """Shows a scene, and its field once there is a ``method``.

    Browsers only say what they want; `draw_next` draws, in the thread that trains or that waits in `serve`, so that no two threads
    ever use the field. ``make_folder`` makes the folder of a video.
    """

    def __init__(self, scene: Scene, host: str = "127.0.0.1", port: int = PORT, make_folder: Callable[[], Path] | None = None) -> None:
        self.scene, self.make_folder = scene, make_folder
        self.method: Method | None = None
        self.chunk = 4096
        self.panels: dict[int, Panel] = {}
        self.paces = {quantity: Pace() for quantity in QUANTITIES}
        self.ration = Ration()
        self.jobs: list[Callable[[Callable[[], bool]], None]] = []
        self.awake = threading.Event()
        self.closed = False
        self.port = free_port(host, port)
        logging.getLogger("websockets.server").setLevel(logging.CRITICAL)  # browsers open connections that they don't use
        self.gate: Gate | None = None
        own = (host, self.port) if host in LOOPBACK else (LOOPBACK[0], INNER_PORT)
        self.server = start_viser(*own, f"nerfit: {scene.name}")
        self.url = f"http://{host_in_url(host)}:{self.port}"
        if host not in LOOPBACK:
            self.gate = Gate(host, self.port, self.server.get_port())
            self.url += f"/?token={self.gate.token}"
            warnings.warn(
                f"on --host {host} everybody who knows the viewer's whole address can look, pause a training and make videos, and "
                "plain http shows that address to others on the way: ssh -L is safer.",
                stacklevel=2,
            )
        self.server.scene.set_up_direction(tuple(world_up(scene.cameras.c2w).tolist()))
        first = Viewpoint.of(scene.cameras, scene.splits["train"][0])
        start = self.server.initial_camera
        start.position, start.look_at, start.up = orbit(first.pose(), rays_meet(scene.cameras))
        start.fov = first.fov
        self.paused: Any = None
        self.server.on_client_connect(self._welcome)
        self.server.on_client_disconnect(self._farewell)

    @property
    def shows_field(self) -> bool:
        """Whether there is a field, or will be."""
        return self.method is not None or self.paused is not None

    @cache  # noqa: B019 - a viewer lives as long as the program
    def thumbnail(self, view: int) -> UInt8[np.ndarray, "height width 3"] | None:
        """A view's photo, small; None in a scene without pictures."""
        if self.scene.pixels is None:
            return None
        picture = to_bytes(self.scene.image(view))
        height, width = picture.shape[:2]
        scale = min(1.0, THUMBNAIL / max(height, width))
        return resize_area(picture, max(1, round(width * scale)), max(1, round(height * scale)))

    def connected(self, client: int) -> bool:
        """Whether a browser is still there."""
        return client in self.panels

    def _welcome(self, client: viser.ClientHandle) -> None:
        self.panels[client.client_id] = Panel(client, self)
        self.awake.set()

    def _farewell(self, client: viser.ClientHandle) -> None:
        self.panels.pop(client.client_id, None)

    @property
    def sights(self) -> list[Sight]:
        """The pictures that the browsers want."""
        return [panel.sight for panel in list(self.panels.values())]

    def close(self) -> None:
        """End `serve`, and the server with its browsers' connections."""
        self.closed = True
        self.awake.set()
        if self.gate is not None:
            self.gate.close()
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def serve(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Draw whenever a browser wants a picture, until ``stop()`` or `close`."""
        while not (stop() or self.closed):
            if not self.draw_next(stop=stop):
                self.awake.wait(IDLE)
                self.awake.clear()

    def draw_next(self, seconds: float | None = None, stop: Callable[[], bool] = lambda: False) -> bool:
        """Make one video, or one picture for the browser that needs it most; False where nothing is wanted.

        A sharp picture is left when somebody moves, and when ``stop()``.
        """
        if self.jobs:
            self.jobs.pop(0)(stop)
            return True
        found = most_in_need(self.sights, self.paces, seconds)
        if found is None:
            return False
        sight, size = found
        coarse = sight.drawn == 0
        self._draw(sight, size, lambda: stop() or (not coarse and any(other.drawn == 0 for other in self.sights)))
        return True

    def _draw(self, sight: Sight, size: int, stop: Callable[[], bool]) -> None:
        viewpoint, wish, version = sight.asked()
        pace, camera = self.paces[wish.quantity], viewpoint.camera(size, self.scene.cameras.pixel_offset)
        start = time.perf_counter()
        chunk = max(256, min(self.chunk, pace.pixels(0.05)))
        frame = draw(self.method, self.scene, camera, wish, chunk, stop)
        end = time.perf_counter()
        self.ration.spent(start, end)
        if frame is None:
            return
        pace.learn(frame.depth.size, end - start)
        sight.take(frame, version, end)
        for panel in list(self.panels.values()):
            if panel.sight is sight:
                panel.show(frame, end - start)

    def watch(self, method: Method, chunk: int) -> None:
        """Show a field from now on."""
        self.method, self.chunk = method, chunk

    def add_training_controls(self) -> None:
        """A switch that pauses training and a line about it, the same in all browsers."""
        with self.server.gui.add_folder("Training", order=-1):
            self.paused = self.server.gui.add_checkbox("pause", False, hint="Hold training; pictures get all of the machine.")
            self._progress = self.server.gui.add_markdown("starting")
        self.paused.on_update(lambda _: self.awake.set())
        self._reported = 0.0

    def between_steps(self, method: Method, chunk: int, line: str, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Draw for browsers between two steps of a training, no more than its share of the time; stay here while it is paused.

        While nobody moves training keeps all but `TRAINING_SHARE` of its time.
        """
        self.watch(method, chunk)
        now = time.perf_counter()
        if now - self._reported > 1 and self.panels:
            self._reported, self._progress.content = now, line
        self.serve(lambda: interrupted() or not self.paused.value)
        sights = self.sights
        if self.jobs or (sights and self.ration.allows(now, MOVING_SHARE) and self.draw_next(REFRESH, interrupted)):
            return
        if sights and self.ration.allows(now, TRAINING_SHARE):
            oldest = min(sights, key=lambda sight: sight.served)
            self._draw(oldest, oldest.sharpest(self.paces[oldest.wish.quantity], REFRESH), lambda: False)

    def record(self, cameras: Cameras, names: list[str], fps: float, report: Callable[[str], bool], done: Callable[[bytes], None]) -> None:
        """Ask for a video of a path; ``report`` gets the progress and returns whether to go on, ``done`` gets the first video's bytes."""

        def job(stop: Callable[[], bool]) -> None:
            def tick(frame: int, of: int) -> None:
                if stop() or not report(f"{frame} of {of} frames"):
                    raise _Cancelled

            assert self.make_folder is not None and self.method is not None
            folder = self.make_folder()
            try:
                videos = render_path(PathFrames(self.method, self.scene, cameras, names, self.chunk), folder, fps, tick)
            except _Cancelled:
                report(f"cancelled; what was drawn lies in {folder}")
                return
            except (NerfitError, OSError) as error:
                report(f"stopped: {error}")
                return
            report(f"done: {folder}")
            for video in videos[:1]:
                done(video.read_bytes())

        self.jobs.append(job)
        self.awake.set()


class _Cancelled(Exception):
    """Somebody wants no more of a video."""
