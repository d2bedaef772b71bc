"""Batched cameras and the one function that turns pixels into rays."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nerfit.cameras.lenses import LENS_PARAMETERS, LENSES, NEWTON_STEPS, project, unproject
from nerfit.kernels.layouts import Optics
from nerfit.kernels.pixels import camera_rays


@dataclass
class Rays:
    """A flat batch of rays ``origins + t·directions``, sampled from t = ``near`` to ``far``.

    ``directions`` keep their length: ``t`` is the depth along the optical axis of a perspective camera, the distance from a camera
    with another lens. ``viewdirs`` are unit directions in the world, taken before a warp such as NDC. ``pixel_radius`` is the radius
    of a pixel's cone at t = 1 (mip-NeRF, section 3.1: pixel width times 2/√12). ``image_index`` is the view of each ray.
    """

    origins: Float[Tensor, "rays 3"]
    directions: Float[Tensor, "rays 3"]
    viewdirs: Float[Tensor, "rays 3"]
    near: Float[Tensor, "rays"]
    far: Float[Tensor, "rays"]
    pixel_radius: Float[Tensor, "rays"]
    image_index: Int[Tensor, "rays"]

    def __len__(self) -> int:
        return self.origins.shape[0]

    def __getitem__(self, index: Any) -> "Rays":
        """The rays of a slice, mask or index tensor."""
        return Rays(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> "Rays":
        """The same rays on another device."""
        return Rays(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass
class Cameras:
    """A batch of cameras; each may have its own size and lens.

    ``c2w`` takes camera to world coordinates (OpenGL axes). Focal lengths fx, fy and the principal point cx, cy are in pixels, counted
    from the image's corner: the centre of a W×H image is (W/2, H/2) and pixel (i, j) covers [i, i+1]×[j, j+1]. ``distortion`` holds
    `lenses.LENS_PARAMETERS`, ``lens`` an index into `lenses.LENSES` (None: all perspective); an equirectangular picture has fx = W/2π
    and fy = H/π. ``pixel_offset`` is the point of a pixel where its ray starts: 0.5 is the centre; the original NeRF code used 0.
    """

    c2w: Float[Tensor, "views 3 4"]
    fx: Float[Tensor, "views"]
    fy: Float[Tensor, "views"]
    cx: Float[Tensor, "views"]
    cy: Float[Tensor, "views"]
    width: Int[Tensor, "views"]
    height: Int[Tensor, "views"]
    distortion: Float[Tensor, "views 13"] | None = None
    pixel_offset: float = 0.5
    lens: Int[Tensor, "views"] | None = None

    @classmethod
    def pinhole(cls, c2w: Tensor, focal: float | Tensor, width: int, height: int, pixel_offset: float = 0.5) -> "Cameras":
        """Cameras with poses ``c2w`` [views, 3 or 4, 4], one size and focal length in pixels, and the principal point in the middle.

        ``focal`` is a number or one for each view [views].
        """
        n = c2w.shape[0]
        f = torch.as_tensor(focal, dtype=torch.float32).expand(n).clone()
        size = (torch.full((n,), width), torch.full((n,), height))
        half = (torch.full((n,), width / 2), torch.full((n,), height / 2))
        return cls(c2w[:, :3].to(torch.float32), f, f.clone(), *half, *size, pixel_offset=pixel_offset)

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def __getitem__(self, views: Any) -> "Cameras":
        """The cameras of a slice, mask, list or index tensor."""
        if isinstance(views, int):
            views = [views]
        return self._map(lambda t: t[views])

    def _map(self, fn: Any) -> "Cameras":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: fn(t) for name, t in tensors.items()})

    def to(self, device: torch.device | str) -> "Cameras":
        """The same cameras on another device."""
        return self._map(lambda t: t.to(device))

    @property
    def centers(self) -> Float[Tensor, "views 3"]:
        """Camera positions in the world."""
        return self.c2w[:, :, 3]

    def resize(self, width: int, height: int) -> "Cameras":
        """Cameras of the same pictures resampled to ``width`` × ``height`` pixels: every intrinsic follows."""
        return self._with_size(torch.full_like(self.width, width), torch.full_like(self.height, height))

    def rescale(self, factor: float) -> "Cameras":
        """Cameras of pictures ``factor`` times as large (0.5 halves them); sizes are rounded to whole pixels, at least 1."""
        return self._with_size(*((side * factor).round().clamp(min=1).long() for side in (self.width, self.height)))

    def _with_size(self, width: Int[Tensor, "views"], height: Int[Tensor, "views"]) -> "Cameras":
        sx, sy = width / self.width.to(self.fx), height / self.height.to(self.fy)
        return replace(self, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy, width=width, height=height)

    def crop(self, x: int, y: int, width: int, height: int) -> "Cameras":
        """Cameras of the window of ``width`` × ``height`` pixels whose top left pixel is column ``x``, row ``y``."""
        size = {"width": torch.full_like(self.width, width), "height": torch.full_like(self.height, height)}
        return replace(self, cx=self.cx - x, cy=self.cy - y, **size)

    def directions(self, views: Int[Tensor, "rays"], x: Tensor, y: Tensor) -> Float[Tensor, "rays 3"]:
        """World directions of the rays through pixels: of unit depth, for lenses other than perspective of unit length.

        ``views`` [rays] are the cameras' indices, ``x`` and ``y`` [rays] the pixels' columns and rows (fractions
        allowed). A perspective pixel's camera direction is ((x + offset - cx)/fx, -(y + offset - cy)/fy, -1) after the lens is undone.
        """
        u = (x + self.pixel_offset - self.cx[views]) / self.fx[views]
        v = (y + self.pixel_offset - self.cy[views]) / self.fy[views]
        return torch.einsum("rij,rj->ri", self.c2w[views, :, :3], unproject(u, v, *self._optics(views)))

    def project(self, views: Int[Tensor, "n"], points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n 2"], Bool[Tensor, "n"]]:
        """Image positions [n, 2] of world ``points``, each in one of ``views`` [n], and which are visible [n].

        Positions are (column, row) in pixels from the image's corner. A point is visible where it lies in front of the camera and the
        lens shows it, inside the image or not.
        """
        local = torch.einsum("rij,ri->rj", self.c2w[views, :, :3], points - self.c2w[views, :, 3])
        u, v, visible = project(local, *self._optics(views))
        return torch.stack([u * self.fx[views] + self.cx[views], v * self.fy[views] + self.cy[views]], -1), visible

    def depths(self, views: Int[Tensor, "n"], points: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """The t [n] at which rays of ``views`` [n] meet world ``points``: depth along the axis of a perspective camera, else distance."""
        to, perspective = points - self.c2w[views, :, 3], True if self.lens is None else self.lens[views] == 0
        return torch.where(torch.as_tensor(perspective, device=to.device), -(to * self.c2w[views, :, 2]).sum(-1), to.norm(dim=-1))

    def _optics(self, views: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Lens and distortion of each ray."""
        lens, k = self.lens, self.distortion
        return None if lens is None else lens[views], None if k is None else k[views]

    def rays(self, views: Int[Tensor, "rays"], x: Tensor, y: Tensor, near: float, far: float) -> Rays:
        """Rays from t = ``near`` to ``far`` through pixels of column ``x`` and row ``y`` ([rays]) of ``views`` [rays], on this device."""
        intrinsics = (self.fx, self.fy, self.cx, self.cy, self.lens, self.distortion)
        fast = camera_rays(Optics(self.c2w, *intrinsics, self.pixel_offset, NEWTON_STEPS), views, x, y)
        if fast is not None:
            d, viewdirs, origins = fast
        else:
            d, origins = self.directions(views, x, y), self.c2w[views, :, 3]
            viewdirs = torch.nn.functional.normalize(d, dim=-1)
        return Rays(
            origins=origins,
            directions=d,
            viewdirs=viewdirs,
            near=torch.full_like(d[:, 0], near),
            far=torch.full_like(d[:, 0], far),
            pixel_radius=(2 / 12**0.5) / self.fx[views],
            image_index=views,
        )

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers for JSON; `from_state` reads them back."""
        return {f.name: v.tolist() if isinstance(v := getattr(self, f.name), Tensor) else v for f in fields(self)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Cameras":
        """Cameras from `state`; older ones hold five numbers as distortion, k1 k2 p1 p2 k3. ValueError or TypeError for what is none."""
        kinds = {"width": torch.long, "height": torch.long, "lens": torch.long}
        values: dict[str, Any] = {
            k: torch.tensor(v, dtype=kinds.get(k, torch.float32)) if isinstance(v, list) else v for k, v in state.items()
        }
        old = values.get("distortion")
        if old is not None and old.shape[1] == 5:
            values["distortion"] = old.new_zeros(len(old), len(LENS_PARAMETERS))
            values["distortion"][:, [LENS_PARAMETERS.index(name) for name in ("k1", "k2", "p1", "p2", "k3")]] = old
        cameras = cls(**values)
        count, shapes = len(cameras.c2w), {"c2w": (3, 4), "distortion": (len(LENS_PARAMETERS),)}
        for f in fields(cls):
            value = getattr(cameras, f.name)
            if isinstance(value, Tensor) and value.shape != (count, *shapes.get(f.name, ())):
                raise ValueError(f"{f.name} of {count} cameras has the shape {tuple(value.shape)}")
            if not isinstance(value, Tensor) and not (isinstance(value, int | float) if f.name == "pixel_offset" else value is f.default):
                raise TypeError(f"{f.name} can't be {str(value)[:40]}")
        if not count or int(torch.minimum(cameras.width, cameras.height).min()) < 1:
            raise ValueError("there is no camera, or one without pixels")
        if cameras.lens is not None and not ((cameras.lens >= 0) & (cameras.lens < len(LENSES))).all():
            raise ValueError("there is a lens of no known kind")
        return cameras


def focal_from_fov(fov: float, size: int) -> float:
    """Focal length in pixels of a field of view (radians) across ``size`` pixels: ½·size / tan(½·fov)."""
    return 0.5 * size / float(torch.tan(torch.tensor(0.5 * fov, dtype=torch.float64)))
