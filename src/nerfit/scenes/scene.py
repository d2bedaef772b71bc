"""A scene: cameras, images, bounds and splits, in one coordinate system, whatever the files looked like."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nerfit.cameras import Cameras, Rays
from nerfit.cameras.lenses import LENSES
from nerfit.cameras.ndc import ndc_rays
from nerfit.cameras.poses import transform_poses
from nerfit.errors import SceneError
from nerfit.files import read_json, write_json
from nerfit.scenes.point_depths import PointDepths

Bounds = Literal["object", "forward-facing", "unbounded"]
Background = Literal["auto", "white", "black", "random"]
Colour = tuple[float, float, float]
"""Red, green and blue in [0, 1]."""


@dataclass
class SceneConfig:
    """Options of every scene format; a format's own config adds to them."""

    format: str = ""
    """Scene format; empty = detect it and print it."""
    background: Background | Colour = "auto"
    """Colour behind the scene: a word, or red, green and blue in [0, 1]. auto = the plain border of opaque pictures, else white; random =
    in training a colour per ray, elsewhere white; opaque pictures with a plain border take that."""
    near: float | None = None
    """Nearest sampled distance; none = the format's default."""
    far: float | None = None
    """Farthest sampled distance; none = the format's default."""
    train_views: tuple[int, int, int] = (0, -1, 1)
    """Training views to use, in the format's order: first, end (-1 = all), step."""
    pixel_offset: float = 0.5
    """Point of a pixel where its ray starts: 0.5 = the centre; the original NeRF code used 0."""

    def reach(self, near: float, far: float) -> tuple[float, float]:
        """Near and far: those given, else the format's own."""
        return near if self.near is None else self.near, far if self.far is None else self.far


@dataclass
class Scene:
    """Posed images and where to look for them; the one thing that a reader returns.

    ``pixels`` holds all views one after another, rows first: uint8 [sum of H·W, 3 or 4], alpha straight (not
    premultiplied); None for a scene known only by its cameras. ``to_original`` takes this scene's coordinates back to
    those of the user's files. ``depths`` and ``normals``, where known, are float32 [sum of H·W] (along the optical
    axis, 0 = empty) and [sum of H·W, 3] (world axes), in the same order as ``pixels``; ``points``, where asked for, those pixels of
    training views that show points of a reconstruction. In a ``masked`` scene alpha 0 says that
    a pixel is unknown; in other scenes it shows the background. ``background`` "auto" is not chosen yet (`choose_background`).
    """

    name: str
    format: str
    cameras: Cameras
    near: float
    far: float
    splits: dict[str, list[int]]
    pixels: Tensor | None = None
    bounds: Bounds = "object"
    background: Background | Colour = "auto"
    ndc: bool = False
    ndc_lens: tuple[float, float, float, float] | None = None
    """Focal lengths, width and height that make the scene's NDC, for every camera; none = the first view's."""
    default_path: str = "circle"
    view_names: list[str] = field(default_factory=list)
    to_original: Float[Tensor, "4 4"] = field(default_factory=lambda: torch.eye(4, dtype=torch.float64))
    depth_range: tuple[float, float] | None = None
    depths: Tensor | None = None
    normals: Tensor | None = None
    masked: bool = False
    points: PointDepths | None = None
    other_background: Colour | None = None
    """What a training that dies over the background tries next (`choose_background`)."""

    def __post_init__(self) -> None:
        if not -_INFINITE < self.near < self.far < _INFINITE:
            raise SceneError(f"{self.name}: near ({self.near:g}) must be smaller than far ({self.far:g}), and both finite.")
        self._check_cameras()
        self._check_background()
        if self.ndc and self.cameras.lens is not None and self.cameras.lens.any():
            kind = LENSES[int(self.cameras.lens.max())]
            raise SceneError(f"{self.name}: normalised device coordinates need perspective cameras, not {kind} ones; turn ndc off.")
        if self.ndc and self.ndc_lens is None:
            first = self.cameras[0]
            self.ndc_lens = float(first.fx), float(first.fy), float(first.width), float(first.height)
        sizes = self.cameras.width * self.cameras.height
        self.starts: Tensor = sizes.cumsum(0) - sizes
        self.masked &= self.pixels is None or self.pixels.shape[1] == 4
        if self.pixels is not None and self.pixels.shape[0] != int(sizes.sum()):
            raise SceneError(f"{self.name}: the images hold {self.pixels.shape[0]} pixels, the cameras {int(sizes.sum())}.")

    def _check_cameras(self) -> None:
        """SceneError for a pose or intrinsics that float32 can't compute with."""
        c = self.cameras
        lens = torch.stack([c.fx, c.fy, c.cx, c.cy], -1)
        fine = (lens[:, :2] > 1 / _INFINITE).all(-1) & (torch.cat([lens, c.c2w.flatten(1)], -1).abs() < _INFINITE).all(-1)
        for view in (~fine).nonzero()[:1, 0].tolist():
            what = self.view_names[view] if self.view_names else f"view {view}"
            raise SceneError(
                f"{self.name}: the camera of {what} stands at ({_numbers(c.centers[view])}) with fx fy cx cy ({_numbers(lens[view])}); "
                "focal lengths must be larger than 0 and nothing larger than 1e9."
            )

    def _check_background(self) -> None:
        """SceneError for what is neither a word for a background nor a colour."""
        of, words = self.background, get_args(Background)
        if of not in words and not (isinstance(of, tuple) and len(of) == 3 and all(isinstance(c, int | float) and 0 <= c <= 1 for c in of)):
            known = ", ".join(words)
            raise SceneError(f"{self.name}: the background must be one of {known}, or three numbers between 0 and 1, not {str(of)[:40]}.")

    def image(self, view: int, background: float | Tensor | None = 1.0) -> Float[Tensor, "height width channels"]:
        """One view as float32 in [0, 1], composited over ``background``; None keeps its 3 or 4 channels."""
        w, h = int(self.cameras.width[view]), int(self.cameras.height[view])
        flat = self.stored_pixels[int(self.starts[view]) : int(self.starts[view]) + w * h]
        image = flat.reshape(h, w, -1).to(torch.float32) / 255
        return image if background is None else composite(image, background)

    @property
    def backdrop(self) -> Float[Tensor, "3"]:
        """The colour behind everything; white where training takes random ones."""
        if isinstance(self.background, tuple):
            return torch.tensor(self.background, dtype=torch.float32)
        return torch.full((3,), 0.0 if self.background == "black" else 1.0)

    @property
    def backdrop_name(self) -> str:
        """The colour behind everything in a word, or as #rrggbb."""
        return colour_name(self.background) if isinstance(self.background, tuple) else "black" if self.background == "black" else "white"

    @property
    def has_alpha(self) -> bool:
        """Whether the images have transparent pixels to be put on a background."""
        return self.pixels is not None and self.pixels.shape[1] == 4 and not self.masked

    def visible(self, view: int) -> Bool[Tensor, "height width"]:
        """Which pixels of a view are known: all, but for those that masks hide."""
        w, h, start = int(self.cameras.width[view]), int(self.cameras.height[view]), int(self.starts[view])
        return self.stored_pixels[start : start + w * h, 3].reshape(h, w) > 0 if self.masked else torch.ones(h, w, dtype=torch.bool)

    @property
    def stored_pixels(self) -> Tensor:
        """``pixels``; SceneError in a scene opened without them."""
        if self.pixels is None:
            raise SceneError(f"{self.name}: this scene was opened without its images.")
        return self.pixels

    def colors(self, views: Tensor, x: Tensor, y: Tensor) -> Float[Tensor, "rays channels"]:
        """Stored colours (float32 in [0, 1], 3 or 4 channels) of pixels (x, y) of the given views."""
        index = self.starts.to(views.device)[views] + y * self.cameras.width.to(views.device)[views] + x
        return self.stored_pixels[index.to(self.stored_pixels.device)].to(torch.float32) / 255

    def rays(self, views: Tensor, x: Tensor, y: Tensor, cameras: Cameras | None = None, look: Cameras | None = None) -> Rays:
        """Rays through pixels (x, y) of ``cameras`` (default: this scene's own) between the scene's near and far.

        ``look`` gives the cameras whose view directions are used instead, to show view dependence from a still camera.
        """
        cameras = self.cameras if cameras is None else cameras
        rays = cameras.rays(views, x, y, self.near, self.far)
        if look is not None:
            rays.viewdirs = torch.nn.functional.normalize(look.directions(views, x, y), dim=-1)
        if self.ndc:
            rays = ndc_rays(rays, *self.ndc_by(rays.near.device))
        return rays

    def distances(
        self, views: Tensor, x: Tensor, y: Tensor, depth: Float[Tensor, "n"], cameras: Cameras | None = None
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """The distances t on `rays` of known depths of pixels, and what errors of t are multiplied by to be comparable.

        That is 1/t, and in NDC, where t = 1 + 1/z is linear in inverse depth (NeRF, appendix C), 1.
        """
        if not self.ndc:
            return depth, 1 / depth.clamp(min=1e-9)
        cameras = self.cameras if cameras is None else cameras
        views, x, y = (index.to(cameras.c2w.device) for index in (views, x, y))
        z = cameras.c2w[views, 2, 3] + depth.to(cameras.c2w.device) * cameras.directions(views, x, y)[:, 2]
        return (1 + 1 / z.clamp(max=-1e-9)).clamp(min=0).detach().to(depth.device), torch.ones_like(depth)

    def describe(self) -> str:
        """Views, bounds, near and far in a line."""
        views = f"{len(self.cameras)} views, {len(self.splits['train'])} of them to train on"
        bounds = f"{self.bounds} in normalised device coordinates" if self.ndc else self.bounds
        return f"{views}; {bounds}, from {self.near:.3g} to {self.far:.3g}"

    @property
    def original_cameras(self) -> Cameras:
        """The cameras with their poses in the coordinates of the user's files, float64."""
        return replace(self.cameras, c2w=transform_poses(self.cameras.c2w, self.to_original))

    def ndc_by(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``ndc_lens`` as tensors ([1] each)."""
        assert self.ndc_lens is not None
        fx, fy, width, height = torch.tensor(self.ndc_lens, device=device)[:, None]
        return fx, fy, width, height

    def save(self, folder: Path, given: Cameras | None = None) -> None:
        """Write ``scene.json`` and ``cameras.json`` (normalised and original coordinates), without the images.

        ``given`` are the cameras of the user's files, if this scene's have been learned.
        """
        info = {k: getattr(self, k) for k in _PLAIN} | {"to_original": self.to_original.tolist()}
        write_json(folder / "scene.json", info)
        cameras = {"normalised": self.cameras.state(), "original_c2w": self.original_cameras.c2w.tolist(), "axes": "OpenGL"}
        if given is not None:
            cameras["given"] = given.state()
        write_json(folder / "cameras.json", cameras)

    @classmethod
    def load(cls, folder: Path, given: bool = False) -> "Scene":
        """The scene of a run folder, without its images; ``given`` asks for the user's cameras where others have been learned."""
        try:
            info: dict[str, Any] = read_json(folder / "scene.json")
            state = read_json(folder / "cameras.json")
            cameras = Cameras.from_state(state["given" if given and "given" in state else "normalised"])
            to_original = torch.tensor(info.pop("to_original"), dtype=torch.float64)
            info |= {key: tuple(map(float, info[key])) for key in ("depth_range", "ndc_lens") if info.get(key)}
            if isinstance(info["background"], list):
                info["background"] = tuple(info["background"])
            scene = cls(cameras=cameras, to_original=to_original, **info)
            _check_views(scene)
        except (SceneError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
            raise SceneError(f"{folder} is not a run folder that can be read: {str(error).rstrip('.')}.") from error
        return scene


def _check_views(scene: Scene) -> None:
    """ValueError or TypeError where a scene that was read names views that it doesn't have, or not as it should."""
    views = range(len(scene.cameras))
    if not all(type(view) is int and view in views for split in scene.splits.values() for view in split) or not scene.splits["train"]:
        raise ValueError("its splits name views that it doesn't have, or none to train on")
    if scene.view_names and (len(scene.view_names) != len(views) or not all(isinstance(name, str) for name in scene.view_names)):
        raise ValueError("its views don't have one name each")
    words = (scene.name, scene.format, scene.bounds, scene.default_path)
    if not all(isinstance(word, str) for word in words) or scene.to_original.shape != (4, 4):
        raise TypeError("a name in it is none, or to_original no matrix")
    if len(scene.depth_range or "12") != 2 or len(scene.ndc_lens or "1234") != 4:
        raise ValueError("its depth_range has not two numbers, or its ndc_lens not four")


def colour_name(colour: Colour) -> str:
    """A colour as #rrggbb."""
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in colour)


_INFINITE = 1e9
"""Larger than any length in a scene."""


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in values.tolist())


_PLAIN = (
    "name",
    "format",
    "near",
    "far",
    "splits",
    "bounds",
    "background",
    "ndc",
    "ndc_lens",
    "default_path",
    "view_names",
    "depth_range",
    "masked",
)


def composite(rgba: Float[Tensor, "*n channels"], background: float | Tensor) -> Float[Tensor, "*n 3"]:
    """Straight-alpha colours over a background; colours without alpha are returned as they are."""
    if rgba.shape[-1] == 3:
        return rgba
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + background * (1 - alpha)
