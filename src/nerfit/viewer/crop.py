"""The crop box in one browser's panel."""

from collections.abc import Callable
from typing import Any

import numpy as np
import viser

from nerfit.cameras.poses import Meeting
from nerfit.viewer.drawing import Vector


class CropBox:
    """A box of the scene outside of which nothing is drawn; ``changed`` is called after each move.

    Scenes in NDC have none (not ``visible``): their rays are bent in the world.
    """

    def __init__(self, client: viser.ClientHandle, meeting: Meeting, visible: bool, changed: Callable[[], None]) -> None:
        reach, self._changed = 1.5 * meeting.distance, changed
        with client.gui.add_folder("Crop box", expand_by_default=False, visible=visible):
            self._on = client.gui.add_checkbox("crop", False)
            self._sides = [
                client.gui.add_multi_slider(axis, middle - reach, middle + reach, reach / 200, (middle - reach / 2, middle + reach / 2))
                for axis, middle in zip("xyz", meeting.point.tolist(), strict=True)
            ]
        self._frame = client.scene.add_box("/crop", color=(240, 120, 20), dimensions=(1, 1, 1), wireframe=True, visible=False)
        for control in (self._on, *self._sides):
            control.on_update(self._update)

    @property
    def corners(self) -> tuple[Vector, Vector] | None:
        """The lowest and highest corner of the box; None while it is off."""
        low, high = zip(*(side.value for side in self._sides), strict=True)
        return (low, high) if self._on.value else None

    def _update(self, _: Any) -> None:
        if any(len(side.value) != 2 for side in self._sides):  # no page of ours says that
            return
        low, high = (np.array([side.value[end] for side in self._sides]) for end in (0, 1))
        self._frame.visible = self._on.value
        self._frame.dimensions, self._frame.position = tuple(high - low), tuple((low + high) / 2)
        self._changed()
