"""The procedural scene against an independent twin (marching signed distances in plain Python) and against itself from other views."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nerfit.errors import SceneError
from nerfit.scenes.formats import procedural, raytrace
from nerfit.scenes.formats.procedural import Config, detect, load, stage, trace
from nerfit.scenes.formats.raytrace import Box, Capsule, Cylinder
from nerfit.scenes.scene import Scene

BOTH = pytest.mark.parametrize("kind", ("object", "forward-facing"))
ALL = pytest.mark.parametrize("kind", procedural.KINDS)


def small(kind: str, **choices: Any) -> Scene:
    few: dict[str, Any] = {"size": 24, "views": 9, "test_views": 3, "val_views": 2}
    return load(f"procedural:{kind}", Config(**(few | choices)))


def solid_distance(solid: raytrace.Solid, p: list[float]) -> float:
    """Signed distance from a stage point, in scalar arithmetic."""
    q = [a - b for a, b in zip(p, solid.center, strict=True)]
    turn = solid.turn.tolist()
    x, y, z = (sum(turn[i][j] * q[i] for i in range(3)) for j in range(3))
    if isinstance(solid, Capsule):
        return math.hypot(x, y, z - max(-solid.half, min(solid.half, z))) - solid.radius
    if isinstance(solid, Cylinder):
        outside = [math.hypot(x, y) - solid.radius, abs(z) - solid.half]
    else:
        assert isinstance(solid, Box)
        outside = [abs(a) - h for a, h in zip((x, y, z), solid.half, strict=True)]
    return math.hypot(*(max(a, 0) for a in outside)) + min(max(outside), 0)


def distance(kind: str, p: list[float]) -> float:
    """Signed distance from a world point to the scene."""
    q = [p[0], -p[2], p[1]] if kind == "forward-facing" else p
    return min(solid_distance(solid, q) for solid in stage(kind).solids)


def march(kind: str, o: list[float], d: list[float]) -> float:
    """The t at which the ray first touches the scene, 0 for none: steps as long as the distance allows."""
    t, length = 0.0, math.hypot(*d)
    while t * length < 20:
        step = distance(kind, [a + t * b for a, b in zip(o, d, strict=True)])
        if step < 1e-10:
            return t
        t += step / length
    return 0.0


unit = st.floats(-1, 1)


@ALL
@settings(max_examples=60, deadline=None)
@given(unit, unit, unit, unit, st.floats(0.3, 3))
def test_depth_and_normal_agree_with_marching(kind, a, b, u, v, speed):
    if kind == "object":
        eye = [4 * math.cos(3 * a) * 0.8, 4 * math.sin(3 * a) * 0.8, 2.4 + b]
        aim = [1.2 * u, 1.2 * v, 0.0]
    elif kind == "corridor":
        eye = [0.983 * a, -0.42, 0.1 * b]  # not where rays graze the solids
        aim = [0.983 * a + 0.4 * u, 0.1, 0.1 * v]
    else:
        eye, aim = [0.5 * a, 0.3 * b, 0.0], [1.3 * u, 1.1 * v, -2.7]
    d = [speed * (q - p) for p, q in zip(eye, aim, strict=True)]
    rgb, alpha, depth, normal = trace(kind, torch.tensor([eye], dtype=torch.float64), torch.tensor([d], dtype=torch.float64))
    expected = march(kind, eye, d)
    assert float(depth) == pytest.approx(expected, abs=1e-7)
    assert float(alpha) == (expected > 0)
    if expected == 0:
        assert not rgb.any() and not normal.any()
        return
    p = [o + float(depth) * x for o, x in zip(eye, d, strict=True)]
    h = 1e-5
    nudged = [[q + h * (i == j) for j, q in enumerate(p)] for i in range(3)]
    slope = [(distance(kind, q) - distance(kind, p)) / h for q in nudged]
    if math.hypot(*slope) == pytest.approx(1, abs=1e-3):  # not on an edge
        assert normal[0].tolist() == pytest.approx(slope, abs=1e-3)


@BOTH
def test_views_see_the_same_surfaces_and_only_gloss_changes_its_colour(kind):
    scene = small(kind, size=40)
    a, b = (0, 4) if kind == "object" else (0, 8)
    rows = slice(int(scene.starts[a]), int(scene.starts[a]) + 1600)
    x, y = torch.arange(1600) % 40, torch.arange(1600) // 40
    view = torch.full_like(x, a)
    o, d = scene.cameras.centers[view].double(), scene.cameras.directions(view, x.float(), y.float()).double()
    rgb, alpha, depth, normal = trace(kind, o, d)
    assert scene.depths is not None and scene.normals is not None
    assert torch.equal(scene.depths[rows], depth.float()) and torch.equal(scene.normals[rows], normal.float())

    hit = alpha > 0
    assert torch.allclose(normal[hit].norm(dim=-1), torch.ones(()).double(), atol=1e-12)
    assert (torch.linalg.vecdot(normal, d)[hit] <= 0).all()

    c2w = scene.cameras.c2w[b].double()
    points = o + depth[:, None] * d
    expected = -(points - c2w[:, 3]) @ c2w[:, 2]
    toward = (points - c2w[:, 3]) / expected[:, None]
    rgb_b, _, depth_b, normal_b = trace(kind, c2w[:, 3].expand_as(points), toward)
    facing = torch.linalg.vecdot(normal, toward)
    assert (depth_b <= expected + 1e-9)[hit & (facing.abs() > 0.05)].all()
    assert (depth_b < expected - 1e-3)[hit & (facing > 0.05)].all()

    same = hit & ((depth_b - expected).abs() < 1e-9)
    assert same.sum() > 0.35 * hit.sum() > 60
    assert torch.allclose(normal[same], normal_b[same], atol=1e-6)
    turned = points if kind == "object" else torch.stack([points[:, 0], -points[:, 2], points[:, 1]], -1)
    solids = stage(kind).solids
    part = torch.tensor([min(range(len(solids)), key=lambda k: abs(solid_distance(solids[k], p))) for p in turned.tolist()])
    dull = torch.tensor([s.gloss == 0 and s.mirror == 0 for s in solids])[part]
    mirrors = torch.tensor([s.mirror > 0 for s in solids])[part]
    change = (rgb - rgb_b).abs().amax(-1)
    assert change[same & dull].quantile(0.99) < 1e-5  # a point on a texture's edge may fall to either side
    assert (same & mirrors).sum() > 5 and change[same & mirrors].mean() > 0.02


@BOTH
def test_shadows_follow_rays_to_the_sun_and_darken(kind):
    scene, made = small(kind), stage(kind)
    view, pixel = torch.arange(len(scene.cameras)).repeat_interleave(576), torch.arange(576).repeat(len(scene.cameras))
    o = scene.cameras.centers[view].double()
    d = scene.cameras.directions(view, (pixel % 24).float(), (pixel // 24).float()).double()
    frame = made.frame
    o, d = frame.T @ o.T, frame.T @ d.T
    t, part = raytrace.first_hit(made, o, d)
    o, d, t, part = o[:, part >= 0], d[:, part >= 0], t[part >= 0], part[part >= 0]
    p = o + t * d
    normal, _ = raytrace.surface(made, p, part)
    sunny, open_sky = raytrace.light(made, p, normal, part)
    assert sunny.min() >= 0 and sunny.max() <= 1 and open_sky.min() >= 0 and open_sky.max() <= 1
    sun = torch.tensor(made.sun, dtype=torch.float64)
    side = torch.nn.functional.normalize(torch.linalg.cross(sun, torch.tensor([0.0, 0, 1]).double()), dim=0)
    other = torch.linalg.cross(sun, side)
    free = torch.zeros_like(sunny)
    for i in range(24):  # a sunflower of directions over the sun's disc
        r, a = raytrace.SUN_WIDTH * math.sqrt((i + 0.5) / 24), 2.4 * i
        to_sun = (sun + r * (math.cos(a) * side + math.sin(a) * other))[:, None].expand_as(p)
        _, blocker = raytrace.first_hit(made, p, to_sun)
        free += (blocker < 0).double()
    free, lit = free / 24, normal.T @ sun > 0.2
    assert ((free == 0) & lit).sum() > 20 and ((free == 1) & lit).sum() > 200
    assert (sunny - free).abs()[lit].mean() < 0.03
    assert sunny[lit & (free == 0)].mean() < 0.1 and sunny[lit & (free == 1)].mean() > 0.97

    white = raytrace.Stage(made.solids, made.sun)
    linear, _ = raytrace.radiance(white, o, d, t, part)
    ground = lit & (part == 0)
    assert linear[:, ground & (sunny < 0.05)].mean() < 0.6 * linear[:, ground & (sunny > 0.95)].mean()


@BOTH
def test_a_shadow_has_the_outline_of_its_solid(kind):
    torch.manual_seed(0)
    made = stage(kind)
    sun = torch.tensor(made.sun, dtype=torch.float64)[:, None]
    for solid in made.solids:
        if solid.casts:
            near = torch.tensor(solid.center, dtype=torch.float64)[:, None] + torch.rand(3, 2000).double() * 2 - 1
            hit = solid.enter(solid.local(near - 50 * sun), solid.local(sun.expand_as(near), shift=False)).isfinite()
            gap = solid.gap(solid.local(near), solid.local(sun, shift=False))
            assert torch.equal(hit, gap < 0) and hit.any() and not hit.all()


def test_a_lone_mirror_ball_shows_the_sky_and_never_shades_itself():
    torch.manual_seed(0)
    made = raytrace.Stage((Capsule(center=(0.1, 0.2, 0.3), radius=0.5, paint=lambda p: p, mirror=1.0),), sun=(0.0, 0.6, 0.8))
    o = torch.tensor([[0.1, 3.0, 0.3]], dtype=torch.float64).T.expand(3, 200)
    d = torch.randn(3, 200).double() * 0.08 - torch.tensor([[0.0, 1, 0]], dtype=torch.float64).T
    t, part = raytrace.first_hit(made, o, d)
    o, d, t, part = o[:, part == 0], d[:, part == 0], t[part == 0], part[part == 0]
    linear, normal = raytrace.radiance(made, o, d, t, part)
    view = d / d.norm(dim=0)
    mirrored = torch.stack([(torch.eye(3).double() - 2 * torch.outer(n, n)) @ v for n, v in zip(normal.T, view.T, strict=True)], -1)
    assert t.numel() > 50 and torch.allclose(linear, raytrace.sky(mirrored), atol=1e-9)
    assert all((share == 1).all() for share in raytrace.light(made, o + t * d, normal, part))


@BOTH
@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("offset", [0.5, 0.0])
def test_a_pixel_is_the_mean_of_its_rays(kind, alpha, offset):
    scene = small(kind, size=9, views=2, alpha=alpha, samples=2, background="black", pixel_offset=offset)
    assert scene.pixels is not None and scene.pixels.shape[1] == (4 if alpha else 3)
    for x, y in [(0, 0), (4, 4), (2, 5), (6, 3), (3, 7), (5, 6)]:
        rgb_sum, hits = torch.zeros(3), 0
        for dy in (-0.25, 0.25):
            for dx in (-0.25, 0.25):
                u, v = (x + dx + offset - 4.5) / scene.cameras.fx[0], (y + dy + offset - 4.5) / scene.cameras.fy[0]
                d = scene.cameras.c2w[0, :, :3] @ torch.tensor([u, -v, -1.0])
                rgb, a, _, _ = trace(kind, scene.cameras.centers[:1], d[None], wall=not alpha)
                rgb_sum, hits = rgb_sum + rgb[0] * a, hits + int(a)
        pixel = scene.image(0, background=None)[y, x] * 255
        expected = rgb_sum / max(hits, 1) if alpha else rgb_sum / 4
        assert torch.allclose(pixel[:3], expected * 255, atol=0.51)
        if alpha:
            assert float(pixel[3]) == round(255 * hits / 4)


def test_object_has_clear_corners_a_solid_middle_and_fits_its_bounds():
    scene = small("object", size=32)
    assert (scene.name, scene.format, scene.bounds, scene.ndc, scene.default_path) == (
        "procedural-object", "procedural", "object", False, "circle",
    )  # fmt: skip
    assert (scene.near, scene.far, scene.background) == (2.0, 6.0, "auto")
    assert scene.splits == {"train": list(range(9)), "val": [9, 10], "test": [11, 12, 13]}
    assert [scene.view_names[i] for i in (0, 8, 9, 13)] == ["train_000", "train_008", "val_000", "test_002"]
    assert torch.allclose(scene.cameras.centers.norm(dim=-1), torch.tensor(4.0)) and (scene.cameras.centers[:, 2] > 0).all()
    assert torch.cdist(scene.cameras.centers, scene.cameras.centers).fill_diagonal_(9).min() > 0.1
    assert 0.5 * 32 / math.tan(0.5 * 0.6911) == pytest.approx(float(scene.cameras.fx[0]))
    for view in range(len(scene.cameras)):
        alpha = scene.image(view, background=None)[..., 3]
        border = torch.cat([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert not border.any() and (alpha == 1).float().mean() > 0.1
    assert scene.depths is not None and scene.depth_range is not None
    seen = scene.depths[scene.depths > 0]
    assert scene.depth_range == (float(seen.min()), float(seen.max())) and 2 < scene.depth_range[0] < 4 < scene.depth_range[1] < 6
    for solid in stage("object").solids:
        grid = torch.cartesian_prod(*[torch.linspace(-1.5, 1.5, 21)] * 3).tolist()
        outside = [p for p in grid if max(map(abs, p)) > 1.2 or math.hypot(*p) > stage("object").reach]
        assert all(solid_distance(solid, p) > 0 for p in outside)


def test_forward_facing_scene_looks_along_minus_z_beyond_the_near_plane():
    scene = small("forward-facing", views=20)
    assert (scene.name, scene.bounds, scene.ndc, scene.default_path) == ("procedural-forward", "forward-facing", True, "spiral")
    assert (scene.near, scene.far) == (0.0, 1.0)
    assert scene.splits["test"] == scene.splits["val"] == [0, 8, 16]
    assert scene.splits["train"] == [i for i in range(20) if i % 8]
    rotation = scene.cameras.c2w[:, :, :3]
    assert (rotation[:, 2, 2] > 0.995).all() and (rotation[:, 1, 1] > 0.995).all()
    assert torch.allclose(rotation.mT @ rotation, torch.eye(3).expand(20, 3, 3), atol=1e-6)
    assert scene.cameras.centers.abs().max() < 0.5 and scene.cameras.centers.std(0)[:2].min() > 0.1
    view, pixel = torch.arange(20).repeat_interleave(576), torch.arange(576).repeat(20)
    d = scene.cameras.directions(view, (pixel % 24).float(), (pixel // 24).float())
    assert scene.depths is not None and scene.depth_range is not None and (scene.depths > 0).all()
    points = scene.cameras.centers[view] + scene.depths[:, None] * d
    assert points[:, 2].max() < -1.1
    assert scene.depth_range == (float(scene.depths.min()), float(scene.depths.max()))
    assert scene.depth_range[1] > 2 * scene.depth_range[0]
    rays = scene.rays(view, (pixel % 24).float(), (pixel // 24).float())
    assert rays.origins.isfinite().all() and rays.directions.isfinite().all()
    warped = 1 + 2 / points[:, 2]
    assert torch.allclose(rays.origins[:, 2], torch.tensor(-1.0), atol=1e-5) and (warped > -1).all() and (warped < 1).all()


def test_the_corridor_is_long_and_its_cameras_pass_along_it():
    scene = small("corridor", views=40, size=16)
    assert (scene.name, scene.bounds, scene.ndc, scene.default_path) == ("procedural-corridor", "unbounded", False, "interpolate")
    x = scene.cameras.centers[:, 0]
    train, test = x[scene.splits["train"]], x[scene.splits["test"]]
    assert (train.diff() > 0).all() and train[0] < -0.9 and train[-1] > 0.9 and scene.cameras.centers[:, 1:].abs().max() < 0.5
    assert test.tolist() == pytest.approx([-2 / 3, 0, 2 / 3], abs=1e-6)
    assert scene.depth_range is not None and 0.05 < scene.depth_range[0] < 0.4 < scene.depth_range[1] < 2
    assert scene.depths is not None and scene.pixels is not None and scene.pixels.shape[1] == 3
    assert (scene.depths > 0).float().mean() > 0.5
    seen = [(scene.image(v) - scene.image(w)).abs().mean() for v, w in ((41, 42), (0, 39))]
    assert min(seen) > 0.02  # another part of it looks different


def test_forward_facing_alpha_takes_the_wall_away():
    scene = small("forward-facing", alpha=True)
    image = scene.image(4, background=None)
    assert image.shape[-1] == 4 and (image[0, :, 3] == 0).all() and (image[-1, :, 3] == 1).all()
    assert scene.depth_range is not None and scene.depth_range[1] < 6


@pytest.mark.parametrize(("background", "grey"), [("white", 255), ("black", 0), ("random", 255)])
def test_without_alpha_the_object_lies_over_the_background(background, grey):
    scene = small("object", alpha=False, background=background)
    assert scene.pixels is not None and scene.pixels.shape[1] == 3 and (scene.pixels[0] == grey).all()
    assert scene.background == background
    clear = small("object", background=background)
    assert torch.allclose(scene.image(0), clear.image(0, grey / 255), atol=0.01)


def test_same_seed_same_scene_other_seed_other_scene():
    first, again, other = small("object"), small("object"), small("object", scene_seed=1)
    for name in ("pixels", "depths", "normals"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert torch.equal(first.cameras.c2w, again.cameras.c2w)
    assert not torch.allclose(first.cameras.c2w[:9], other.cameras.c2w[:9], atol=0.1)
    d = torch.cartesian_prod(torch.linspace(-1, 1, 9), torch.tensor([4.0]), torch.linspace(-2.5, -1.5, 9))
    (rgb, _, depth, _), (turned, _, same_depth, _) = (trace("object", torch.tensor([[0.0, -4, 2]]).expand_as(d), d, seed=s) for s in (0, 1))
    assert torch.equal(depth, same_depth) and (rgb - turned).abs().max() > 0.3


def test_choices_reach_the_scene():
    scene = small("object", train_views=(1, 7, 2), near=1.5, far=7.0, test_views=0, pixel_offset=0.0)
    assert scene.splits == {"train": [1, 3, 5], "val": [9, 10], "test": []}
    assert (scene.near, scene.far, scene.cameras.pixel_offset) == (1.5, 7.0, 0.0)
    assert small("forward-facing", train_views=(0, 3, 1)).splits["train"] == [1, 2, 3]
    defaults = [load(source, Config(size=2, samples=1)) for source in ("procedural", "procedural:forward-facing")]
    assert [len(s.cameras) for s in defaults] == [72, 20]


def test_detect_and_errors():
    assert all(detect(s) for s in ("procedural", "procedural:object", "procedural:forward-facing"))
    assert not detect("procedural_photos") and not detect("scenes/procedural")
    with pytest.raises(SceneError, match="procedural:foo is not a procedural scene; write procedural:object or procedural:forward"):
        load("procedural:foo", Config())
    with pytest.raises(SceneError, match="did you mean 'object'"):
        load("procedural:objet", Config())
    for choice, value in (("size", 0), ("views", 0), ("samples", 0), ("test_views", -1), ("val_views", -1)):
        with pytest.raises(SceneError, match=f"{choice} must be at least .*, not {value}"):
            small("object", **{choice: value})
    with pytest.raises(SceneError, match="views must be at least 2"):
        load("procedural:forward-facing", Config(views=1))
