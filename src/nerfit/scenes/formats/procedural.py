"""A scene made in code: a still life by an exact ray tracer, with true depths and normals; nothing is read from disk.

``procedural`` (or ``procedural:object``) is an object on a turntable as in NeRF's Blender scenes; ``procedural:forward-facing``
is a room viewed from a grid of cameras as in LLFF's data; ``procedural:corridor`` is a long row of things that cameras pass by.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.cameras import focal_from_fov
from nerfit.cameras.poses import look_at
from nerfit.errors import SceneError, nearest
from nerfit.scenes.formats import raytrace
from nerfit.scenes.formats.raytrace import Box, Capsule, Cylinder, Points, Stage, Vector, column
from nerfit.scenes.scene import Bounds, Scene, SceneConfig
from nerfit.scenes.splits import held_out, make_splits

KINDS = ("object", "forward-facing", "corridor")


@dataclass
class Config(SceneConfig):
    """Options of procedural scenes."""

    size: int = 100
    """Width and height of the pictures in pixels."""
    views: int | None = None
    """Training views, or all photos of the forward-facing scene (every 8th is for testing); none = 60 (object), 20 (forward-facing) or 120
    (corridor)."""
    test_views: int = 8
    """Test views: of the object on their own orbit, of the corridor on a drive along it."""
    val_views: int = 4
    """Validation views of the object or the corridor."""
    alpha: bool | None = None
    """Pictures with transparency, without the wall of the forward-facing scene; none = yes for the object, no for the others."""
    scene_seed: int = 0
    """Seed of the camera positions; other values than 0 also change the colours."""
    samples: int = 3
    """Antialiasing: samples x samples rays per pixel."""


def detect(source: str) -> bool:
    """Whether ``source`` asks for this format: "procedural", alone or with a kind after a colon."""
    return source == "procedural" or source.startswith("procedural:")


def load(source: str, config: Config) -> Scene:
    """The scene of ``source``; raises SceneError for an unknown kind or a size, count or sampling that is too small."""
    kind = source.partition(":")[2] or "object"
    if kind not in KINDS:
        raise SceneError(
            f"{source} is not a procedural scene{nearest(kind, KINDS)}; write {' or '.join(f'procedural:{kind}' for kind in KINDS)}."
        )
    layout = _LAYOUTS[kind]
    views = layout.views if config.views is None else config.views
    for name, least in {"views": layout.least_views, "val_views": 0, "test_views": 0, "size": 1, "samples": 1}.items():
        value = views if name == "views" else getattr(config, name)
        if value < least:
            raise SceneError(f"{source}: {name} must be at least {least}, not {value}.")
    alpha = kind == "object" if config.alpha is None else config.alpha
    generator = torch.Generator().manual_seed(config.scene_seed)
    if kind == "forward-facing":
        c2w = look_at(_grid(views, generator), torch.tensor([0.0, 0.0, -12.0]), torch.tensor([0.0, 1.0, 0.0]))
        names = [f"photo_{i:03d}" for i in range(views)]
        splits = make_splits(source, views, held_out(views, 8), config.train_views)
    else:
        counts = {"train": views, "val": config.val_views, "test": config.test_views}
        poses = _around if kind == "object" else _along
        eyes, targets = poses(views, config.val_views, config.test_views, generator)
        c2w = look_at(eyes, targets, torch.tensor([0.0, 0.0, 1.0]))
        names = [f"{split}_{i:03d}" for split, n in counts.items() for i in range(n)]
        train, val, test = ([i for i, name in enumerate(names) if name.startswith(split)] for split in counts)
        splits = make_splits(source, len(names), test, config.train_views, train, val)
    cameras = Cameras.pinhole(c2w, focal_from_fov(layout.fov, config.size), config.size, config.size, config.pixel_offset)
    colour = torch.tensor(config.background) if isinstance(config.background, tuple) else 0.0 if config.background == "black" else 1.0
    backdrop = None if alpha else colour
    pixels, depths, normals = render(stage(kind, config.scene_seed, wall=not alpha), cameras, config.samples, backdrop)
    hits = depths[depths > 0]
    near, far = config.reach(*layout.reach)
    return Scene(
        name=layout.name,
        format="procedural",
        cameras=cameras,
        near=near,
        far=far,
        splits=splits,
        pixels=pixels,
        bounds=layout.bounds,
        background=config.background,
        ndc=kind == "forward-facing",
        default_path=layout.path,
        view_names=names,
        depth_range=(float(hits.min()), float(hits.max())) if hits.numel() else None,
        depths=depths,
        normals=normals,
    )


@dataclass(frozen=True)
class _Layout:
    """The cameras of a kind of scene; ``reach`` is near and far, ``fov`` in radians."""

    name: str
    bounds: Bounds
    views: int
    fov: float
    reach: tuple[float, float]
    path: str
    least_views: int = 1


_LAYOUTS = {
    "object": _Layout("procedural-object", "object", 60, 0.6911, (2.0, 6.0), "circle"),
    "forward-facing": _Layout("procedural-forward", "forward-facing", 20, 0.9, (0.0, 1.0), "spiral", least_views=2),
    "corridor": _Layout("procedural-corridor", "unbounded", 120, 1.0, (0.02, 20.0), "interpolate"),
}


def trace(
    kind: str, origins: Float[Tensor, "rays 3"], directions: Float[Tensor, "rays 3"], seed: int = 0, wall: bool = True
) -> tuple[Float[Tensor, "rays 3"], Float[Tensor, "rays"], Float[Tensor, "rays"], Float[Tensor, "rays 3"]]:
    """Colour, opacity (0 or 1), depth and unit normal that the scene ``kind`` shows along any world rays ``o + t d``.

    Depth is t, so with the cameras' own directions it runs along the optical axis; all are 0 where a ray meets nothing.
    ``wall`` false leaves out the forward-facing scene's back wall. Computed in the rays' own float type.
    """
    return raytrace.trace(stage(kind, seed, wall), origins, directions)


def render(
    scene_stage: Stage, cameras: Cameras, samples: int, backdrop: Tensor | float | None
) -> tuple[Float[Tensor, "pixels channels"], Float[Tensor, "pixels"], Float[Tensor, "pixels 3"]]:
    """All pixels of all (equally large) cameras: colours (uint8), depths and normals (float32) of the central rays.

    A pixel averages samples² rays on a regular grid one pixel wide around its central ray, weighted by opacity; with ``backdrop`` None
    it keeps its coverage as straight alpha, else it lies over that colour.
    """
    w, h = int(cameras.width[0]), int(cameras.height[0])
    offset = (torch.arange(samples) + 0.5) / samples - 0.5
    dy, dx = (g.flatten() for g in torch.meshgrid(offset, offset, indexing="ij"))
    parts = []
    for pixels in torch.arange(len(cameras) * w * h).split(max(1, 120_000 // samples**2)):
        view, x, y = pixels // (w * h), (pixels % w).float(), (pixels // w % h).float()
        origins = cameras.centers[view]
        depth, normal = raytrace.geometry(scene_stage, origins.double(), cameras.directions(view, x, y).double())
        views, n = view.repeat_interleave(samples**2), len(pixels)
        directions = cameras.directions(views, (x[:, None] + dx).flatten(), (y[:, None] + dy).flatten())
        rgb, alpha, _, _ = raytrace.trace(scene_stage, cameras.centers[views], directions)
        rgb, alpha = rgb.reshape(n, -1, 3).mean(1), alpha.reshape(n, -1).mean(1, keepdim=True)
        color = torch.cat([rgb / alpha.clamp(min=1e-6), alpha], -1) if backdrop is None else rgb + backdrop * (1 - alpha)
        parts.append(((color.clamp(0, 1) * 255).round().to(torch.uint8), depth.float(), normal.float()))
    colors, depths, normals = (torch.cat(p) for p in zip(*parts, strict=True))
    return colors, depths, normals


def _on_sphere(height: Tensor, azimuth: Tensor, radius: float = 4.0) -> Float[Tensor, "views 3"]:
    flat = (1 - height**2).sqrt()
    return radius * torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), height], -1)


def _around(train: int, val: int, test: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places of training, validation and test cameras around the object, and where they look."""
    return torch.cat([_dome(train, generator), _dome(val, generator), _orbit(test)]), torch.zeros(3)


def _along(train: int, val: int, test: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places of cameras along the corridor, x from -1 to 1, and where they look: photographers turn their heads, test cameras drive by."""

    def drive(n: int) -> Tensor:
        return (2 * torch.arange(n) + 1) / max(n, 1) - 1

    x = torch.cat([drive(train), drive(val), drive(test)])
    wild = torch.cat([torch.ones(train + val), torch.zeros(test)])
    dx, dy, dz, turn = (2 * torch.rand(4, len(x), generator=generator) - 1) * wild
    eyes = torch.stack([x + 0.4 * dx / max(train, 1), -0.42 + 0.05 * dy, 0.03 + 0.06 * dz], -1)
    return eyes, torch.stack([x + 0.3 * turn, torch.full_like(x, 0.1), torch.full_like(x, -0.01)], -1)


def _dome(n: int, generator: torch.Generator) -> Float[Tensor, "views 3"]:
    """Places on the upper hemisphere: a golden spiral, turned and jittered by less than its spacing, in random order."""
    i = torch.randperm(n, generator=generator) + 0.2 + 0.6 * torch.rand(n, generator=generator)
    turn = 2 * math.pi * torch.rand(1, generator=generator)
    return _on_sphere(0.06 + 0.86 * i / max(n, 1), math.pi * (3 - 5**0.5) * i + turn)


def _orbit(n: int) -> Float[Tensor, "views 3"]:
    """Places on an orbit that rises and sinks twice."""
    azimuth = 2 * math.pi * (torch.arange(n) + 0.5) / max(n, 1)
    return _on_sphere(0.45 + 0.2 * (2 * azimuth).sin(), azimuth)


def _grid(n: int, generator: torch.Generator) -> Float[Tensor, "views 3"]:
    """Places of a hand-held grid in the plane z = 0, rows in turn, at most 0.5 from the origin along each axis."""
    columns = math.ceil((1.25 * n) ** 0.5)
    rows = math.ceil(n / columns)
    i = torch.arange(n)
    cell = torch.stack([i % columns, i // columns], -1) + 0.5 + 0.5 * (torch.rand(n, 2, generator=generator) - 0.5)
    plane = (cell / torch.tensor([columns, rows]) - 0.5) * torch.tensor([0.9, -0.6])
    return torch.cat([plane, 0.1 * (torch.rand(n, 1, generator=generator) - 0.5)], -1)


def _turned(yaw: float, tilt: float = 0.0) -> Float[Tensor, "3 3"]:
    """Rotation by ``tilt`` about x, then ``yaw`` about z (degrees)."""
    a, b = math.radians(yaw), math.radians(tilt)
    (ca, sa), (cb, sb) = (math.cos(a), math.sin(a)), (math.cos(b), math.sin(b))
    return torch.tensor([[ca, -sa * cb, sa * sb], [sa, ca * cb, -ca * sb], [0, sb, cb]], dtype=torch.float64)


def _unit(v: Vector) -> Vector:
    n = math.hypot(*v)
    return v[0] / n, v[1] / n, v[2] / n


def _choose(colors: list[Vector], index: Tensor) -> Points:
    """Colours by integer index (float whole numbers, any sign), around and around."""
    return torch.tensor(colors, dtype=index.dtype, device=index.device).T[:, index.long() % len(colors)]


def _angle(p: Points) -> Tensor:
    """Turns around z, in [-½, ½]."""
    return torch.atan2(p[1], p[0]) / (2 * math.pi)


def _plain(color: Vector) -> Callable[[Points], Points]:
    return lambda p: column(color, p).expand_as(p)


def _stripes(colors: list[Vector], across: Vector, width: float) -> Callable[[Points], Points]:
    return lambda p: _choose(colors, ((column(across, p) * p).sum(0) / width).floor())


def _globe(a: Vector, b: Vector, radius: float) -> Callable[[Points], Points]:
    """Checks of longitude and latitude."""
    return lambda p: _choose([a, b], (_angle(p) * 10).floor() + ((p[2] / radius).clamp(-1, 1).asin() * (6 / math.pi)).floor())


def _helix(colors: list[Vector], pitch: float) -> Callable[[Points], Points]:
    return lambda p: _choose(colors, ((_angle(p) + p[2] / pitch) * len(colors)).floor())


def _marble(a: Vector, b: Vector, scale: float) -> Callable[[Points], Points]:
    """Veins: a sine bent by slower sines of the other coordinates."""

    def paint(p: Points) -> Points:
        x, y, z = p * scale
        vein = (x + 1.3 * (0.9 * y + 0.7 * z).sin() + 0.7 * (1.7 * z - 1.1 * x + 1).sin() + 0.4 * (2.9 * y + 1.9 * x).sin()).sin()
        return torch.lerp(column(b, p), column(a, p), vein.abs().sqrt())

    return paint


def _rosette(inner: list[Vector], ring: list[Vector], radius: float) -> Callable[[Points], Points]:
    """A round table: a wreath of checks around soft wooden rings."""

    def paint(p: Points) -> Points:
        r = raytrace.length(p[:2])
        grain = 0.5 + 0.5 * (44 * (r + 0.05 * (3 * p[0] + 2 * p[1]).sin() + 0.04 * (4 * p[1] - p[0]).cos())).sin()
        wood = torch.lerp(column(inner[0], p), column(inner[1], p), grain)
        checks = _choose(ring, (_angle(p) * 36).floor() + (r / radius * 11.99).floor())
        return torch.where(r > radius * 10 / 12, checks, wood)

    return paint


def _bauhaus(colors: list[Vector], tile: float) -> Callable[[Points], Points]:
    """Square tiles, each a quarter disc on a ground, colours and corner by an integer hash of its position."""

    def paint(p: Points) -> Points:
        corner = (p / tile).floor()
        inside = p / tile - corner
        i, j = corner[0].long() + 64, corner[2].long() + 64
        code = (i * 73 + j * 151 + i * j * 7 + (i * i + j * j * 3) * 11) % 97
        u = torch.where(code % 2 == 0, inside[0], 1 - inside[0])
        v = torch.where(code // 2 % 2 == 0, inside[2], 1 - inside[2])
        ground = code // 4 % len(colors)
        disc = (ground + 1 + code // 3 % (len(colors) - 1)) % len(colors)
        r = torch.hypot(u, v)
        return _choose(colors, torch.where((r < 0.95) & (r > 0.35 * (code % 5 == 0)), disc, ground).to(p))

    return paint


def _palette(seed: int) -> dict[str, Vector]:
    """Linear colours by name; seeds other than 0 turn the hues by multiples of the golden angle, but for wood and whites."""
    bright = {
        "coral": (0.80, 0.08, 0.05), "mustard": (0.90, 0.44, 0.02), "leaf": (0.14, 0.46, 0.06), "teal": (0.01, 0.32, 0.32),
        "sky": (0.10, 0.40, 0.72), "navy": (0.01, 0.03, 0.14), "rose": (0.80, 0.12, 0.28),
    }  # fmt: skip
    calm = {"oak": (0.56, 0.29, 0.11), "walnut": (0.30, 0.12, 0.04), "cream": (0.88, 0.80, 0.66), "white": (0.86, 0.86, 0.86)}

    def turned(rgb: Vector) -> Vector:
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb((hue + seed * (3 - 5**0.5) / 2) % 1, saturation, value)

    return calm | {name: turned(rgb) for name, rgb in bright.items()}


@lru_cache(maxsize=16)
def stage(kind: str, seed: int = 0, wall: bool = True) -> Stage:
    """The solids, light and axes of a kind of scene."""
    colors = _palette(seed)
    return _room(colors, wall) if kind == "forward-facing" else _still_life(colors) if kind == "object" else _corridor(colors)


def _still_life(c: dict[str, Vector]) -> Stage:
    top = -0.36
    rainbow = [c["coral"], c["mustard"], c["cream"], c["teal"], c["navy"]]
    wreath = _rosette([c["oak"], c["walnut"]], [c["teal"], c["cream"]], 1.1)
    return Stage(
        (
            Cylinder(center=(0, 0, top - 0.08), radius=1.1, half=0.08, paint=wreath, casts=False),
            Capsule(center=(-0.42, 0.36, top + 0.42), radius=0.42, paint=_globe(c["coral"], c["cream"], 0.42), turn=_turned(20, 25)),
            Box(center=(0.45, 0.42, top + 0.32), half=(0.26, 0.26, 0.32), paint=_stripes(rainbow, (0.5, 0.5, 1), 0.15), turn=_turned(28)),
            Capsule(center=(0.45, 0.42, top + 0.64 + 0.17), radius=0.17, paint=_marble(c["white"], c["navy"], 13), gloss=0.5),
            Capsule(center=(0.26, -0.40, top + 0.32), radius=0.32, paint=_plain(c["navy"]), mirror=0.65, gloss=2),
            Capsule(
                center=(-0.46, -0.46, top + 0.14), radius=0.14, half=0.2, paint=_stripes([c["mustard"], c["white"]], (0, 0, 1), 0.4),
                turn=_turned(55, 90), gloss=0.6,
            ),
            Cylinder(center=(0.84, -0.18, top + 0.28), radius=0.12, half=0.28, paint=_helix([c["white"], c["leaf"]], 0.4)),
        ),
        sun=_unit((0.55, -0.62, 0.85)),
        reach=1.3,
    )  # fmt: skip


def _room(c: dict[str, Vector], wall: bool) -> Stage:
    floor = -1.05
    tiles = [c["cream"], c["teal"], c["coral"], c["mustard"], c["navy"], c["sky"]]
    rainbow = [c["coral"], c["mustard"], c["cream"], c["teal"], c["navy"]]
    boards = _stripes([c["oak"], c["walnut"], c["oak"]], (1, 0, 0), 0.5)
    solids = [
        Box(center=(0, 3.6, floor - 0.1), half=(6, 2.4, 0.1), paint=boards, casts=False),
        Capsule(center=(-0.95, 3.3, floor + 0.62), radius=0.62, paint=_globe(c["coral"], c["cream"], 0.62), turn=_turned(20, 25)),
        Box(center=(0.95, 3.6, floor + 0.5), half=(0.42, 0.42, 0.5), paint=_stripes(rainbow, (0.5, 0.5, 1), 0.24), turn=_turned(28)),
        Capsule(center=(0.95, 3.6, floor + 1.28), radius=0.28, paint=_marble(c["white"], c["navy"], 9), gloss=0.5),
        Capsule(center=(0.12, 2.75, floor + 0.4), radius=0.4, paint=_plain(c["navy"]), mirror=0.65, gloss=2),
        Capsule(
            center=(-0.62, 2.3, floor + 0.15), radius=0.15, half=0.22, paint=_stripes([c["mustard"], c["white"]], (0, 0, 1), 0.44),
            turn=_turned(55, 90), gloss=0.6,
        ),
        Cylinder(center=(0.75, 2.45, floor + 0.36), radius=0.14, half=0.36, paint=_helix([c["white"], c["leaf"]], 0.5)),
        Capsule(center=(-0.42, 2.0, 0.42), radius=0.13, paint=_plain(c["rose"]), gloss=0.6),
    ]  # fmt: skip
    if wall:
        solids.append(Box(center=(0, 5.6, 2), half=(6, 0.2, 4), paint=_bauhaus(tiles, 1.0), casts=False))
    to_world = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    return Stage(tuple(solids), sun=_unit((-0.6, -0.75, 1.05)), frame=to_world)


def _corridor(c: dict[str, Vector]) -> Stage:
    floor, bright = -0.1, [c[name] for name in ("coral", "mustard", "teal", "sky", "rose", "leaf", "navy")]
    boards, tiles = _stripes([c["oak"], c["walnut"], c["oak"]], (1, 0, 0), 0.07), _bauhaus([c["cream"], *bright], 0.08)
    solids: list[raytrace.Solid] = [
        Box(center=(0, 0, floor - 0.01), half=(1.4, 0.3, 0.01), paint=boards, casts=False),
        Box(center=(0, 0.31, 0.05), half=(1.4, 0.01, 0.16), paint=tiles, casts=False),
    ]
    for i in range(16):  # four kinds in turn, in other colours each time
        x, y, a, b = -1.2 + 0.16 * i, 0.06 * (-1) ** i, bright[i % 7], bright[(i + 3) % 7]
        if i % 4 == 0:
            globe = _globe(a, c["cream"], 0.07)
            solids.append(Capsule(center=(x, y, floor + 0.07), radius=0.07, paint=globe, turn=_turned(20 * x, 25)))
        elif i % 4 == 1:
            stripes = _stripes([a, b, c["white"]], (0.5, 0.5, 1), 0.03)
            solids.append(Box(center=(x, y, floor + 0.08), half=(0.05, 0.05, 0.08), paint=stripes, turn=_turned(40 * x)))
        elif i % 4 == 2:
            solids.append(Cylinder(center=(x, y, floor + 0.09), radius=0.04, half=0.09, paint=_helix([c["white"], a], 0.1)))
        else:
            solids.append(Capsule(center=(x, y, floor + 0.06), radius=0.06, paint=_marble(a, b, 60), gloss=0.4))
    return Stage(tuple(solids), sun=_unit((0.45, -0.75, 0.9)))
