"""Judging learned cameras, and finding the pose of a picture in a field that is known."""

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.learned import CameraConfig, LearnedCameras
from nerfit.cameras.poses import align, transform_poses
from nerfit.cameras.rotations import matrix_to_axis_angle
from nerfit.errors import SceneError
from nerfit.methods.base import Batch, Method
from nerfit.sampling.pixels import mix
from nerfit.scenes.scene import Scene, composite

RAYS = 1024
"""Pixels in each step of `optimised_pose`."""
LR = 1e-3


def camera_errors(cameras: Cameras, reference: Cameras) -> dict[str, float]:
    """Mean errors of cameras after the similarity that fits their positions to the reference's best (BARF, section 5).

    Rotation in degrees, translation in percent of the diagonal of the box around the reference's positions, horizontal
    focal length in percent. Raises SceneError where fewer than 3 positions differ.
    """
    similarity = align(cameras.centers, reference.centers)
    c2w, truth = transform_poses(cameras.c2w, similarity), reference.c2w.to("cpu", torch.float64)
    angle = matrix_to_axis_angle(truth[:, :, :3].mT @ c2w[:, :, :3]).norm(dim=-1)
    diagonal = truth[:, :, 3].amax(0) - truth[:, :, 3].amin(0)
    distance = (c2w[:, :, 3] - truth[:, :, 3]).norm(dim=-1)
    focal = (cameras.fx / cameras.width) / (reference.fx / reference.width) - 1
    return {
        "rotation_degrees": math.degrees(float(angle.mean())),
        "translation_percent": 100 * float(distance.mean() / diagonal.norm()),
        "focal_percent": 100 * float(focal.abs().mean()),
    }


def judge_cameras(method: Method, scene: Scene, reference: Scene | None = None) -> dict[str, Any]:
    """The entry ``cameras`` of metrics.json: `camera_errors` of the training views against views of the same name in ``reference``.

    None stands for the poses and focal lengths that a scene had before others were learned; without learned ones there is no entry.
    Raises SceneError where no view of the reference has the name of a training view.
    """
    train = scene.splits["train"]
    if reference is not None:
        places = {name: i for i, name in enumerate(reference.view_names)}
        train = [i for i in train if i < len(scene.view_names) and scene.view_names[i] in places]
        if not train:
            raise SceneError(f"{reference.name} has no view of the same name as a training view of {scene.name}.")
        truth = reference.cameras[[places[scene.view_names[i]] for i in train]]
    elif method.cameras is None:
        return {}
    else:
        truth = replace(method.cameras.cameras.to("cpu"), c2w=method.cameras.given.cpu())[train]
    try:
        return {"cameras": camera_errors(scene.cameras[train], truth)}
    except SceneError as error:
        warnings.warn(f"the cameras were not judged: {error}", stacklevel=2)
        return {}


def optimised_pose(method: Method, scene: Scene, view: int, steps: int) -> Cameras:
    """The camera of a view after ``steps`` steps of Adam on its pose, which lower the squared error of random pixels of its picture.

    The field stays as it is; iNeRF (Yen-Chen et al. 2021), as NeRF-- and BARF judge views that they were not trained on.
    """
    camera = scene.cameras[[view]]
    pose = LearnedCameras(CameraConfig(learn=True), camera, [0]).to(method.device)
    optimizer = torch.optim.Adam(pose.parameters(), lr=LR)
    width, height = int(camera.width[0]), int(camera.height[0])
    background = 0.0 if scene.background == "black" else 1.0
    weights = [p for p in method.parameters() if p.requires_grad]
    for p in weights:
        p.requires_grad_(False)
    try:
        for step in range(steps):
            generator = torch.Generator().manual_seed(mix(view, step))
            pixels = torch.randint(width * height, (RAYS,), generator=generator)
            x, y, zero = pixels % width, torch.div(pixels, width, rounding_mode="floor"), torch.zeros_like(pixels)
            target = composite(scene.colors(zero + view, x, y), background)
            own, x, y = (i.to(method.device) for i in (zero, x, y))
            rays = scene.rays(own, x, y, pose())
            batch = Batch(rays, target=target.to(method.device), background=background)
            optimizer.zero_grad()
            _error(method, batch).backward()
            optimizer.step()
    finally:
        for p in weights:
            p.requires_grad_(True)
    return pose.eval()().to("cpu")


def _error(method: Method, batch: Batch) -> Tensor:
    assert batch.target is not None
    return (method.render(batch).rgb - batch.target).square().mean()
