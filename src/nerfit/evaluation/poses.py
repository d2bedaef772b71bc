"""Errors of learned cameras, and the pose of a picture in a field that is known."""

import math
import warnings
from dataclasses import replace
from typing import Any

from nerfit.camera_search.relocate import photometric_poses
from nerfit.cameras import Cameras
from nerfit.cameras.poses import align, transform_poses
from nerfit.cameras.rotations import matrix_to_axis_angle
from nerfit.errors import SceneError
from nerfit.methods.base import Method
from nerfit.scenes.scene import Scene

RAYS = 1024
"""Pixels in each step of `optimised_pose`."""
LR = 1e-3


def camera_errors(cameras: Cameras, reference: Cameras) -> dict[str, float]:
    """Mean errors of cameras after the similarity that fits their positions to the reference's best (BARF, section 5).

    Rotation in degrees, translation in percent of the diagonal of the box around the reference's positions, horizontal
    focal length in percent. Raises SceneError where fewer than 3 positions differ.
    """
    similarity = align(cameras.centers, reference.centers)
    c2w, truth = transform_poses(cameras.c2w, similarity), reference.c2w.cpu().double()
    angle = matrix_to_axis_angle(truth[:, :, :3].mT @ c2w[:, :, :3]).norm(dim=-1)
    diagonal = truth[:, :, 3].amax(0) - truth[:, :, 3].amin(0)
    distance = (c2w[:, :, 3] - truth[:, :, 3]).norm(dim=-1)
    focal = (cameras.fx / cameras.width) / (reference.fx / reference.width) - 1
    return {
        "rotation_degrees": math.degrees(float(angle.mean())),
        "translation_percent": 100 * float(distance.mean() / diagonal.norm()),
        "focal_percent": 100 * float(focal.abs().mean()),
    }


def learned_camera_errors(method: Method, scene: Scene, reference: Scene | None = None) -> dict[str, Any]:
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
        warnings.warn(f"the cameras were not evaluated: {error}", stacklevel=2)
        return {}


def optimised_pose(method: Method, scene: Scene, view: int, steps: int) -> Cameras:
    """The camera of a view after ``steps`` steps of Adam on its pose, which lower the squared error of random pixels of its picture.

    The field stays as it is; iNeRF (Yen-Chen et al. 2021), as NeRF-- and BARF judge views that they were not trained on.
    """
    return photometric_poses(method, scene, view, scene.cameras[[view]], steps, (LR, LR), RAYS, view)[0]
