"""One browser's picture of a field: where it stands, what it wants to see, and the pixels."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.axes import convert_axes
from nerfit.cameras.cameras import focal_from_fov
from nerfit.cameras.poses import Meeting
from nerfit.cameras.rotations import matrix_to_quaternion, quaternion_to_matrix
from nerfit.methods.base import Method
from nerfit.metrics.psnr_ssim import psnr
from nerfit.outputs.pictures.render_path import in_reach, view_normals
from nerfit.outputs.surfaces import clip_to_box
from nerfit.rendering.volume import Rendering, join
from nerfit.scenes.images import colorize, to_bytes
from nerfit.scenes.scene import Scene, composite

Vector = tuple[float, float, float]
Quantity = Literal["rgb", "depth", "opacity", "normal"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
RIGHT_ANGLE = math.pi / 2
"""Field of view for fisheyes and panoramas: a browser draws perspective pictures only."""


@dataclass(frozen=True)
class Viewpoint:
    """The viewpoint of a browser, as viser describes it: camera-to-world rotation with OpenCV axes as a quaternion (w, x, y, z).

    ``fov`` is the vertical field of view in radians, ``aspect`` the picture's width over its height.
    """

    position: Vector
    wxyz: tuple[float, float, float, float]
    fov: float
    aspect: float

    def __post_init__(self) -> None:
        numbers = (*self.position, *self.wxyz)
        given = len(self.position) == 3 and len(self.wxyz) == 4 and all(map(math.isfinite, numbers)) and any(self.wxyz)
        if not (given and 0 < self.fov < math.pi and 0.01 <= self.aspect <= 100):
            raise ValueError(f"{self} is not where a camera can be")

    @classmethod
    def of(cls, cameras: Cameras, view: int) -> "Viewpoint":
        """That of a camera."""
        width, height = int(cameras.width[view]), int(cameras.height[view])
        perspective = cameras.lens is None or cameras.lens[view] == 0
        fov = 2 * math.atan(height / (2 * float(cameras.fy[view]))) if perspective else RIGHT_ANGLE
        return cls.at(cameras.c2w[view], fov, width / height)

    @classmethod
    def at(cls, pose: Float[Tensor, "3 4"], fov: float, aspect: float) -> "Viewpoint":
        """That of a pose with OpenGL axes."""
        c2w = convert_axes(pose.cpu().double(), "opengl", "opencv")
        w, x, y, z = matrix_to_quaternion(c2w[:, :3]).tolist()
        return cls(_vector(c2w[:, 3]), (w, x, y, z), fov, aspect)

    def pose(self) -> Float[Tensor, "3 4"]:
        """Camera to world with OpenGL axes, float64."""
        rotation = quaternion_to_matrix(torch.tensor(self.wxyz, dtype=torch.float64))
        position = torch.tensor(self.position, dtype=torch.float64)
        return convert_axes(torch.cat([rotation, position[:, None]], -1), "opencv")

    def camera(self, pixels: float, pixel_offset: float = 0.5) -> Cameras:
        """The camera of a picture of about ``pixels`` pixels."""
        height = max(1, round(math.sqrt(pixels / self.aspect)))
        width = max(1, round(height * self.aspect))
        return Cameras.pinhole(self.pose()[None], focal_from_fov(self.fov, height), width, height, pixel_offset)


def _vector(v: Float[Tensor, "3"]) -> Vector:
    x, y, z = v.tolist()
    return x, y, z


def orbit(pose: Float[Tensor, "3 4"], meeting: Meeting) -> tuple[Vector, Vector, Vector]:
    """A pose as orbit controls hold it: position, the point that they turn about, and up.

    That point is the one on the optical axis next to where the training cameras look.
    """
    position, forward = pose[:, 3].double(), -pose[:, 2].double()
    distance = max(float((meeting.point - position) @ forward), 0.1 * meeting.distance)
    return _vector(position), _vector(position + distance * forward), _vector(pose[:, 1])


@dataclass(frozen=True)
class Wish:
    """What to draw: a quantity, over a colour (None: the scene's own), within a box of the scene (low and high corner).

    ``photo`` is a view whose picture covers the left part ``share`` of the width.
    """

    quantity: Quantity = "rgb"
    background: tuple[float, float, float] | None = None
    box: tuple[Vector, Vector] | None = None
    photo: int | None = None
    share: float = 0.0

    def __post_init__(self) -> None:
        corners = () if self.box is None else self.box[0] + self.box[1]
        numbers = (*(self.background or ()), *corners, self.share)
        if self.quantity not in QUANTITIES or len(corners) not in (0, 6) or not all(map(math.isfinite, numbers)):
            raise ValueError(f"{self} can't be drawn")


@dataclass(frozen=True)
class Frame:
    """A picture, the depth of what it shows along the optical axis (infinite where that is nothing), and how like the photo it is."""

    image: UInt8[np.ndarray, "height width 3"]
    depth: Float[np.ndarray, "height width"]
    camera: Cameras
    psnr: float | None = None

    def point(self, x: float, y: float) -> Float[Tensor, "3"] | None:
        """The point of the scene shown at (x, y), shares of width and height from the top left; None where that is nothing."""
        height, width = self.depth.shape
        column, row = min(int(x * width), width - 1), min(int(y * height), height - 1)
        depth = float(self.depth[row, column])
        if not math.isfinite(depth):
            return None
        direction = self.camera.directions(torch.tensor([0]), torch.tensor([column]), torch.tensor([row]))[0]
        return self.camera.centers[0] + depth * direction


@torch.no_grad()
def draw(
    method: Method | None, scene: Scene, camera: Cameras, wish: Wish, chunk: int, stop: Callable[[], bool] = lambda: False
) -> Frame | None:
    """The picture that one camera sees, or None if ``stop()`` becomes true between two chunks of rays; without a method it is empty."""
    scene = in_reach(scene, camera, 0)
    width, height = int(camera.width[0]), int(camera.height[0])
    background = torch.tensor(wish.background, dtype=torch.float32) if wish.background else scene.backdrop
    empty = torch.zeros(height, width)
    image = background.expand(height, width, 3)
    rendered = Rendering(image, empty, empty)
    if method is not None:
        parts = []
        for pixels in torch.arange(width * height).split(chunk):
            if stop():
                return None
            parts.append(_render_pixels(method, scene, camera, pixels, wish, background.to(method.device)))
        joined = join(parts)
        rgb, depth, opacity = (v.cpu() for v in (joined.rgb, joined.depth, joined.opacity) if v is not None)
        rendered = Rendering(rgb.reshape(height, width, 3), depth.reshape(height, width), opacity.reshape(height, width))
        image = _image(method, scene, camera, wish, rendered, background, chunk)
    found = None
    if wish.photo is not None:
        truth, known = photo(scene, wish.photo, camera, background)
        found = psnr(rendered.rgb[known], truth[known]) if method is not None and known.any() else None
        known[:, round(wish.share * width) :] = False
        image = torch.where(known[..., None], truth, image)
    return Frame(to_bytes(image), _axial_depth(scene, camera, rendered).numpy(), camera, found)


def _render_pixels(method: Method, scene: Scene, camera: Cameras, pixels: Tensor, wish: Wish, background: Tensor) -> Rendering:
    """The rendering of some pixels' rays; those beside the box, or that look away from an NDC scene, see the background."""
    batch = method.view_batch(scene, camera, 0, pixels)
    assert batch.rays is not None
    rays, hit = batch.rays, batch.rays.viewdirs[:, 2] < -1e-3 if scene.ndc else torch.ones_like(batch.rays.near, dtype=torch.bool)
    if wish.box is not None and not scene.ndc:
        rays, meets = clip_to_box(rays, *torch.tensor(wish.box, dtype=torch.float32, device=method.device))
        hit = hit & meets
    nothing = torch.zeros_like(rays.near)
    out = Rendering(background.expand(len(rays), 3).clone(), nothing.clone(), nothing)
    if hit.any():
        batch.rays, batch.background = rays[hit], background
        found = method.render(batch)
        out.rgb[hit] = found.rgb.float()
        solid = torch.ones_like(found.rgb[:, 0])  # of a method that gives colour only
        for values, given in ((out.depth, found.depth), (out.opacity, found.opacity)):
            assert values is not None
            values[hit] = (solid if given is None else given).float()
    return out


def _image(
    method: Method, scene: Scene, camera: Cameras, wish: Wish, rendered: Rendering, background: Tensor, chunk: int
) -> Float[Tensor, "height width 3"]:
    """The wished quantity in colours over the background."""
    assert rendered.opacity is not None and rendered.depth is not None
    if wish.quantity == "rgb":
        return rendered.rgb
    opacity = rendered.opacity[..., None]
    if wish.quantity == "opacity":
        return opacity.expand(-1, -1, 3)
    if wish.quantity == "normal":
        colours = view_normals(method, scene, camera, 0, rendered, chunk) * 0.5 + 0.5
    else:
        depth = rendered.depth / rendered.opacity.clamp(min=1e-6)
        solid = depth[rendered.opacity > 0.5]
        low, high = torch.quantile(solid[:: 1 + len(solid) // 10_000], torch.tensor([0.02, 0.98])).tolist() if len(solid) else (0.0, 1.0)
        colours = torch.from_numpy(colorize(depth, low, high))
    return colours * opacity + (1 - opacity) * background


def _axial_depth(scene: Scene, camera: Cameras, rendered: Rendering) -> Float[Tensor, "height width"]:
    """Depth along the optical axis in scene units, infinite where most of the background shows through.

    In NDC a share t of the way to infinity lies in the plane z = 1/(t - 1).
    """
    assert rendered.opacity is not None and rendered.depth is not None
    depth = rendered.depth / rendered.opacity.clamp(min=1e-6)
    if scene.ndc:
        pixels = torch.arange(depth.numel())
        width = depth.shape[1]
        directions = camera.directions(torch.zeros_like(pixels), pixels % width, torch.div(pixels, width, rounding_mode="floor"))
        depth = (1 / (depth - 1).clamp(max=-1e-6) - camera.c2w[0, 2, 3]) / directions[:, 2].reshape(depth.shape)
    return torch.where((rendered.opacity > 0.5) & (depth > 0), depth, torch.inf)


def photo(
    scene: Scene, view: int, camera: Cameras, background: Tensor | float = 1.0
) -> tuple[Float[Tensor, "height width 3"], Bool[Tensor, "height width"]]:
    """A view's picture as ``camera`` would show it from the view's own position, and where it has pixels for that.

    Only the rotation and the lens are undone, so it shows the scene as it is from nowhere else.
    """
    width, height = int(camera.width[0]), int(camera.height[0])
    pixels = torch.arange(width * height)
    directions = camera.directions(torch.zeros_like(pixels), pixels % width, torch.div(pixels, width, rounding_mode="floor"))
    views = torch.full_like(pixels, view)
    positions, visible = scene.cameras.project(views, scene.cameras.centers[view] + directions)
    size = torch.stack([scene.cameras.width[view], scene.cameras.height[view]])
    known = visible & (positions >= 0).all(-1) & (positions < size).all(-1)
    x, y = torch.where(known[:, None], positions, 0.0).long().unbind(-1)
    colours = composite(scene.colors(views, x, y), background)
    return colours.reshape(height, width, 3), known.reshape(height, width)
