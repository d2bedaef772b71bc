"""A line drawing of where the cameras stand and what they see: the first thing to look at when a scene does not train."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from nerfit.cameras import Cameras
from nerfit.scenes.images import colorize

_OVERSAMPLE = 2
_ACCENT = (0.95, 0.45, 0.05)


def draw_cameras(cameras: Cameras, near: float, far: float, size: int = 800) -> UInt8[np.ndarray, "size size 3"]:
    """Frusta (violet: first camera, yellow: last), their optical axes, and in orange what two cameras see from near to far.

    Axes x red, y green, z blue at the world's origin, or amid the cameras where that is far away; a grid of round spacing
    below everything, perpendicular to the world axis nearest to the cameras' up. ``near`` and ``far`` are depths in world
    units, ``far`` may be infinite: a far plane much farther off than the cameras are from each other is drawn closer, dashed.
    """
    c2w = cameras.c2w.detach().cpu().double().numpy()
    centers, forward, middle = c2w[:, :, 3], -c2w[:, :, 2], c2w[:, :, 3].mean(0)
    extent = float(np.linalg.norm(centers - middle, axis=1).max()) or (far if math.isfinite(far) else near) or 1.0
    shown = far if far <= 4 * extent else max(2.5 * extent, 1.5 * near)
    length = frustum_length(centers, extent)
    origin = np.zeros(3) if np.linalg.norm(middle) < 5 * extent else middle

    tints = colorize(np.linspace(0, 0.9, len(centers))[None], 0, 1)[0]
    accented = {len(centers) // 4, 3 * len(centers) // 4}
    lines = _Lines()
    for i, (center, rays) in enumerate(zip(centers, _corner_rays(cameras), strict=True)):
        lines.add_frustum(center, length * rays, _ACCENT if i in accented else tints[i], 1.8 if i in accented else 1.5)
        if i in accented:
            first, last = center + near * rays, center + shown * rays
            lines.add(_closed(first), _ACCENT, 1.6)
            lines.add(_closed(last) if shown == far else _dashed(_closed(last)), _ACCENT, 1.6)
            lines.add(np.stack([first, last], 1), _ACCENT, 0.7)
    lines.add(np.stack([centers, centers + (near + shown) / 2 * forward], 1), (0.55, 0.55, 0.6), 0.5)
    for axis in np.eye(3):
        lines.add([(origin, origin + 0.5 * extent * axis)], axis * (0.85, 0.65, 1.0), 2.2)

    up = _upwards(c2w)
    points = np.concatenate(lines.segments).reshape(-1, 3)
    labels = [(origin + 0.54 * extent * axis, name) for axis, name in zip(np.eye(3), "xyz", strict=True)]
    return _paint(lines, _grid(points, up), labels, _view(points, forward.mean(0), up), size)


def draw_search(found: Sequence[Cameras], given: Cameras, size: int = 600) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
    """A picture of each set of cameras in colours, joined to the ``given`` ones in grey; all from one viewpoint in one scale."""
    every = np.stack([cameras.c2w.detach().cpu().double().numpy() for cameras in (given, *found)])
    centers = every[..., 3]
    extent = float(np.linalg.norm(centers[[0, -1]] - centers[0].mean(0), axis=-1).max()) or 1.0
    length = frustum_length(centers[-1], extent)
    tints = colorize(np.linspace(0, 0.9, len(given))[None], 0, 1)[0]
    drawings = []
    for cameras, positions in zip(found, centers[1:], strict=True):
        lines = _Lines()
        lines.add(np.stack([positions, centers[0]], 1), (0.8, 0.8, 0.82), 0.8)
        for center, rays in zip(centers[0], _corner_rays(given), strict=True):
            lines.add_frustum(center, length * rays, (0.7, 0.7, 0.72), 1.2)
        for center, rays, tint in zip(positions, _corner_rays(cameras), tints, strict=True):
            lines.add_frustum(center, length * rays, tint, 1.6)
        drawings.append(lines)
    up, points = _upwards(every[0]), np.concatenate([np.concatenate(lines.segments).reshape(-1, 3) for lines in drawings])
    view = _view(points, -every[0, :, :, 2].mean(0), up)
    grid, flat = _grid(points, up), view.project(points)[0]
    for lines in drawings:
        yield _paint(lines, grid, [], view, size, (flat.min(0), flat.max(0)))


@dataclass
class _Lines:
    """Segments [n, 2, 3] in the world with their colours [n, 3] and widths [n] (pixels, in a picture of up to 800)."""

    segments: list[np.ndarray] = field(default_factory=list)
    colours: list[np.ndarray] = field(default_factory=list)
    widths: list[np.ndarray] = field(default_factory=list)

    def add(self, segments: ArrayLike, colour: ArrayLike, width: float) -> None:
        """More segments [n, 2, 3] of one colour and width."""
        self.segments.append(np.asarray(segments, np.float64))
        n = len(self.segments[-1])
        self.colours.append(np.broadcast_to(np.asarray(colour, np.float64), (n, 3)))
        self.widths.append(np.full(n, width))

    def add_frustum(self, center: np.ndarray, rays: Float[np.ndarray, "4 3"], colour: ArrayLike, width: float) -> None:
        """A pyramid from ``center`` along the rays to a picture's corners, with a roof on the picture's upper edge."""
        quad = center + rays
        roof = (quad[0] + quad[1]) / 2 + 0.35 * (quad[0] - quad[3])
        self.add([(center, corner) for corner in quad], colour, width)
        self.add([*_closed(quad), (quad[0], roof), (roof, quad[1])], colour, width)


@dataclass
class _View:
    """The viewpoint of the drawing: the eye and the rows right, up, backwards."""

    eye: np.ndarray
    axes: np.ndarray

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Picture plane coordinates [..., 2] (y down) and depths [...] of world points."""
        local = (points - self.eye) @ self.axes.T
        depth = -local[..., 2]
        return local[..., :2] * (1, -1) / depth[..., None], depth


def _corner_rays(cameras: Cameras) -> Float[np.ndarray, "views 4 3"]:
    """World directions of unit depth through the image's corners: top left, top right, bottom right, bottom left."""
    cameras = cameras.to("cpu")
    views = torch.arange(len(cameras)).repeat_interleave(4)
    x = torch.tensor([0, 1, 1, 0]).repeat(len(cameras)) * cameras.width[views] - cameras.pixel_offset
    y = torch.tensor([0, 0, 1, 1]).repeat(len(cameras)) * cameras.height[views] - cameras.pixel_offset
    return cameras.directions(views, x, y).detach().double().numpy().reshape(-1, 4, 3)


def _upwards(c2w: np.ndarray) -> np.ndarray:
    """The world axis, or its opposite, nearest to the cameras' mean up."""
    mean = c2w[:, :, 1].mean(0)
    axis = int(np.abs(mean).argmax())
    return math.copysign(1.0, mean[axis]) * np.eye(3)[axis]


def frustum_length(centers: np.ndarray, extent: float) -> float:
    """About half the distance between neighbours, so that frusta stay apart, but never specks nor giants."""
    distances = torch.cdist(torch.from_numpy(centers), torch.from_numpy(centers)).fill_diagonal_(math.inf)
    return float((0.5 * distances.amin(1).median()).clamp(0.09 * extent, 0.2 * extent))


def _closed(polygon: np.ndarray) -> np.ndarray:
    return np.stack([polygon, np.roll(polygon, -1, 0)], 1)


def _dashed(segments: np.ndarray, dashes: int = 12) -> np.ndarray:
    t = (np.arange(dashes)[:, None] + np.array([0.2, 0.8])) / dashes
    return (segments[:, None, :1] + t[..., None] * (segments[:, None, 1:] - segments[:, None, :1])).reshape(-1, 2, 3)


def _grid(points: np.ndarray, up: np.ndarray) -> Float[np.ndarray, "lines 2 3"]:
    """Lines of spacing 1, 2 or 5 times a power of ten on the plane below all points."""
    low, high = points.min(0), points.max(0)
    flat = [axis for axis in range(3) if not up[axis]]
    step = (high - low)[flat].max() / 8
    power = 10.0 ** math.floor(math.log10(step))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= step)
    first, last = np.floor(low / step) * step, np.ceil(high / step) * step
    lines = []
    for across in flat:
        for at in np.arange(first[across], last[across] + step / 2, step):
            line = np.stack([first, last])
            line[:, across] = at
            lines.append(np.where(up != 0, low if up.sum() > 0 else high, line))
    return np.stack(lines)


def _view(points: np.ndarray, forward: np.ndarray, up: np.ndarray) -> _View:
    """From 25 degrees above; 50 degrees off behind cameras that look one way, else at a fixed azimuth."""
    level = forward - forward @ up * up
    if np.linalg.norm(level) < 0.3:
        level = np.roll(up, 1)
    level /= np.linalg.norm(level)
    turn, lift = math.radians(50), math.radians(25)
    behind = -(math.cos(turn) * level + math.sin(turn) * np.cross(up, level))
    back = math.cos(lift) * behind + math.sin(lift) * up
    right = np.cross(up, back) / math.cos(lift)
    center = (points.min(0) + points.max(0)) / 2
    radius = float(np.linalg.norm(points - center, axis=1).max())
    return _View(center + 3.5 * radius * back, np.stack([right, np.cross(back, right), back]))


Frame = tuple[np.ndarray, np.ndarray]
"""Lower and upper corner [2] of what a picture shows of the picture plane."""


def _paint(
    lines: _Lines, grid: np.ndarray, labels: list[tuple[np.ndarray, str]], view: _View, size: int, frame: Frame | None = None
) -> np.ndarray:
    """Far lines first, paler with distance; drawn at twice the size and averaged down. Without a ``frame`` the lines fill the picture."""
    xy, depth = view.project(np.concatenate(lines.segments))
    low, high = frame or (xy.reshape(-1, 2).min(0), xy.reshape(-1, 2).max(0))
    pixels = size * _OVERSAMPLE
    scale = 0.9 * pixels / float((high - low).max())
    colours = np.concatenate(lines.colours)
    pen = _OVERSAMPLE * max(1.0, size / 800)
    widths = np.rint(np.concatenate(lines.widths) * pen).clip(min=1).astype(int)

    def to_pixels(flat: np.ndarray) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in ((flat - (low + high) / 2) * scale + pixels / 2).reshape(-1, 2)]

    canvas = Image.new("RGB", (pixels, pixels), "white")
    draw = ImageDraw.Draw(canvas)
    for segment in view.project(grid)[0]:
        draw.line(to_pixels(segment), fill=(226, 228, 232), width=round(pen))
    middle = depth.mean(1)
    fade = 0.4 * (middle - middle.min()) / max(float(np.ptp(middle)), 1e-12)
    colours = colours + (1 - colours) * fade[:, None]
    for i in np.argsort(-middle):
        draw.line(to_pixels(xy[i]), fill=tuple((colours[i] * 255).astype(int).tolist()), width=int(widths[i]))
    for point, text in labels:
        draw.text(to_pixels(view.project(point)[0])[0], text, fill="black", font=ImageFont.load_default(pixels / 45), anchor="mm")
    return np.array(canvas.reduce(_OVERSAMPLE))
