"""The training cameras in one browser's scene, and the photo of one of them laid over the picture."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import viser

from nerfit.cameras.paths import interpolate
from nerfit.outputs.pictures.frusta import frustum_length
from nerfit.viewer.drawing import Viewpoint
from nerfit.viewer.host import Host, Pilot

MOST_FRUSTA = 200
GREY = (90, 90, 100)
FLIGHT = 0.5
"""Seconds of a flight to another camera."""


class TrainingCameras:
    """Frusta to click on, which fly there and compare with that photo; ``changed`` is called when the picture must change."""

    def __init__(self, client: viser.ClientHandle, host: Host, pilot: Pilot, changed: Callable[[Any], None]) -> None:
        self.client, self.host, self.pilot, self.changed = client, host, pilot, changed
        self.scene = host.scene
        self.viewpoint: Viewpoint | None = None
        self.compared: int | None = None
        train, gui = self.scene.splits["train"], client.gui
        views = train[:: math.ceil(len(train) / MOST_FRUSTA)]
        centers = self.scene.cameras.centers.double().numpy()
        extent = float(np.linalg.norm(centers - centers.mean(0), axis=1).max()) or 1.0
        length = frustum_length(centers, extent) if len(centers) > 1 else 0.2 * extent
        self.centers, self.clearance = centers[views], 2 * length
        self.folder = gui.add_folder("Cameras")
        with self.folder:
            self.shown = gui.add_checkbox("frusta", True, hint=f"{len(views)} of {len(train)} training cameras; click one to fly there.")
            self.share = gui.add_slider("photo", 0, 1, 0.01, 0 if host.shows_field else 1, visible=False)
            self.leave = gui.add_button("leave the photo", visible=False)
        self.frusta = [self._frustum(view, length) for view in views]
        self.share.on_update(changed)
        self.leave.on_click(lambda _: self._compare(None))
        self.shown.on_update(lambda _: self.show_frusta())

    def photo_from(self, viewpoint: Viewpoint, distance: float) -> int | None:
        """The view whose photo lies over the picture from ``viewpoint``: it is shown only from where it was taken.

        That is within a hundredth of ``distance``, how far cameras are from what they look at.
        """
        if self.compared is None or self.scene.pixels is None:
            return None
        offset = torch.tensor(viewpoint.position) - self.scene.cameras.centers[self.compared]
        return self.compared if float(offset.norm()) < 0.01 * distance else None

    def show_frusta(self, viewpoint: Viewpoint | None = None) -> None:
        """Show all frusta but those near ``viewpoint`` (default: the last one), which would hide the scene."""
        self.viewpoint = viewpoint or self.viewpoint
        if self.viewpoint is None:
            return
        distances = np.linalg.norm(self.centers - np.array(self.viewpoint.position), axis=1)
        for frustum, far in zip(self.frusta, distances > self.clearance, strict=True):
            visible = self.shown.value and bool(far)
            if frustum.visible != visible:
                frustum.visible = visible

    def _frustum(self, view: int, length: float) -> viser.CameraFrustumHandle:
        there = Viewpoint.of(self.scene.cameras, view)
        frustum = self.client.scene.add_camera_frustum(
            f"/cameras/{view}",
            fov=there.fov,
            aspect=there.aspect,
            scale=length,
            thickness=1.5,
            thickness_units="screen",
            color=GREY,
            image=self.host.thumbnail(view),
            wxyz=there.wxyz,
            position=there.position,
        )

        @frustum.on_click
        def _(_: Any) -> None:
            assert self.viewpoint is not None
            poses = interpolate(torch.stack([self.viewpoint.pose(), there.pose()]), 20)
            self.pilot.fly(poses, there.fov, FLIGHT)
            self._compare(view)

        return frustum

    def _compare(self, view: int | None) -> None:
        """Lay a view's photo over the picture, as far as the slider says."""
        self.compared = view
        self.share.visible = self.leave.visible = view is not None
        if view is not None and self.host.shows_field and self.share.value == 0:
            self.share.value = 0.5
        self.changed(None)
