"""One browser's controls: what it wants to see, the training cameras and their photos, a point of interest, a crop box."""

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import viser
from torch import Tensor

from nerfit.cameras.paths import interpolate
from nerfit.cameras.poses import rays_meet
from nerfit.outputs.pictures.frusta import frustum_length
from nerfit.viewer.drawing import QUANTITIES, Frame, Viewpoint, Wish, orbit
from nerfit.viewer.editor import PathEditor
from nerfit.viewer.pacing import Sight

if TYPE_CHECKING:
    from nerfit.viewer.server import Viewer

MOST_FRUSTA = 200
GREY = (90, 90, 100)
FLIGHT = 0.5
"""Seconds of a flight to another camera."""


class Panel:
    """The controls of one browser; whatever is changed there ends up in its ``sight``."""

    def __init__(self, client: viser.ClientHandle, viewer: "Viewer") -> None:
        self.client, self.viewer, self.scene = client, viewer, viewer.scene
        cameras = self.scene.cameras
        self.train = self.scene.splits["train"]
        self.meeting = rays_meet(cameras[self.train])
        self.sight = Sight(Viewpoint.of(cameras, self.train[0]))
        self.flights = 0
        self.compared: int | None = None
        self.status = client.gui.add_markdown("")
        self._picture_controls()
        self._camera_controls()
        self._crop_controls()
        self.editor = PathEditor(self) if viewer.shows_field else None
        self.update()
        client.camera.on_update(self.update)

    def show(self, frame: Frame, seconds: float) -> None:
        """Send a picture and say how large it is and how long it took."""
        height, width = frame.depth.shape
        quality = 90 if width * height > 100_000 else 75
        self.client.scene.set_background_image(frame.image, "jpeg", jpeg_quality=quality, depth=frame.depth)
        likeness = "" if frame.psnr is None else f", {frame.psnr:.2f} dB to the photo"
        self.status.content = f"{width} × {height} in {seconds:.2f} s{likeness}"

    def update(self, _: Any = None) -> None:
        """Take over where the browser stands and what its controls say. The photo is shown only from where it was taken."""
        camera = self.client.camera
        (x, y, z), (qw, qx, qy, qz) = map(float, camera.position), map(float, camera.wxyz)
        viewpoint = Viewpoint((x, y, z), (qw, qx, qy, qz), camera.fov, camera.aspect)
        box = tuple(zip(*(control.value for control in self.box), strict=True)) if self.crop.value else None
        background = tuple(value / 255 for value in self.background.value)
        wish = Wish(self.quantity.value, background, box, self._photo_from(viewpoint), self.share.value)  # type: ignore[arg-type]
        wide = max(viewpoint.aspect, 1 / viewpoint.aspect)
        self.sight.change(viewpoint=viewpoint, wish=wish, most=int(self.side.value**2 / wide), seconds=self.seconds.value)
        self._show_frusta()
        self.viewer.awake.set()

    def _photo_from(self, viewpoint: Viewpoint) -> int | None:
        if self.compared is None or self.scene.pixels is None:
            return None
        away = torch.tensor(viewpoint.position) - self.scene.cameras.centers[self.compared]
        return self.compared if float(away.norm()) < 0.01 * self.meeting.distance else None

    # where the browser stands

    def stand(self, pose: Tensor, fov: float) -> None:
        """Put the browser's camera to a pose."""
        camera = self.client.camera
        with self.client.atomic():
            camera.position, look_at, camera.up_direction = orbit(pose, self.meeting)
            camera.look_at, camera.fov = look_at, fov

    def fly(self, poses: Tensor, fov: float, seconds: float) -> None:
        """Along poses in so many seconds, until another flight begins."""
        self.flights += 1
        flight, start = self.flights, time.perf_counter()
        while flight == self.flights and self.client.client_id in self.viewer.panels:
            share = min(1.0, (time.perf_counter() - start) / seconds)
            self.stand(poses[round(share * (len(poses) - 1))], fov)
            if share == 1:
                return
            time.sleep(1 / 30)

    # what it sees

    def _picture_controls(self) -> None:
        gui = self.client.gui
        own = round(255 * self.scene.backdrop)
        with gui.add_folder("Picture"):
            self.quantity = gui.add_dropdown("quantity", QUANTITIES, initial_value="rgb", visible=self.viewer.shows_field)
            self.background = gui.add_rgb("background", (own, own, own))
            self.side = gui.add_slider("longest side", 128, 2048, 64, 768, hint="Pixels of the sharpest picture.")
            self.seconds = gui.add_slider("seconds", 0.5, 30, 0.5, 5, hint="What the sharpest picture may take at rest.")
        for control in (self.quantity, self.background, self.side, self.seconds):
            control.on_update(self.update)

    # training cameras

    def _camera_controls(self) -> None:
        gui, cameras = self.client.gui, self.scene.cameras
        views = self.train[:: math.ceil(len(self.train) / MOST_FRUSTA)]
        centers = cameras.centers.double().numpy()
        extent = float(np.linalg.norm(centers - centers.mean(0), axis=1).max()) or 1.0
        length = frustum_length(centers, extent) if len(centers) > 1 else 0.2 * extent
        self.places, self.clearance = centers[views], 2 * length
        with gui.add_folder("Cameras"):
            self.shown = gui.add_checkbox(
                "frusta", True, hint=f"{len(views)} of {len(self.train)} training cameras; click one to fly there."
            )
            self.share = gui.add_slider("photo", 0, 1, 0.01, 0 if self.viewer.shows_field else 1, visible=False)
            leave = gui.add_button("leave the photo", visible=False)
            find = gui.add_button("choose a point", hint="Then click it in the picture: the camera turns about it from there on.")
        self.frusta = [self._frustum(view, length) for view in views]
        self.leave = leave
        self.share.on_update(self.update)
        leave.on_click(lambda _: self._compare(None))
        find.on_click(lambda _: self._await_click())
        self.shown.on_update(lambda _: self._show_frusta())

    def _show_frusta(self) -> None:
        """All but those that the browser stands in, or so near that they hide the scene."""
        away = np.linalg.norm(self.places - np.array(self.sight.viewpoint.position), axis=1)
        for frustum, far in zip(self.frusta, away > self.clearance, strict=True):
            visible = self.shown.value and bool(far)
            if frustum.visible != visible:
                frustum.visible = visible

    def _frustum(self, view: int, length: float) -> viser.CameraFrustumHandle:
        viewpoint = Viewpoint.of(self.scene.cameras, view)
        frustum = self.client.scene.add_camera_frustum(
            f"/cameras/{view}",
            fov=viewpoint.fov,
            aspect=viewpoint.aspect,
            scale=length,
            thickness=1.5,
            thickness_units="screen",
            color=GREY,
            image=self.viewer.thumbnail(view),
            wxyz=viewpoint.wxyz,
            position=viewpoint.position,
        )

        @frustum.on_click
        def _(_: Any) -> None:
            there = viewpoint.pose()
            self.fly(interpolate(torch.stack([self.sight.viewpoint.pose(), there]), 20), viewpoint.fov, FLIGHT)
            self._compare(view)

        return frustum

    def _compare(self, view: int | None) -> None:
        """Lay a view's photo over the picture, as far as the slider says."""
        self.compared = view
        self.share.visible = self.leave.visible = view is not None
        if view is not None and self.viewer.shows_field and self.share.value == 0:
            self.share.value = 0.5
        self.update()

    def _await_click(self) -> None:
        """Turn about the point of the scene that is clicked next."""
        scene = self.client.scene

        @scene.on_click()
        def _(event: viser.SceneClickEvent) -> None:
            scene.remove_click_callback()
            frame = self.sight.frame
            point = None if frame is None else frame.point(*event.screen_pos)
            if point is None:
                self.client.add_notification("Nothing is there", "The picture is empty where you clicked.", auto_close_seconds=4)
            else:
                self.client.camera.look_at = tuple(point.tolist())

    # crop box

    def _crop_controls(self) -> None:
        """A box of the scene outside of which nothing is drawn; NDC scenes have none, whose rays are not straight."""
        gui = self.client.gui
        reach = 1.5 * self.meeting.distance
        center = self.meeting.point.tolist()
        with gui.add_folder("Crop box", expand_by_default=False, visible=self.viewer.shows_field and not self.scene.ndc):
            self.crop = gui.add_checkbox("crop", False)
            self.box = [
                gui.add_multi_slider(axis, middle - reach, middle + reach, reach / 200, (middle - reach / 2, middle + reach / 2))
                for axis, middle in zip("xyz", center, strict=True)
            ]
        self.frame = self.client.scene.add_box("/crop", color=(240, 120, 20), dimensions=(1, 1, 1), wireframe=True, visible=False)
        for control in (self.crop, *self.box):
            control.on_update(self._crop)

    def _crop(self, _: Any = None) -> None:
        low, high = (np.array([control.value[end] for control in self.box]) for end in (0, 1))
        self.frame.visible = self.crop.value
        self.frame.dimensions, self.frame.position = tuple(high - low), tuple((low + high) / 2)
        self.update()
