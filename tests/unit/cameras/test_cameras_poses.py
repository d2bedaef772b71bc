"""Axes, rotations and sets of poses, against slow float64 twins."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nerfit.cameras import Cameras
from nerfit.cameras.axes import convert_axes
from nerfit.cameras.cameras import focal_from_fov
from nerfit.cameras.poses import (
    align,
    average_pose,
    look_at,
    nearest_point_to_axes,
    rays_meet,
    recentre,
    scale_of,
    spherify,
    to_4x4,
    transform_poses,
    view_frame,
    world_up,
)
from nerfit.cameras.rotations import (
    axis_angle_to_matrix,
    checked_rotations,
    matrix_to_axis_angle,
    matrix_to_quaternion,
    project_to_so3,
    quaternion_to_matrix,
    slerp,
)
from nerfit.errors import ConfigError, SceneError

relaxed = settings(deadline=None, max_examples=50)
seeds = st.integers(0, 2**32 - 1)
number = st.floats(-3, 3, allow_subnormal=False)
vectors = st.tuples(number, number, number).map(lambda v: torch.tensor(v, dtype=torch.float64))


def close(value, reference, tolerance=1e-5):
    value, reference = np.asarray(value), np.asarray(reference)
    assert value.shape == reference.shape
    assert np.abs(value - reference).max() <= tolerance * max(np.abs(reference).max(), 1e-12)


def random_rotations(rng, n, angle=math.pi):
    return axis_angle_to_matrix(torch.from_numpy(rng.normal(size=(n, 3))) * angle / 2)


def random_poses(seed, n=7, angle=math.pi):
    rng = np.random.default_rng(seed)
    return torch.cat([random_rotations(rng, n, angle), torch.from_numpy(rng.normal(size=(n, 3, 1)))], -1)


def inward_poses(seed, n=9, radius=3.0, centre=(0.5, -1.0, 2.0)):
    """Level cameras (world z up) about a centre, all looking at it."""
    rng = np.random.default_rng(seed)
    azimuth, elevation = rng.uniform(0, 2 * math.pi, n), rng.uniform(0.2, 1.0, n)
    out = np.stack([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)], -1)
    centre = torch.tensor(centre, dtype=torch.float64)
    return look_at(centre + radius * torch.from_numpy(out), centre, torch.tensor([0.0, 0.0, 1.0]))


def unit(v):
    return v / math.sqrt(sum(x * x for x in v))


# axes


@pytest.mark.parametrize(("source", "target"), list(itertools.product(["opengl", "opencv", "llff"], repeat=2)))
@pytest.mark.parametrize("shape", [(3, 3), (3, 4), (4, 4)])
def test_axes_convert_there_and_back_exactly(source, target, shape):
    c2w = torch.from_numpy(np.random.default_rng(0).normal(size=(5, *shape))).float()
    there = convert_axes(c2w, source, target)
    assert torch.equal(convert_axes(there, target, source), c2w)
    assert torch.equal(there[..., 3:], c2w[..., 3:])
    assert (source == target) == torch.equal(there, c2w)


def test_axes_mean_what_their_names_say():
    right, up, back = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 3)))
    ours = torch.stack([right, up, back], -1)
    assert torch.equal(convert_axes(torch.stack([right, -up, -back], -1), "opencv"), ours)
    assert torch.equal(convert_axes(torch.stack([-up, right, back], -1), "llff"), ours)
    assert torch.equal(convert_axes(ours, "opengl", "llff"), torch.stack([-up, right, back], -1))


def test_unknown_axes_are_refused_with_a_hint():
    with pytest.raises(ConfigError, match="did you mean 'opencv'"):
        convert_axes(torch.eye(4), "openvc")  # pyright: ignore[reportArgumentType]


def test_a_right_angle_across_800_pixels_has_focal_length_400():
    assert focal_from_fov(math.pi / 2, 800) == pytest.approx(400, rel=1e-12)


# rotations


@relaxed
@given(vectors)
def test_axis_angle_is_the_exponential_series(v):
    x, y, z = v.tolist()
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    term = series = torch.eye(3, dtype=torch.float64)
    for n in range(1, 50):
        term = term @ skew / n
        series = series + term
    close(axis_angle_to_matrix(v), series, 1e-12)


@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-5, 9.9e-5, 1.01e-4, 1e-2])
def test_axis_angle_has_exact_gradients_near_zero(length):
    v = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64) * length
    jacobian = torch.autograd.functional.jacobian(axis_angle_to_matrix, v)
    h = 1e-6
    numeric = [(axis_angle_to_matrix(v + h * e) - axis_angle_to_matrix(v - h * e)) / (2 * h) for e in torch.eye(3, dtype=torch.float64)]
    close(jacobian, torch.stack(numeric, -1), 1e-8)


@relaxed
@given(vectors)
def test_axis_angle_and_quaternions_survive_a_round_trip(v):
    matrix = axis_angle_to_matrix(v)
    q = matrix_to_quaternion(matrix)
    assert q[0] >= 0
    assert float(q.norm()) == pytest.approx(1, abs=1e-12)
    close(quaternion_to_matrix(3 * q), matrix, 1e-12)
    w = matrix_to_axis_angle(matrix)
    assert float(w.norm()) <= math.pi + 1e-9
    close(axis_angle_to_matrix(w), matrix, 1e-12)
    if v.norm() < 3:
        close(w, v, 1e-9 / max(float(v.norm()), 1e-3))


@pytest.mark.parametrize("axis", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 2, 2]])
def test_half_turns_are_recovered(axis):
    v = torch.tensor(axis, dtype=torch.float64)
    v = v / v.norm() * math.pi
    close(axis_angle_to_matrix(matrix_to_axis_angle(axis_angle_to_matrix(v))), axis_angle_to_matrix(v), 1e-9)


def test_quaternion_sign_and_order():
    quarter_about_z = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    close(matrix_to_quaternion(quarter_about_z), [math.sqrt(0.5), 0, 0, math.sqrt(0.5)], 1e-6)


@relaxed
@given(seeds, st.floats(0, 1))
def test_slerp_turns_at_constant_speed_the_short_way(seed, t):
    a, b = torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 4))), dim=-1)
    middle = slerp(a, b, t)
    ra, rm, rb = (quaternion_to_matrix(q) for q in (a, middle, b))
    whole = matrix_to_axis_angle(ra.T @ rb)
    close(rm, ra @ axis_angle_to_matrix(t * whole), 1e-6)
    close(quaternion_to_matrix(slerp(a, -b, t)), rm, 1e-9)


def test_slerp_between_equal_quaternions_is_that_quaternion():
    q = torch.tensor([[0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    close(slerp(q, q, torch.tensor([0.3])), q, 1e-12)


@relaxed
@given(seeds)
def test_projection_gives_the_nearest_rotation(seed):
    rng = np.random.default_rng(seed)
    matrix = torch.from_numpy(rng.normal(size=(3, 3)))
    rotation, deviation = project_to_so3(matrix)
    close(rotation.T @ rotation, torch.eye(3, dtype=torch.float64), 1e-12)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1)
    assert float(deviation) == pytest.approx(float((rotation - matrix).abs().max()))
    others = torch.cat([random_rotations(rng, 50), rotation @ random_rotations(rng, 50, 0.05)])
    assert (rotation - matrix).norm() <= (others - matrix).norm(dim=(-2, -1)).min() + 1e-12


def test_rotations_pass_the_check_in_silence_and_unchanged():
    c2w = random_poses(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(checked_rotations(c2w, "a file"), c2w, 1e-12)
        assert checked_rotations(to_4x4(c2w).float(), "a file").dtype == torch.float32


def test_sheared_rotations_are_projected_with_one_warning_that_names_the_worst():
    c2w = random_poses(1)
    sheared = c2w.clone()
    sheared[2, 0, 0] += 0.01
    sheared[5, 1, 1] += 0.2
    with pytest.warns(UserWarning, match=r"poses.json: 2 of 7 .* f.png \(view 5\)") as caught:
        fixed = checked_rotations(sheared, "poses.json", [f"{c}.png" for c in "abcdefg"])
    assert len(caught) == 1
    close(fixed[:, :, :3].mT @ fixed[:, :, :3], torch.eye(3, dtype=torch.float64).expand(7, 3, 3), 1e-9)
    assert torch.equal(fixed[:, :, 3], sheared[:, :, 3])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda p: p[3].fill_(math.nan), "not finite"),
        (lambda p: p[3, :, 3].fill_(math.inf), "not finite"),
        (lambda p: p[3, :3, :3].zero_(), "zero or flat"),
        (lambda p: p[3, :3, 1].zero_(), "zero or flat"),
        (lambda p: p[3, :3, 1].neg_(), "mirrors"),
        (lambda p: p[3].copy_(p[3].T.clone()), "transposed"),
    ],
)
def test_what_is_no_pose_is_refused_by_name(change, why):
    c2w = to_4x4(random_poses(2))
    change(c2w)
    with pytest.raises(SceneError, match=f"views.json: the pose of view 3 .*{why}"):
        checked_rotations(c2w, "views.json")


# poses


def twin_frame(back, up):
    z = unit(back)
    x = unit(np.cross(up, z))
    return np.stack([x, np.cross(z, x), z], 1)


@relaxed
@given(seeds)
def test_average_pose_and_recentring(seed):
    c2w = random_poses(seed, angle=1.0)
    p = c2w.numpy()
    position = p[:, :, 3].sum(0) / 7
    rotation = twin_frame(sum(p[i, :, 2] for i in range(7)), sum(p[i, :, 1] for i in range(7)))
    close(average_pose(c2w), np.concatenate([rotation, position[:, None]], 1), 1e-9)
    moved, transform = recentre(c2w)
    for i in range(7):
        close(moved[i, :, :3], rotation.T @ p[i, :, :3], 1e-9)
        close(moved[i, :, 3], rotation.T @ (p[i, :, 3] - position), 1e-9)
    close(to_4x4(moved), transform @ to_4x4(c2w), 1e-12)
    close(average_pose(moved), torch.eye(4)[:3], 1e-9)


@relaxed
@given(seeds)
def test_point_nearest_to_axes_solves_the_normal_equations(seed):
    c2w = random_poses(seed)
    a, b = np.zeros((3, 3)), np.zeros(3)
    for pose in c2w.numpy():
        across = np.eye(3) - np.outer(pose[:, 2], pose[:, 2])
        a += across
        b += across @ pose[:, 3]
    close(nearest_point_to_axes(c2w), np.linalg.solve(a, b), 1e-7)


def test_axes_through_one_point_give_that_point():
    close(nearest_point_to_axes(inward_poses(3)), [0.5, -1.0, 2.0], 1e-12)


def test_parallel_axes_give_a_point_beside_the_mean_position():
    c2w = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    c2w[:, :3, 3] = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3)))
    close(nearest_point_to_axes(c2w), c2w[:, :3, 3].mean(0), 1e-9)


@relaxed
@given(seeds)
def test_spherify_matches_the_explicit_formulas(seed):
    p = inward_poses(seed).numpy()
    p = p + 0.01 * np.random.default_rng(seed).normal(size=p.shape) * [0, 0, 0, 1]
    centre = nearest_point_to_axes(torch.from_numpy(p)).numpy()
    up = unit(sum(p[i, :, 3] - centre for i in range(9)) / 9)
    x = unit(np.cross([0.1, 0.2, 0.3], up))
    basis = np.stack([x, np.cross(up, x), up], 1)
    radius = math.sqrt(sum(float(np.sum((p[i, :, 3] - centre) ** 2)) for i in range(9)) / 9)
    moved, transform = spherify(torch.from_numpy(p))
    for i in range(9):
        close(moved[i, :, :3], basis.T @ p[i, :, :3], 1e-9)
        close(moved[i, :, 3], basis.T @ (p[i, :, 3] - centre) / radius, 1e-9)
        close(moved[i, :, 3], (transform @ torch.tensor([*p[i, :, 3], 1.0], dtype=torch.float64))[:3], 1e-9)
    assert scale_of(transform) == pytest.approx(1 / radius)
    assert float(moved[:, :, 3].square().sum(-1).mean()) == pytest.approx(1)


def test_spherify_refuses_cameras_in_one_point():
    c2w = random_poses(0)
    c2w[:, :, 3] = 1.0
    with pytest.raises(SceneError, match="one point"):
        spherify(c2w)


@relaxed
@given(seeds, st.floats(0.1, 10))
def test_a_similarity_maps_positions_and_keeps_rotations(seed, scale):
    c2w = random_poses(seed)
    transform = to_4x4(random_poses(seed + 1, 1)[0])
    transform[:3, :3] *= scale
    moved = transform_poses(c2w, transform)
    close(moved[:, :, :3].mT @ moved[:, :, :3], torch.eye(3, dtype=torch.float64).expand(7, 3, 3), 1e-9)
    ahead = to_4x4(c2w) @ torch.tensor([0, 0, -1.0, 1], dtype=torch.float64)
    close(moved[:, :, 3] - scale * moved[:, :, 2], (ahead @ transform.T)[:, :3], 1e-9)
    close(transform_poses(moved, torch.linalg.inv(transform)), c2w, 1e-9)


def horn(source, target):
    """The least-squares similarity by Horn's unit quaternion (1987), the eigenvector of a 4x4 matrix."""
    s, t = source - source.mean(0), target - target.mean(0)
    m = s.T @ t
    twist = [m[1, 2] - m[2, 1], m[2, 0] - m[0, 2], m[0, 1] - m[1, 0]]
    n = np.zeros((4, 4))
    n[0, 0], n[0, 1:], n[1:, 0], n[1:, 1:] = np.trace(m), twist, twist, m + m.T - np.trace(m) * np.eye(3)
    rotation = quaternion_to_matrix(torch.from_numpy(np.linalg.eigh(n)[1][:, -1].copy())).numpy()
    scale = sum(float(t[i] @ rotation @ s[i]) for i in range(len(s))) / float((s**2).sum())
    similarity = np.eye(4)
    similarity[:3, :3], similarity[:3, 3] = scale * rotation, target.mean(0) - scale * rotation @ source.mean(0)
    return similarity


@relaxed
@given(seeds, st.floats(0.1, 10), st.sampled_from([0.0, 0.1, 1.0]), st.integers(4, 12))
def test_alignment_is_the_least_squares_similarity(seed, scale, noise, n):
    """With noise as large as the points the best orthogonal matrix is often a reflection, which must not be the answer."""
    rng = np.random.default_rng(seed)
    source, rotation = rng.normal(size=(n, 3)) + 5, random_rotations(rng, 1)[0].numpy()
    target = scale * (source @ rotation.T + noise * rng.normal(size=(n, 3))) - 20
    found = align(torch.from_numpy(source), torch.from_numpy(target)).numpy()
    close(found, horn(source, target), 1e-6)
    assert np.linalg.det(found[:3, :3]) > 0
    if noise == 0:
        close(found[:3, :3], scale * rotation, 1e-9)


def test_alignment_of_a_mirror_image_is_no_mirror():
    source = torch.from_numpy(np.random.default_rng(1).normal(size=(9, 3)))
    found = align(source, source * torch.tensor([1.0, 1.0, -1.0]))
    assert float(torch.linalg.det(found[:3, :3])) > 0


@pytest.mark.parametrize("points", [torch.zeros(2, 3), torch.full((5, 3), 7.0)], ids=["too few", "one place"])
def test_alignment_needs_three_places(points):
    with pytest.raises(SceneError, match="can't be aligned"):
        align(points, torch.randn(len(points), 3))


@relaxed
@given(vectors, vectors, vectors)
def test_look_at_always_gives_a_rotation_that_looks_at_the_target(position, offset, up):
    target = position + offset if offset.norm() > 1e-3 else position + torch.tensor([0.0, 0.0, 1.0])
    pose = look_at(position, target, up)
    rotation = pose[:, :3]
    close(rotation.T @ rotation, torch.eye(3, dtype=torch.float64), 1e-9)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1)
    close(-rotation[:, 2], (target - position) / (target - position).norm(), 1e-9)
    assert torch.equal(pose[:, 3], position)
    assert float(rotation[:, 1] @ up) >= -1e-9


def test_an_up_along_the_view_still_gives_a_frame():
    z = torch.tensor([0.0, 0.0, 1.0])
    frame = view_frame(torch.zeros(3), z, z)
    close(frame[:, :3].T @ frame[:, :3], torch.eye(3, dtype=torch.float64), 1e-12)


def test_a_camera_in_its_own_target_still_gets_a_frame():
    p = torch.tensor([1.0, 2.0, 3.0])
    close(look_at(p, p, torch.tensor([0.0, 1.0, 0.0]))[:, :3], torch.eye(3), 1e-12)


def test_up_is_found_from_level_cameras_whatever_their_elevation():
    close(world_up(inward_poses(5)), [0, 0, 1], 1e-9)


def test_up_of_cameras_that_look_one_way_is_their_mean_up():
    c2w = random_poses(6, angle=0.02)
    mean = c2w[:, :, 1].mean(0)
    close(world_up(c2w), mean / mean.norm(), 1e-9)


def test_axes_meet_in_front_of_right_poses_and_behind_mistaken_ones():
    good = inward_poses(7)
    meeting = rays_meet(Cameras.pinhole(good, 100.0, 64, 48))
    assert meeting.in_front == 1
    assert meeting.distance == pytest.approx(3, rel=1e-5)
    assert meeting.residual == pytest.approx(0, abs=1e-3)
    close(meeting.point, [0.5, -1.0, 2.0], 1e-5)
    as_opencv = convert_axes(good, "opengl", "opencv")
    assert rays_meet(Cameras.pinhole(as_opencv, 100.0, 64, 48)).in_front == 0
    inverted = rays_meet(Cameras.pinhole(torch.linalg.inv(to_4x4(good)), 100.0, 64, 48))
    assert inverted.in_front < 1 or inverted.residual > 0.1 * inverted.distance
