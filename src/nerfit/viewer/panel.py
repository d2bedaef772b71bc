"""One browser's controls: what it wants to see, a point to turn about, the training cameras, a crop box, a camera path."""

from typing import Any

import viser

from nerfit.cameras.poses import rays_meet
from nerfit.viewer.crop import CropBox
from nerfit.viewer.drawing import QUANTITIES, Frame, Viewpoint, Wish
from nerfit.viewer.editor import PathEditor
from nerfit.viewer.host import Host, Pilot
from nerfit.viewer.pacing import Sight
from nerfit.viewer.photos import TrainingCameras

SIDES, PATIENCE = (128, 2048), (0.5, 30)
"""The range of the longest side of the sharpest picture, in pixels, and of the seconds that it may take."""


class Panel:
    """The controls of one browser. Every change there ends up in its ``sight``."""

    def __init__(self, client: viser.ClientHandle, host: Host) -> None:
        self.client, self.host, self.scene = client, host, host.scene
        cameras, train = self.scene.cameras, self.scene.splits["train"]
        self.meeting = rays_meet(cameras[train])
        self.sight = Sight(Viewpoint.of(cameras, train[0]))
        pilot = Pilot(client, self.meeting, host)
        self.status = client.gui.add_markdown("")
        self._picture_controls()
        self.cameras = TrainingCameras(client, host, pilot, self.update)
        with self.cameras.folder:
            point = client.gui.add_button("choose a point", hint="Then click it in the picture: the camera turns about it from there on.")
        point.on_click(lambda _: self._await_click())
        self.crop = CropBox(client, self.meeting, host.shows_field and not self.scene.ndc, self.update)
        self.editor = PathEditor(client, host, self.sight, pilot, self.meeting) if host.shows_field else None
        self.update()
        client.camera.on_update(self.update)

    def show(self, frame: Frame, seconds: float) -> None:
        """Send a picture, with its size and how long it took."""
        height, width = frame.depth.shape
        quality = 90 if width * height > 100_000 else 75
        self.client.scene.set_background_image(frame.image, "jpeg", jpeg_quality=quality, depth=frame.depth)
        likeness = "" if frame.psnr is None else f", {frame.psnr:.2f} dB to the photo"
        self.status.content = f"{width} × {height} in {seconds:.2f} s{likeness}"

    def update(self, _: Any = None) -> None:
        """Take over where the browser stands and what its controls say, unless no page of ours can say it: anything can come in."""
        try:
            viewpoint = self._viewpoint()
            r, g, b = (value / 255 for value in self.background.value)
            photo = self.cameras.photo_from(viewpoint, self.meeting.distance)
            wish = Wish(self.quantity.value, (r, g, b), self.crop.corners, photo, self.cameras.share.value)
        except (TypeError, ValueError):
            return
        wide = max(viewpoint.aspect, 1 / viewpoint.aspect)
        side = max(SIDES[0], min(self.side.value, SIDES[1]))
        seconds = max(PATIENCE[0], min(self.seconds.value, PATIENCE[1]))  # in this order NaN becomes the least
        self.sight.change(viewpoint=viewpoint, wish=wish, most=int(side**2 / wide), seconds=seconds)
        self.cameras.show_frusta(viewpoint)
        self.host.awake.set()

    def _viewpoint(self) -> Viewpoint:
        camera = self.client.camera
        (x, y, z), (qw, qx, qy, qz) = map(float, camera.position), map(float, camera.wxyz)
        return Viewpoint((x, y, z), (qw, qx, qy, qz), float(camera.fov), float(camera.aspect))

    def _picture_controls(self) -> None:
        gui = self.client.gui
        r, g, b = (round(255 * c) for c in self.scene.backdrop.tolist())
        with gui.add_folder("Picture"):
            self.quantity = gui.add_dropdown("quantity", QUANTITIES, initial_value="rgb", visible=self.host.shows_field)
            self.background = gui.add_rgb("background", (r, g, b))
            self.side = gui.add_slider("longest side", *SIDES, 64, 768, hint="Pixels of the sharpest picture.")
            self.seconds = gui.add_slider("seconds", *PATIENCE, 0.5, 5, hint="Time of the sharpest picture, while you stand still.")
        for control in (self.quantity, self.background, self.side, self.seconds):
            control.on_update(self.update)

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
