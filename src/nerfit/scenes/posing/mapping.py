"""From matches to models by COLMAP's mappers: a ladder of starts, each for captures that the one before gives up."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from nerfit.progress import say, tick
from nerfit.scenes.posing.colmap import pycolmap
from nerfit.scenes.posing.registration import FEW_MATCHES, Links, Mapper

Poses = tuple[Float[np.ndarray, "n 3 3"], Float[np.ndarray, "n 3"]]
"""Rotations from the world to each camera, and the cameras' centres."""


@dataclass(frozen=True)
class Start:
    """What the first two pictures of a model must have."""

    parallax: float
    """Least median angle between the two rays of a point, degrees."""
    forward: float
    """Most motion along the view direction, as a share of all motion."""
    matches: int
    """Fewest verified matches."""


STARTS = (Start(16, 0.95, 100), Start(4, 0.95, 100), Start(0.5, 0.999, 30))
"""COLMAP's own; for handheld photographs that look one way; for a walk straight ahead."""

ENOUGH = 0.9
"""Share of the pictures with matches that the models must hold to end the ladder."""
_SHARED, _WHOLE = 3, 5
"""Pictures that two models share at least if they are merged, and of a model that counts as a place of its own."""
_TURNED, _MOVED = 5.0, 0.25
"""Most that the shared cameras of two models may differ if they are merged: degrees, and shares of their spread."""
_POINTS = 2000
"""Most points whose `parallax` is measured."""


def map_pictures(what: str, database: Path, pictures: Path, mapper: Mapper, links: Links) -> list[Any]:
    """Models of the scene: first that with the most pictures posed, and of equal ones that with the smallest reprojection error.

    ``what`` is what messages call the scene, ``database`` COLMAP's with the matches of ``pictures``, a folder. ``mapper`` auto tries
    `STARTS` until the models hold `ENOUGH` of the pictures that have matches, and then all pictures at once.
    """
    count = len(links.features)
    usable = sum(max(links.partners(view).values(), default=0) >= FEW_MATCHES for view in range(count))
    tries: list[Callable[[], list[Any]]] = []
    if mapper != "global":
        tries += [partial(_one_by_one, database, pictures, count, start) for start in STARTS]
    if mapper != "incremental":
        tries.append(partial(_at_once, database, pictures))
    best: list[Any] = []
    for number, attempt in enumerate(tries):
        found = _merged(attempt(), database, pictures)
        if number:
            say(f"{what}: a model of {_posed(best)} of {count} pictures; another start gives {_posed(found)}")
        if _rank(found) > _rank(best):
            best = found
        places = [model for model in best if model.num_reg_images() >= _WHOLE] or best[:1]
        if sum(model.num_reg_images() for model in places) >= max(_SHARED, ENOUGH * usable):
            break
    tick(_posed(best), count, "pictures posed", last=True)
    return best


def parallax(model: Any) -> float:
    """Median over the points of a model of the largest angle between two rays to it, degrees."""
    centres = {image.image_id: image.projection_center() for image in model.images.values() if image.has_pose}
    points = list(model.points3D.values())
    largest = []
    for point in points[:: -(-len(points) // _POINTS) or 1]:
        rays = np.stack([point.xyz - centres[element.image_id] for element in point.track.elements])
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        largest.append(np.degrees(np.arccos(np.clip((rays @ rays.T).min(), -1, 1))))
    return float(np.median(largest)) if largest else 0.0


def _posed(models: list[Any]) -> int:
    return models[0].num_reg_images() if models else 0


def _rank(models: list[Any]) -> tuple[int, float]:
    return (_posed(models), -models[0].compute_mean_reprojection_error()) if models else (0, 0.0)


def _one_by_one(database: Path, pictures: Path, count: int, start: Start) -> list[Any]:
    """Models of ``count`` pictures, the largest first, picture by picture."""
    options = _options(start)
    posed = 0

    def show(now: int) -> None:
        nonlocal posed
        posed = now
        tick(min(posed, count), count, "pictures posed", last=False)

    with tempfile.TemporaryDirectory() as output:
        models = pycolmap.incremental_mapping(
            database,
            pictures,
            output,
            options,
            initial_image_pair_callback=lambda: show(2),
            next_image_callback=lambda: show(posed + 1),
        )
    return _largest_first(models)


def _options(start: Start) -> Any:
    options = pycolmap.IncrementalPipelineOptions(num_threads=torch.get_num_threads(), min_model_size=3, random_seed=0)
    options.mapper.init_min_tri_angle = start.parallax
    options.mapper.init_max_forward_motion = start.forward
    options.mapper.init_min_num_inliers = start.matches
    return options


def _at_once(database: Path, pictures: Path) -> list[Any]:
    """As `_one_by_one`, by rotations and then positions of all pictures at once (GLOMAP, Pan et al. 2024).

    Focal lengths begin at what the files or COLMAP's rule of thumb say, and then at what pairs of pictures say, which is nonsense where
    all are taken from about one position; the better result is kept.
    """

    def solve() -> list[Any]:
        options = pycolmap.GlobalPipelineOptions(num_threads=torch.get_num_threads(), random_seed=0)
        with tempfile.TemporaryDirectory() as output:
            return _largest_first(pycolmap.global_mapping(database, pictures, output, options))

    plain = solve()
    pycolmap.calibrate_view_graph(database, pycolmap.ViewGraphCalibrationOptions(random_seed=0))
    return max(plain, solve(), key=_rank)


def _largest_first(models: dict[int, Any]) -> list[Any]:
    """Models of a scene, that with the most registered pictures first."""
    return sorted(models.values(), key=lambda model: (model.num_reg_images(), model.num_points3D()), reverse=True)


def _merged(models: list[Any], database: Path, pictures: Path) -> list[Any]:
    """The models, the first with the pictures of others that share some with it and agree where they are."""
    if len(models) < 2:
        return models
    whole, apart = copy.deepcopy(models[0]), []
    for other in models[1:]:
        if not _joined(whole, other):
            apart.append(other)
    if whole.num_reg_images() == models[0].num_reg_images():
        return models
    with tempfile.TemporaryDirectory() as output:
        whole = pycolmap.triangulate_points(whole, database, pictures, output, options=_options(STARTS[0]))
    adjustment = pycolmap.BundleAdjustmentOptions(print_summary=False)
    adjustment.ceres.solver_options.num_threads = torch.get_num_threads()
    pycolmap.bundle_adjustment(whole, adjustment)
    return [whole, *apart]


def _joined(whole: Any, other: Any) -> bool:
    """Take another model's pictures into ``whole``; False where the two share too few, or differ in the shared ones."""
    shared = whole.find_common_reg_image_ids(other)
    fresh = sorted(set(other.reg_image_ids()) - {image for _, image in shared})
    if len(shared) < _SHARED:
        return False
    to_whole = similarity(_poses(other, [image for _, image in shared]), _poses(whole, [image for image, _ in shared]))
    if to_whole is None:
        return False
    moved = copy.deepcopy(other)
    moved.transform(to_whole)
    for number in fresh:
        image = moved.image(number)
        if not whole.exists_camera(image.camera_id):
            whole.add_camera_with_trivial_rig(moved.camera(image.camera_id))
        pose = image.cam_from_world()
        copied = pycolmap.Image(
            name=image.name,
            keypoints=[point.xy for point in image.points2D],
            camera_id=image.camera_id,
            image_id=number,
        )
        whole.add_image_with_trivial_frame(copied, pose)
    return True


def _poses(model: Any, images: Sequence[int]) -> Poses:
    """The `Poses` of some images of a model."""
    chosen = [model.image(image) for image in images]
    return (
        np.stack([image.cam_from_world().rotation.matrix() for image in chosen]),
        np.stack([image.projection_center() for image in chosen]),
    )


def similarity(source: Poses, target: Poses) -> Any:
    """The similarity that takes the cameras of one model to the same cameras of another; None where they disagree.

    The rotation is the mean of the cameras' own, so cameras on one line do. They agree within `_TURNED` degrees each, and within `_MOVED`
    of their mean distance from their centre.
    """
    (from_, a), (to, b) = source, target
    u, _, v = np.linalg.svd(np.einsum("nji,njk->ik", to, from_))
    rotation = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
    turned = np.einsum("nij,nij->n", to, from_ @ rotation.T)  # the trace of each difference
    a0, b0 = (a - a.mean(0)) @ rotation.T, b - b.mean(0)
    spread = np.linalg.norm(b0, axis=1).mean()
    scale = (a0 * b0).sum() / max((a0 * a0).sum(), 1e-30)
    if (
        (turned < 1 + 2 * np.cos(np.radians(_TURNED))).any()
        or scale <= 0
        or np.linalg.norm(b0 - scale * a0, axis=1).max() > _MOVED * spread
    ):
        return None
    return pycolmap.Sim3d(scale, pycolmap.Rotation3d(rotation), b.mean(0) - scale * rotation @ a.mean(0))
