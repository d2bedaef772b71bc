"""A camera path as it is edited: key frames, a duration and a lens, and the JSON file that keeps them."""

import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.cameras import focal_from_fov
from nerfit.cameras.paths import glide, read_key_frames
from nerfit.cameras.poses import to_4x4
from nerfit.errors import SceneError

FPS = 30
"""Frames per second, that of `nerfit render`."""


@dataclass
class KeyFrames:
    """Poses (c2w with OpenGL axes, [3, 4]) to pass through in ``seconds``, a vertical field of view (radians) and the size of the video."""

    width: int
    height: int
    fov: float
    seconds: float = 5.0
    poses: list[Tensor] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """Number of pictures of the video."""
        return max(1, round(self.seconds * FPS))

    def path(self) -> Float[Tensor, "frames 3 4"]:
        """The pose of each picture; SceneError without a key frame."""
        if not self.poses:
            raise SceneError("the camera path has no key frame yet: add one where you stand.")
        return glide(torch.stack(self.poses), self.frames)

    def cameras(self, pixel_offset: float = 0.5) -> Cameras:
        """The camera of each picture."""
        return Cameras.pinhole(self.path(), focal_from_fov(self.fov, self.height), self.width, self.height, pixel_offset)

    def to_json(self, scene: str) -> str:
        """The file of a path through the scene of that name, which `nerfit render --path` and `from_json` read."""
        poses = [to_4x4(pose).tolist() for pose in self.poses]
        focal = focal_from_fov(self.fov, self.height)
        path = {"scene": scene, "c2w": poses, "frames": self.frames, "width": self.width, "height": self.height, "focal": focal}
        return json.dumps(path, indent=1) + "\n"

    @classmethod
    def from_json(cls, content: bytes, cameras: Cameras, name: str = "path.json", scene: str | None = None) -> "KeyFrames":
        """The path in a file's content; what it leaves open follows the first of ``cameras``. SceneError for any other."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "path.json"  # never as a browser calls it
            path.write_bytes(content)
            try:
                keys, frames = read_key_frames(path, cameras, scene)
            except SceneError as error:
                raise SceneError(str(error).replace(str(path), name)) from None
        width, height = int(keys.width[0]), int(keys.height[0])
        fov = 2 * math.atan(height / (2 * float(keys.fy[0])))
        return cls(width, height, fov, (len(keys) if frames is None else frames) / FPS, list(keys.c2w.double()))
