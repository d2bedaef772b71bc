"""The camera path editor in one browser's panel: key frames, preview, files, video."""

from typing import Any

import numpy as np
import viser

from nerfit.cameras.poses import Meeting
from nerfit.errors import NerfitError
from nerfit.outputs.pictures.render_path import checked_quantities
from nerfit.viewer.drawing import Viewpoint
from nerfit.viewer.host import Host, Pilot
from nerfit.viewer.keyframes import FPS, KeyFrames
from nerfit.viewer.pacing import Sight

COLOUR = (220, 60, 120)
LINES: Any = {"thickness": 2.0, "thickness_units": "screen"}


class PathEditor:
    """Controls of a `KeyFrames`, which they change and which is drawn into the scene."""

    def __init__(self, client: viser.ClientHandle, host: Host, sight: Sight, pilot: Pilot, meeting: Meeting) -> None:
        self.client, self.host, self.sight, self.pilot = client, host, sight, pilot
        self.frustum_size = 0.05 * meeting.distance
        cameras, first = host.scene.cameras, host.scene.splits["train"][0]
        self.keys = KeyFrames(int(cameras.width[first]), int(cameras.height[first]), Viewpoint.of(cameras, first).fov)
        self.drawn: list[viser.SceneNodeHandle] = []
        self.filming = False
        gui = self.client.gui
        with gui.add_folder("Camera path", expand_by_default=False):
            self.status = gui.add_markdown("no key frame yet")
            self._button("add key frame", self._add)
            self._button("remove the last", self._remove)
            self.seconds = gui.add_slider("duration", 0.5, 60, 0.5, self.keys.seconds, hint="Seconds of the video.")
            self.fov = gui.add_slider("field of view", 10, 120, 0.5, round(np.degrees(self.keys.fov), 1), hint="Vertical, in degrees.")
            self.width = gui.add_number("width", self.keys.width, min=16, max=7680, step=2)
            self.height = gui.add_number("height", self.keys.height, min=16, max=4320, step=2)
            self._button("preview", self._preview)
            self._button("save", self._save)
            load = gui.add_upload_button("load", mime_type="application/json")
            self.what = gui.add_text("quantities", "rgb", hint="Any of rgb,depth,disparity,opacity,normal, separated by commas.")
            self._button("render video", self._render)
            self.stop = gui.add_button("cancel the video", visible=False)
        for control in (self.seconds, self.fov, self.width, self.height):
            control.on_update(lambda _: self._changed())
        self.stop.on_click(lambda _: self._cancel())
        load.on_upload(lambda event: self._load(event.target.value))

    def _button(self, label: str, action: Any) -> None:
        """A button whose action's errors become a notification."""

        @self.client.gui.add_button(label).on_click
        def _(_: Any) -> None:
            try:
                action()
            except NerfitError as error:
                self.client.add_notification("That did not work", str(error), color="red", auto_close_seconds=8)

    def _changed(self) -> None:
        """Take over the numbers, and draw the key frames and the line between them."""
        keys = self.keys
        keys.seconds, keys.fov = self.seconds.value, float(np.radians(self.fov.value))
        keys.width, keys.height = int(self.width.value), int(self.height.value)
        self.status.content = f"{len(keys.poses)} key frames, {keys.frames} frames of {keys.width} × {keys.height}"
        for node in self.drawn:
            node.remove()
        self.drawn = []
        for i, pose in enumerate(keys.poses):
            at = Viewpoint.at(pose, keys.fov, keys.width / keys.height)
            shape = {"fov": at.fov, "aspect": at.aspect, "scale": self.frustum_size, "color": COLOUR} | LINES
            self.drawn.append(self.client.scene.add_camera_frustum(f"/path/{i}", wxyz=at.wxyz, position=at.position, **shape))
        if len(keys.poses) > 1:
            points = keys.path()[:, :, 3].numpy()
            lines = np.stack([points[:-1], points[1:]], 1)
            self.drawn.append(self.client.scene.add_line_segments("/path/line", lines, COLOUR, **LINES))

    def _add(self) -> None:
        self.keys.poses.append(self.sight.viewpoint.pose())
        self._changed()

    def _remove(self) -> None:
        del self.keys.poses[-1:]
        self._changed()

    def _preview(self) -> None:
        self.pilot.fly(self.keys.path(), self.keys.fov, self.keys.seconds)

    def _save(self) -> None:
        self.keys.path()
        self.client.send_file_download("path.json", self.keys.to_json(self.host.scene.name).encode())

    def _load(self, file: Any) -> None:
        try:
            keys = KeyFrames.from_json(file.content, self.host.scene.cameras, file.name, self.host.scene.name)
        except NerfitError as error:
            self.client.add_notification("This file can't be used", str(error), color="red", auto_close_seconds=8)
            return
        self.keys.poses = keys.poses
        self.seconds.value, self.fov.value = keys.seconds, round(np.degrees(keys.fov), 2)
        self.width.value, self.height.value = keys.width, keys.height
        self._changed()

    def _render(self) -> None:
        names = checked_quantities(self.what.value)
        cameras = self.keys.cameras(self.host.scene.cameras.pixel_offset)
        self.filming = self.stop.visible = True
        self.host.record(cameras, names, FPS, self._report, self._done)

    def _report(self, text: str) -> bool:
        self.status.content = text
        return self.filming

    def _done(self, video: bytes) -> None:
        self._cancel()
        self.client.send_file_download("path.mp4", video)

    def _cancel(self) -> None:
        self.filming = self.stop.visible = False
