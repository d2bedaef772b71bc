"""The needs of one browser's controls: the viewer that they belong to, and the browser's camera."""

import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import viser
from jaxtyping import Float, UInt8
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.poses import Meeting
from nerfit.scenes.scene import Scene
from nerfit.viewer.drawing import orbit


class Host(Protocol):
    """A viewer as its browsers' controls see it."""

    scene: Scene
    awake: threading.Event
    """Set when a browser wants another picture."""

    @property
    def shows_field(self) -> bool:
        """Whether there is a field, or will be."""
        ...

    def connected(self, client: int) -> bool:
        """Whether a browser is still there."""
        ...

    def thumbnail(self, view: int) -> UInt8[np.ndarray, "height width 3"] | None:
        """A view's photo, small; None in a scene without pictures."""
        ...

    def record(self, cameras: Cameras, names: list[str], fps: float, report: Callable[[str], bool], done: Callable[[bytes], None]) -> None:
        """Ask for a video of the quantities ``names`` along ``cameras``.

        ``report`` gets the progress as text and returns whether to go on, ``done`` gets the bytes of the first video.
        """
        ...


class Pilot:
    """Moves the camera of one browser; ``meeting`` is the point that its controls turn about."""

    def __init__(self, client: viser.ClientHandle, meeting: Meeting, host: Host) -> None:
        self._client, self._meeting, self._host = client, meeting, host
        self._flights = 0

    def stand(self, pose: Float[Tensor, "3 4"], fov: float) -> None:
        """Put the camera to a pose (OpenGL axes) with a vertical field of view in radians."""
        camera = self._client.camera
        with self._client.atomic():
            camera.position, look_at, camera.up_direction = orbit(pose, self._meeting)
            camera.look_at, camera.fov = look_at, fov

    def fly(self, poses: Float[Tensor, "poses 3 4"], fov: float, seconds: float) -> None:
        """Move the camera along poses in ``seconds``, until another flight begins or the browser is gone."""
        self._flights += 1
        flight, start = self._flights, time.perf_counter()
        while flight == self._flights and self._host.connected(self._client.client_id):
            share = min(1.0, (time.perf_counter() - start) / seconds)
            self.stand(poses[round(share * (len(poses) - 1))], fov)
            if share == 1:
                return
            time.sleep(1 / 30)
