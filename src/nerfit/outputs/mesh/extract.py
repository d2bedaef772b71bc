"""Triangle meshes of a field: fused depth maps or a level of density, by marching cubes; coloured by the field."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nerfit.errors import ConfigError, RunError, require_min
from nerfit.methods.base import Method
from nerfit.outputs.extras import extra
from nerfit.outputs.grids import Grid, make_grid, near_surfaces, transformed
from nerfit.outputs.mesh.texture import Texture, make_texture
from nerfit.outputs.surfaces import Surfaces, see_surfaces, surface_colors
from nerfit.scenes.images import to_bytes
from nerfit.scenes.scene import Scene

_TRUNCATION = 4
"""Grid spacings in front of and behind a surface in which distances are fused."""
_PIECE = 1 << 17


@dataclass(kw_only=True)
class MeshConfig:
    """Options of a mesh."""

    by: Literal["depth", "density"] = "depth"
    """depth = fuse the depth maps of training views; density = take a level set of the density."""
    resolution: int = 256
    """Grid nodes along the longest side of the box."""
    box: tuple[float, float, float, float, float, float] | None = None
    """Two corners of the part to keep, in the mesh's coordinates; none = the part that the views show, or -1 to 1 in unbounded
    scenes."""
    coordinates: Literal["original", "normalised"] = "original"
    """original = coordinates of the scene's files; normalised = those that nerfit trains in."""
    views: int = 100
    """Largest number of training views whose depth is rendered."""
    pixels: int | None = None
    """Longest side of those views' pictures; none = twice the resolution."""
    level: float | None = None
    """Density that counts as the surface (--by density), per scene unit; none = one that halves the light over two grid spacings."""
    largest: bool = False
    """Keep the largest connected piece only."""
    close_holes: bool = False
    """Close every hole by a fan of triangles, also where no view shows a surface."""
    faces: int | None = None
    """Simplify to about this many triangles (needs the extra `mesh`)."""
    texture: int | None = None
    """Side in pixels of a texture for .glb and .obj files (needs the extra `mesh`); none = a colour at each vertex."""

    def check(self) -> None:
        """Raise ConfigError for numbers without sense and keys without effect."""
        require_min("--", self, views=1, pixels=8, faces=4, texture=16)
        if self.faces is not None:
            extra("fast_simplification", "--faces")
        if self.texture is not None:
            extra("xatlas", "--texture")
        if self.level is not None and self.by == "depth":
            raise ConfigError("--level has no effect here: depths are fused (--by density takes a level).")
        if self.level is not None and not self.level > 0:
            raise ConfigError(f"--level must be above 0, not {self.level:g}.")


@dataclass
class Mesh:
    """Triangles, counter-clockwise from outside, with a normal and a colour at each vertex."""

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    normals: Float[Tensor, "v 3"]
    colors: UInt8[Tensor, "v 3"]
    texture: Texture | None = None


def make_mesh(method: Method, scene: Scene, config: MeshConfig, chunk: int, report: Any = lambda *_: None) -> Mesh:
    """A mesh of a trained field; ``report(done, of)`` is called after each view that is looked from."""
    config.check()
    surfaces = see_surfaces(method, scene, config.views, config.pixels or 2 * config.resolution, chunk, report)
    grid = make_grid(scene, surfaces, config.resolution, config.box, config.coordinates == "original")
    if config.by == "depth":
        vertices, faces = contour(*fuse(surfaces, grid), grid)
    else:
        vertices, faces = contour(*_density_level(method, scene, grid, config.level), grid)
    if config.largest:
        vertices, faces = largest_piece(vertices, faces)
    if config.close_holes:
        vertices, faces = close_holes(vertices, faces)
    if config.faces is not None and len(faces) > config.faces:
        vertices, faces = _simplify(vertices, faces, config.faces)
    normals = vertex_normals(vertices, faces)

    def paint(points: Tensor, normals: Tensor) -> UInt8[Tensor, "n 3"]:
        outwards = torch.nn.functional.normalize(normals @ grid.to_scene[:3, :3].T, dim=-1).float()
        positions = transformed(grid.to_scene, points).float()
        colors = surface_colors(method, scene, positions, outwards, 2 * grid.scene_spacing, chunk)
        return torch.from_numpy(to_bytes(colors.numpy()))

    texture = None if config.texture is None else make_texture(vertices, faces, normals, config.texture, paint)
    return Mesh(vertices, faces, normals, paint(vertices, normals), texture)


def fuse(surfaces: Surfaces, grid: Grid) -> tuple[Float[Tensor, "nx ny nz"], Tensor]:
    """Truncated signed distances to the surface (Curless and Levoy 1996), in truncations, positive outside; and which nodes have one.

    A view says of a node how far the surface it sees lies behind it, at most 1; what lies deeper than 1 within matter it
    doesn't see. Where it sees none the node is free. The mean over views is taken only near points that views show.
    """
    nodes = near_surfaces(surfaces, grid, _TRUNCATION)
    distance, known = torch.ones(len(grid)), torch.zeros(len(grid), dtype=torch.bool)
    truncation = _TRUNCATION * grid.scene_spacing
    for piece in nodes.split(_PIECE):
        points = grid.scene_points(grid.index(piece))
        total, count = torch.zeros(len(piece)), torch.zeros(len(piece))
        for view in range(len(surfaces)):
            behind, visible = surfaces.behind(view, points)
            counts = visible & (behind > -truncation)
            total += torch.where(counts, (behind / truncation).clamp(max=1), 0)
            count += counts
        distance[piece] = total / count.clamp(min=1)
        known[piece] = count > 0
    return distance.reshape(grid.shape), known.reshape(grid.shape)


@torch.no_grad()
def _density_level(method: Method, scene: Scene, grid: Grid, level: float | None) -> tuple[Tensor, Tensor]:
    """The level less the density, in levels, clipped to ±1."""
    if scene.ndc:
        raise ConfigError("density in normalised device coordinates has no one level: use --by depth.")
    wanted: float = level or np.log(2) / (2 * grid.scene_spacing)
    values = []
    for piece in torch.arange(len(grid)).split(_PIECE):
        density = method.density(grid.scene_points(grid.index(piece)).to(method.device)).float().cpu()
        values.append((1 - density / wanted).clamp(-1, 1))
    value = torch.cat(values).reshape(grid.shape)
    return value, torch.ones(grid.shape, dtype=torch.bool)


def contour(value: Float[Tensor, "nx ny nz"], known: Tensor, grid: Grid) -> tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"]]:
    """The zero level as triangles that face the positive side, in cells whose eight corners are known; RunError if there is none."""
    from skimage.measure import marching_cubes

    whole = torch.nn.functional.max_pool3d((~known)[None, None].float(), 2, 1)[0, 0] == 0
    mask = torch.zeros_like(known)
    mask[1:, 1:, 1:] = whole  # a cell is asked for by its last corner
    inside = (value < 0) & known
    if not inside.any() or not ((value >= 0) & mask).any():
        raise RunError("there is no surface in the box: train longer, or choose another --box.")
    try:
        found, faces, *_ = marching_cubes(value.numpy(), 0.0, gradient_direction="descent", allow_degenerate=False, mask=mask.numpy())
    except (ValueError, RuntimeError) as error:
        raise RunError("there is no surface in the box: train longer, or choose another --box.") from error
    return grid.positions(torch.from_numpy(found.astype(np.float64))), torch.from_numpy(faces.astype(np.int64))


def largest_piece(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> tuple[Tensor, Tensor]:
    """The connected piece with most triangles."""
    labels = pieces(faces, len(vertices))
    return _used(vertices, faces[labels == labels.bincount().argmax()])


def pieces(faces: Int[Tensor, "f 3"], vertices: int) -> Int[Tensor, "f"]:
    """The number of each triangle's connected piece."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    f = faces.numpy()
    edges = np.concatenate([f[:, :2], f[:, 1:]])
    graph = coo_array((np.ones(len(edges), bool), edges.T), (vertices, vertices))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()[faces[:, 0]]


def _used(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Without the vertices that no triangle has."""
    kept, numbered = faces.unique(return_inverse=True)
    return vertices[kept], numbered


def close_holes(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> tuple[Tensor, Tensor]:
    """Every hole closed by a fan of triangles around the mean of its rim, holes that share a point by one together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    start, end = faces.flatten(), faces[:, [1, 2, 0]].flatten()
    rim = ~torch.isin(start * len(vertices) + end, end * len(vertices) + start)  # edges with a triangle on one side only
    if not rim.any():
        return vertices, faces
    start, end = start[rim], end[rim]
    points, numbered = torch.stack([start, end]).unique(return_inverse=True)
    graph = coo_array((np.ones(len(start), bool), numbered.numpy()), (len(points), len(points)))
    holes, label = connected_components(graph, directed=False)
    of = torch.from_numpy(label).long()
    middles = torch.zeros(holes, 3, dtype=vertices.dtype).index_add_(0, of, vertices[points]) / of.bincount(minlength=holes)[:, None]
    fans = torch.stack([end, start, len(vertices) + of[numbered[0]]], -1)
    return torch.cat([vertices, middles]), torch.cat([faces, fans])


def _simplify(vertices: Tensor, faces: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """About ``count`` triangles, by edge collapse in order of the quadric error (Garland and Heckbert 1997)."""
    fast_simplification = extra("fast_simplification", "--faces")
    centre = vertices.mean(0)  # its arithmetic is float32
    found, kept = fast_simplification.simplify((vertices - centre).float().numpy(), faces.int().numpy(), target_count=count)
    return _used(torch.from_numpy(found).double() + centre, torch.from_numpy(kept).long())


def vertex_normals(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "v 3"]:
    """Unit normals: those of the triangles around, weighted by area."""
    a, b, c = vertices[faces].unbind(1)
    across = torch.linalg.cross(b - a, c - a)
    return torch.nn.functional.normalize(torch.zeros_like(vertices).index_add_(0, faces.flatten(), across.repeat_interleave(3, 0)), dim=-1)
