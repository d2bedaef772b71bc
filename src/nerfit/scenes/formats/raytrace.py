"""A small exact ray tracer: convex solids, one soft sun, a sky, mirrors; no noise, no files, any float type.

Inside this file points and directions are [3, rays], so that each coordinate lies in one piece. Every solid is a
union or intersection of balls and slabs around its own origin, so a ray's entry has a closed form.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

Points = Float[Tensor, "3 rays"]
Scalars = Float[Tensor, "rays"]
Vector = tuple[float, float, float]


def column(values: Vector, like: Tensor) -> Float[Tensor, "3 1"]:
    """A constant vector or colour that broadcasts over [3, rays], in the type of ``like``."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def dot(a: Tensor, b: Tensor) -> Scalars:
    """Inner products of the columns of two [3, rays] tensors."""
    return (a * b).sum(0)


def length(v: Tensor) -> Scalars:
    """Lengths of the columns of a [3 or 2, rays] tensor."""
    return dot(v, v).sqrt()


def unit(v: Tensor) -> Tensor:
    """Columns scaled to length 1; a column of zeros stays."""
    return v / length(v).clamp(min=1e-20)


def ball(o: Tensor, d: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The interval of t in which |o + t d| < radius (any dimension: in 2-D an infinite cylinder); empty = (inf, -inf).

    Measured from the point of closest approach, which keeps float32 exact far from the ball (Ray Tracing Gems, chapter 7).
    """
    dd = dot(d, d)
    middle = -dot(o, d) / dd
    closest = o + middle * d
    square = (radius**2 - dot(closest, closest)) / dd
    half = square.clamp(min=0).sqrt()
    hit = square > 0
    return torch.where(hit, middle - half, torch.inf), torch.where(hit, middle + half, -torch.inf)


def slab(o: Tensor, d: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """The interval of t in which one coordinate satisfies |o + t d| < half."""
    a, b = (-half - o) / d, (half - o) / d
    return torch.minimum(a, b), torch.maximum(a, b)


def overlap(*intervals: tuple[Tensor, Tensor]) -> Tensor:
    """Distance at which a ray enters the intersection of intervals; inf where they share nothing ahead of the origin."""
    t_in, t_out = intervals[0]
    for a, b in intervals[1:]:
        t_in, t_out = torch.maximum(t_in, a), torch.minimum(t_out, b)
    return torch.where((t_in < t_out) & (t_in > 0), t_in, torch.inf)


@dataclass(frozen=True, eq=False, kw_only=True)
class Solid(ABC):
    """A convex body at ``center``, turned by ``turn`` (own axes to stage axes), painted by a function of its own points."""

    center: Vector
    paint: Callable[[Points], Points]
    turn: Float[Tensor, "3 3"] = field(default_factory=lambda: torch.eye(3, dtype=torch.float64))
    gloss: float = 0.0
    """Strength of the sun's highlight (Phong, exponent 60)."""
    mirror: float = 0.0
    """Share of light that is reflected head-on; grows to 1 at grazing angles (Schlick 1994)."""
    casts: bool = True
    """Whether it shades the others; ground and walls need not."""

    def local(self, v: Points, shift: bool = True) -> Points:
        """Stage points (or, without ``shift``, directions) in the solid's own axes."""
        return self.turn.T.to(v) @ (v - column(self.center, v) if shift else v)

    @abstractmethod
    def enter(self, o: Points, d: Points) -> Scalars:
        """The t at which own-axes rays enter, inf where they miss."""

    @abstractmethod
    def normal(self, p: Points) -> Points:
        """Outward unit normals at surface points p."""

    @abstractmethod
    def gap(self, p: Points, sun: Float[Tensor, "3 1"]) -> Scalars:
        """How far the line from p to the sun passes outside (negative: inside) the solid's outline."""

    @property
    @abstractmethod
    def core(self) -> tuple[Vector, float]:
        """Half extents of an inner box and the radius around it that roughly fill the solid, for ambient occlusion."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Capsule(Solid):
    """All points within ``radius`` of the segment |z| <= half; a sphere when ``half`` is 0."""

    radius: float
    half: float = 0.0

    def enter(self, o: Points, d: Points) -> Scalars:
        """First of the entries into the tube and the two end balls."""
        if self.half == 0:
            return overlap(ball(o, d, self.radius))
        end = column((0, 0, self.half), o)
        side = overlap(ball(o[:2], d[:2], self.radius), slab(o[2], d[2], self.half))
        ends = torch.minimum(overlap(ball(o - end, d, self.radius)), overlap(ball(o + end, d, self.radius)))
        return torch.minimum(side, ends)

    def normal(self, p: Points) -> Points:
        """Away from the nearest point of the segment."""
        return unit(torch.cat([p[:2], p[2:] - p[2:].clamp(-self.half, self.half)]))

    def gap(self, p: Points, sun: Float[Tensor, "3 1"]) -> Scalars:
        """Distance from the segment as the sun sees it, less the radius."""
        axis = column((0, 0, 1), p) - sun[2] * sun
        s = (dot(p, axis) / dot(axis, axis).clamp(min=1e-9)).clamp(-self.half, self.half)
        return length(p - dot(p, sun) * sun - s * axis) - self.radius

    @property
    def core(self) -> tuple[Vector, float]:
        """The segment, with the radius around it."""
        return (0.0, 0.0, self.half), self.radius


@dataclass(frozen=True, eq=False, kw_only=True)
class Cylinder(Solid):
    """All points within ``radius`` of the z axis with |z| <= half."""

    radius: float
    half: float

    def enter(self, o: Points, d: Points) -> Scalars:
        """Entry into the endless tube where it lies between the caps."""
        return overlap(ball(o[:2], d[:2], self.radius), slab(o[2], d[2], self.half))

    def normal(self, p: Points) -> Points:
        """Up or down on the caps, away from the axis on the side."""
        reach = length(p[:2])
        cap = p[2].abs() - self.half > reach - self.radius
        side = torch.cat([p[:2] / reach.clamp(min=1e-9), torch.zeros_like(p[2:])])
        return torch.where(cap, column((0, 0, 1), p) * p[2].sign(), side)

    def gap(self, p: Points, sun: Float[Tensor, "3 1"]) -> Scalars:
        """Distance from the axis along the sun, measured in the plane z = 0, less the radius."""
        slope = sun[:2] / sun[2]  # along the sun onto z = 0 a disc keeps its shape, so the outline there is a stadium
        q = p[:2] - p[2] * slope
        s = (dot(q, slope) / dot(slope, slope).clamp(min=1e-9)).clamp(-self.half, self.half)
        return length(q - s * slope) - self.radius

    @property
    def core(self) -> tuple[Vector, float]:
        """A shorter piece of the axis, or the centre of a flat disc."""
        return (0.0, 0.0, max(self.half - self.radius, 0.0)), min(self.radius, self.half)


@dataclass(frozen=True, eq=False, kw_only=True)
class Box(Solid):
    """All points with |x|, |y|, |z| <= half."""

    half: Vector

    def enter(self, o: Points, d: Points) -> Scalars:
        """Entry into the last of the three slabs."""
        return overlap(*(slab(o[i], d[i], self.half[i]) for i in range(3)))

    def normal(self, p: Points) -> Points:
        """The axis of the nearest face."""
        face = (p.abs() - column(self.half, p)).argmax(0)
        return torch.nn.functional.one_hot(face, 3).T.to(p) * p.sign()

    def gap(self, p: Points, sun: Float[Tensor, "3 1"]) -> Scalars:
        """Seen from the sun a box is a hexagon: the slabs across (sun × axis), as wide as the box's corners reach."""
        across = unit(torch.linalg.cross(sun.T.expand(3, 3), torch.eye(3).to(p)).T).T
        return ((across @ p).abs() - across.abs() @ column(self.half, p)).amax(0)

    @property
    def core(self) -> tuple[Vector, float]:
        """The box shrunk by its smallest half extent, which is the radius around it."""
        r = min(self.half)
        return (self.half[0] - r, self.half[1] - r, self.half[2] - r), r


@dataclass(frozen=True, eq=False)
class Stage:
    """Solids under a sun and a sky, z up; ``frame`` turns stage axes to world axes. ``reach`` bounds the solids' distance from 0."""

    solids: tuple[Solid, ...]
    sun: Vector
    """Direction to the sun, unit length."""
    frame: Float[Tensor, "3 3"] = field(default_factory=lambda: torch.eye(3, dtype=torch.float64))
    reach: float = torch.inf


SUN_COLOR, SUN_WIDTH, EXPOSURE = (1.55, 1.38, 1.12), 0.11, 1.25
ZENITH, HORIZON, GROUND = (0.20, 0.42, 0.86), (0.93, 0.90, 0.86), (0.42, 0.34, 0.30)


def sky(d: Points) -> Points:
    """Linear radiance from unit directions: warm horizon, blue zenith, brown ground."""
    up = d[2]
    air = torch.lerp(column(HORIZON, d), column(ZENITH, d), up.clamp(0, 1).sqrt())
    return torch.lerp(air, column(GROUND, d), (up * -12).clamp(0, 1))


def first_hit(stage: Stage, o: Points, d: Points) -> tuple[Scalars, Int[Tensor, "rays"]]:
    """The nearest t and its solid's index (inf and -1: none) of stage rays.

    A ray that leaves a surface can't meet it again: the solid is convex, so its entry lies behind the origin.
    """
    t = torch.full_like(o[0], torch.inf)
    part = torch.full_like(o[0], -1, dtype=torch.long)
    for k, solid in enumerate(stage.solids):
        entry = solid.enter(solid.local(o), solid.local(d, shift=False))
        closer = entry < t
        t, part = torch.where(closer, entry, t), torch.where(closer, k, part)
    return t, part


def surface(stage: Stage, p: Points, part: Int[Tensor, "rays"]) -> tuple[Points, Points]:
    """Unit normals and paint of the solids ``part`` at points p on them."""
    normal, paint = torch.empty_like(p), torch.empty_like(p)
    for k, solid in enumerate(stage.solids):
        rows = (part == k).nonzero()[:, 0]
        local = solid.local(p[:, rows])
        normal[:, rows], paint[:, rows] = solid.turn.to(p) @ solid.normal(local), solid.paint(local)
    return normal, paint


def light(stage: Stage, p: Points, normal: Points, part: Int[Tensor, "rays"]) -> tuple[Scalars, Scalars]:
    """Share of the sun and of the sky's ambient light that the other solids leave to p, both in [0, 1].

    A solid covers the sun's disc (``SUN_WIDTH``, tangent of its angular radius) as a straight edge at distance `gap` would,
    with a smooth step for the disc's area, and the sky as the ball around the nearest point of its `core`: cos · (radius/distance)².
    """
    sun = column(stage.sun, p)
    sunny, open_sky = torch.ones_like(p[0]), torch.ones_like(p[0])
    for k, solid in enumerate(stage.solids):
        if not solid.casts:
            continue
        local, direction = solid.local(p), solid.local(sun, shift=False)
        inner, radius = solid.core
        to_core = local.clamp(-column(inner, p), column(inner, p)) - local
        ahead = dot(to_core, direction)
        x = (0.5 - solid.gap(local, direction) / (2 * SUN_WIDTH * ahead.clamp(min=1e-4))).clamp(0, 1)
        other = part != k
        sunny *= 1 - x * x * (3 - 2 * x) * ((ahead > 0) & other)
        square = dot(to_core, to_core).clamp(min=1e-9)
        cosine = dot(to_core, solid.local(normal, shift=False)).clamp(min=0) * square.rsqrt()
        open_sky *= 1 - cosine * (radius**2 / square).clamp(max=1) * other
    return sunny, open_sky


def radiance(stage: Stage, o: Points, d: Points, t: Scalars, part: Int[Tensor, "rays"], bounces: int = 1) -> tuple[Points, Points]:
    """Linear colours and unit normals at the hits ``t``, ``part`` of stage rays; mirrors are followed ``bounces`` times."""
    p = o + t * d
    normal, paint = surface(stage, p, part)
    sunny, open_sky = light(stage, p, normal, part)
    sun = column(stage.sun, p)
    ambient = torch.lerp(column(GROUND, p), column((0.52, 0.60, 0.74), p), 0.5 + 0.5 * normal[2]) * open_sky
    rgb = paint * (ambient + column(SUN_COLOR, p) * sunny * dot(normal, sun).clamp(min=0))
    gloss = torch.tensor([s.gloss for s in stage.solids]).to(p)[part]
    mirror = torch.tensor([s.mirror for s in stage.solids]).to(p)[part]
    rows = ((gloss > 0) | (mirror > 0)).nonzero()[:, 0]
    view, n, p = unit(d[:, rows]), normal[:, rows], p[:, rows]
    cosine = -dot(view, n)
    bounced = view + 2 * cosine * n
    reflected = sky(bounced)
    if bounces > 0 and rows.numel():
        t2, part2 = first_hit(stage, p, bounced)
        again = (part2 >= 0).nonzero()[:, 0]
        reflected[:, again] = radiance(stage, p[:, again], bounced[:, again], t2[again], part2[again], bounces - 1)[0]
    strength = mirror[rows]
    share = (strength + (1 - strength) * (1 - cosine).clamp(0, 1) ** 5) * (strength > 0)
    highlight = gloss[rows] * sunny[rows] * dot(bounced, sun).clamp(min=0) ** 60
    rgb[:, rows] = torch.lerp(rgb[:, rows], reflected, share) + column(SUN_COLOR, p) * highlight
    return rgb, normal


def _cast(stage: Stage, origins: Tensor, directions: Tensor) -> tuple[Points, Points, Scalars, Tensor, Tensor]:
    """The stage rays that hit anything, their t and solid, and which of the world rays they are."""
    frame = stage.frame.T.to(origins)
    o, d = frame @ origins.T, frame @ directions.T
    rows = ball(o, d, stage.reach)[0].isfinite().nonzero()[:, 0] if stage.reach < torch.inf else torch.arange(o.shape[1])
    t, part = first_hit(stage, o[:, rows], d[:, rows])
    hit = part >= 0
    rows = rows[hit]
    return o[:, rows], d[:, rows], t[hit], part[hit], rows


def trace(
    stage: Stage, origins: Float[Tensor, "rays 3"], directions: Float[Tensor, "rays 3"]
) -> tuple[Float[Tensor, "rays 3"], Float[Tensor, "rays"], Float[Tensor, "rays"], Float[Tensor, "rays 3"]]:
    """Colour in [0, 1] (display values), opacity (0 or 1), t and unit normal of world rays; all 0 where a ray meets nothing."""
    o, d, t, part, rows = _cast(stage, origins, directions)
    linear, normals = radiance(stage, o, d, t, part)
    rgb, normal, depth = torch.zeros_like(origins), torch.zeros_like(origins), torch.zeros_like(origins[:, 0])
    rgb[rows] = (1 - torch.exp(-EXPOSURE * linear)).T ** (1 / 2.2)
    normal[rows] = (stage.frame.to(o) @ normals).T
    depth[rows] = t
    return rgb, (depth > 0).to(depth), depth, normal


def geometry(
    stage: Stage, origins: Float[Tensor, "rays 3"], directions: Float[Tensor, "rays 3"]
) -> tuple[Float[Tensor, "rays"], Float[Tensor, "rays 3"]]:
    """The t and unit normals of `trace`, without the colours' cost."""
    o, d, t, part, rows = _cast(stage, origins, directions)
    depth, normal = torch.zeros_like(origins[:, 0]), torch.zeros_like(origins)
    depth[rows] = t
    normal[rows] = (stage.frame.to(o) @ surface(stage, o + t * d, part)[0]).T
    return depth, normal
