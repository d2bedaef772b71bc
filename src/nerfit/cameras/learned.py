"""Cameras that are learned together with the scene: NeRF-- (Wang et al. 2021) and BARF (Lin et al. 2021)."""

import math
import warnings
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nerfit.cameras.cameras import Cameras
from nerfit.cameras.poses import align, transform_poses
from nerfit.cameras.rotations import axis_angle_to_matrix, quaternion_to_matrix, six_to_matrix
from nerfit.errors import ConfigError, SceneError

ROTATIONS = {
    "axis-angle": (axis_angle_to_matrix, (0.0, 0.0, 0.0)),
    "6d": (six_to_matrix, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
    "quaternion": (quaternion_to_matrix, (1.0, 0.0, 0.0, 0.0)),
}
"""Representations of a rotation: the function to its matrix, and the parameters of no rotation."""
FOCALS = {
    "square": (torch.square, torch.sqrt),
    "ratio": (torch.clone, torch.clone),
    "exp": (torch.exp, torch.log),
}
"""Representations of a focal length over the picture's size: the function from the parameter, and its inverse."""
NDC_PIVOT = 2.0
"""Depth of the point that cameras turn about in forward-facing scenes, whose near plane is at 1: the middle of disparity."""


@dataclass
class CameraConfig:
    """Learning the cameras of the training views together with the scene."""

    learn: bool = False
    """Learn camera poses, and with focal the focal length too."""
    start: Literal["given", "identity"] = "given"
    """First poses: given = the scene's; identity = all cameras at the origin, looking along -z."""
    disturb: float = 0.0
    """Standard deviation of random rotations and translations (radians, scene units) added to the first poses, to test the search."""
    rotation: Literal["axis-angle", "6d", "quaternion"] = "axis-angle"
    """Representation of camera rotations."""
    pivot: float | None = None
    """Distance from the origin along -z of the point that cameras turn about; none = 2 in NDC or with start identity, else 0."""
    focal: Literal["given", "square", "ratio", "exp"] = "given"
    """given = keep the scene's focal lengths; else learn one for all views, by its square root, its ratio to the width or its logarithm."""
    fov: float | None = None
    """Horizontal field of view in degrees at which a learned focal length begins; none = the scene's mean."""
    separate: bool = False
    """Learn horizontal and vertical focal lengths separately."""
    lr: float = 1e-3
    """Learning rate of the cameras at the start."""
    lr_final: float = 1e-5
    """Learning rate of the cameras at the end; it falls log-linearly."""
    warmup: float = 0.0
    """Share of the budget over which that rate rises from 0; useful if cameras are far apart."""
    focal_lr: float | None = None
    """Learning rate of a learned focal length at the start; it falls like that of the cameras; none = lr."""
    learn_from: float = 0.0
    """Share of the budget at which cameras begin to move."""
    learn_until: float = 1.0
    """Share of the budget at which cameras stop moving."""
    relocalise_every: int = 500
    """Steps between relocalisations of cameras whose pictures disagree with the field, from many positions; 0 = never."""
    adjust_at: list[float] = field(default_factory=list)
    """Shares of the budget at which photometric bundle adjustment moves all cameras together, starting from the field's surfaces."""
    refine_after: float = 0.0
    """Share of the budget after which field and schedules start again, with the cameras found by then; 0 = never."""
    coarse_from: float = 0.0
    """Share of the budget at which the encoding's octaves or grid levels begin to open, the coarsest first."""
    coarse_until: float = 0.0
    """Share of the budget at which all octaves or levels are open; 0 = they always are."""

    def unused(self) -> dict[str, str]:
        """Keys that have no effect beside the others, and why."""
        if not self.learn:
            return {f.name: "learn is off" for f in fields(self) if f.name != "learn"}
        return dict.fromkeys(("fov", "separate", "focal_lr"), "focal is given") if self.focal == "given" else {}

    def opened(self, progress: float) -> float:
        """Share of the encoding that is open, 0 to 1, when a share ``progress`` of the budget is spent (BARF, section 4.2)."""
        if not self.learn or progress >= self.coarse_until:
            return 1.0
        return max(progress - self.coarse_from, 0.0) / (self.coarse_until - self.coarse_from)


class LearnedCameras(nn.Module):
    """Cameras whose poses are small motions of the world on top of their first poses: x → R·(x - p) + p + t.

    The pivot p lies in the middle of the scene, so that a rotation about it hardly shifts a picture. A rotation about the camera itself
    shifts the picture as a translation does, and a search from nothing could take one for the other, with near and far exchanged.
    Training ``views`` have motions; the given poses of the other views follow by a similarity (`placed`).
    """

    first: Tensor
    began: Tensor
    given: Tensor
    views: Tensor
    pivot: Tensor

    def __init__(self, config: CameraConfig, cameras: Cameras, train: list[int], pivot: float = 0.0) -> None:
        """``pivot`` is the distance of the pivot from the origin along -z; ConfigError for values that can't be used."""
        super().__init__()
        for key in ("lr", "lr_final", "focal_lr"):
            rate = getattr(config, key)
            if rate is not None and not rate > 0:
                raise ConfigError(f"model.camera.{key} must be above 0, not {rate:g}.")
        if not 0 <= config.learn_from < config.learn_until:
            raise ConfigError("model.camera.learn_from must be at least 0 and below learn_until.")
        if not (0 <= config.coarse_from < config.coarse_until <= 1 or config.coarse_from == config.coarse_until == 0):
            raise ConfigError("model.camera.coarse_from must be at least 0 and below coarse_until, which is at most 1.")
        if not 0 <= config.warmup <= 1:
            raise ConfigError(f"model.camera.warmup must lie between 0 and 1, not at {config.warmup:g}.")
        if config.relocalise_every < 0:
            raise ConfigError(f"model.camera.relocalise_every must not be negative, but is {config.relocalise_every}.")
        shares = config.adjust_at
        if shares != sorted(shares) or not all(0 < share <= 1 for share in shares):
            raise ConfigError("model.camera.adjust_at must be shares of the budget above 0 and up to 1, one after another.")
        alike = len({(int(w), int(h)) for w, h in zip(cameras.width[train], cameras.height[train], strict=True)}) == 1
        self.adjustable = alike and (cameras.lens is None or not bool(cameras.lens.any())) and cameras.distortion is None
        """Whether all can be adjusted to each other: they have one size and no distortion."""
        if shares and not self.adjustable:
            warnings.warn(
                "cameras are learned without model.camera.adjust_at, which takes pictures of one size and no distortion.", stacklevel=2
            )
        if not 0 <= config.refine_after < 1:
            raise ConfigError("model.camera.refine_after must be at least 0 and below 1.")
        if config.disturb < 0:
            raise ConfigError(f"model.camera.disturb must not be negative, but is {config.disturb:g}.")
        if config.fov is not None and not 0 < config.fov < 180:
            raise ConfigError(f"model.camera.fov must lie between 0 and 180 degrees, not {config.fov:g}.")
        if config.focal != "given" and cameras.lens is not None and bool(cameras.lens.any()):
            raise ConfigError("model.camera.focal must be given: focal lengths can be learned of perspective cameras alone.")
        self.config, self.cameras = config, cameras
        self.register_buffer("pivot", torch.tensor([0.0, 0.0, -pivot]), persistent=False)
        first = torch.eye(3, 4).expand(len(cameras), 3, 4) if config.start == "identity" else cameras.c2w
        self.register_buffer("views", torch.tensor(train))
        self.register_buffer("given", cameras.c2w.clone())
        self.register_buffer("first", self.moved(axis_angle_to_matrix(_noise(cameras, config)), _noise(cameras, config), first))
        self.register_buffer("began", self.first.clone())
        self.turn = nn.Parameter(torch.tensor(ROTATIONS[config.rotation][1]).repeat(len(train), 1))
        self.shift = nn.Parameter(torch.zeros(len(train), 3))
        if config.focal != "given":
            self.focal = nn.Parameter(FOCALS[config.focal][1](_first_focal(config, cameras)))

    def forward(self, progress: float = 1.0) -> Cameras:
        """All cameras; those of the training views have gradients while they move."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training and self.moves(progress)):
            rotation = ROTATIONS[self.config.rotation][0](self.turn)
            c2w = self.first.to(self.turn).index_copy(0, self.views, self.moved(rotation, self.shift, self.first[self.views].to(self.turn)))
            cameras = replace(self.cameras.to(c2w.device), c2w=c2w)
            if self.config.focal == "given":
                return cameras
            focal = FOCALS[self.config.focal][0](self.focal)
            fx = focal[0] * cameras.width
            return replace(cameras, fx=fx, fy=focal[1] * cameras.height if self.config.separate else fx)

    def moved(self, rotation: Tensor, shift: Tensor, c2w: Tensor) -> Tensor:
        """Poses ([n, 3, 4]) moved by rotations ([n, 3, 3]) about the pivot and translations ([n, 3])."""
        pivot = self.pivot.to(c2w)[:, None]
        return torch.cat([rotation @ c2w[:, :, :3], rotation @ (c2w[:, :, 3:] - pivot) + pivot + shift[:, :, None]], -1)

    def moves(self, progress: float) -> bool:
        """Whether cameras move when a share ``progress`` of the budget is spent."""
        return self.config.learn_from <= progress <= self.config.learn_until

    @torch.no_grad()
    def placed(self) -> tuple[Cameras, Float[Tensor, "4 4"]]:
        """All cameras in the learned world, on the CPU, and the similarity (float64) that takes the given world there.

        The similarity that fits the training views' positions best moves the given poses of all other views. With fewer than 3
        different given positions it is the identity, and each other view gets the pose of the training view next to it in order.
        """
        learned, train = self(1.0).to("cpu"), self.views.cpu()
        given = self.given.cpu()
        try:
            moved = align(given[train, :, 3], learned.c2w[train, :, 3])
            c2w = transform_poses(given, moved).to(torch.float32)
        except SceneError:
            moved = torch.eye(4, dtype=torch.float64)
            c2w = learned.c2w[train][(torch.arange(len(given))[:, None] - train).abs().argmin(1)]
        c2w[train] = learned.c2w[train]
        return replace(learned, c2w=c2w), moved

    @torch.no_grad()
    def place_at(self, view: int, c2w: Float[Tensor, "3 4"]) -> None:
        """Move a training view's camera to a pose, from which its motion starts again."""
        row = self.views.tolist().index(view)
        self.first[view] = c2w.to(self.first)
        self.turn[row] = torch.tensor(ROTATIONS[self.config.rotation][1]).to(self.turn)
        self.shift[row] = 0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of poses and focal lengths, with ``rates`` of their own (`set_learning_rate`)."""
        c = self.config
        own = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "lr_scale": 1.0}
        groups = [{"params": [self.turn, self.shift], "lr": c.lr, "rates": (c.lr, c.lr_final, c.warmup)} | own]
        if c.focal != "given":
            lr = c.lr if c.focal_lr is None else c.focal_lr
            groups.append({"params": [self.focal], "lr": lr, "rates": (lr, lr * c.lr_final / c.lr, 0.0)} | own)
        return groups

    @torch.no_grad()
    def scalars(self) -> dict[str, float]:
        """Mean translation and rotation of the cameras (scene units, degrees), and mean focal length over the width."""
        turn = ROTATIONS[self.config.rotation][0](self.turn)
        cosine = ((turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1)
        cameras = self(1.0)
        return {
            "camera/shift": float(self.shift.norm(dim=-1).mean()),
            "camera/turn_degrees": math.degrees(float(cosine.acos().mean())),
            "camera/focal": float((cameras.fx / cameras.width).mean()),
        }

    @torch.no_grad()
    def begin_at(self, cameras: Cameras) -> None:
        """Start the search at these ``cameras`` of all views, and at the first one's focal length if one is learned."""
        self.first.copy_(cameras.c2w)
        self.began.copy_(cameras.c2w)
        self.turn.copy_(torch.tensor(ROTATIONS[self.config.rotation][1]).expand_as(self.turn))
        self.shift.zero_()
        if self.config.focal != "given":
            across = torch.stack([cameras.fx[0] / cameras.width[0], cameras.fy[0] / cameras.height[0]])
            self.focal.copy_(FOCALS[self.config.focal][1](across[: len(self.focal)]))


def learned_cameras(config: CameraConfig, cameras: Cameras, train: list[int], ndc: bool, boxed: bool) -> LearnedCameras | None:
    """The cameras to learn; None if they are known.

    ``ndc``: rays are in NDC. ``boxed``: the field has a box, which is placed by the given poses.
    """
    if config.learn and config.start == "identity" and boxed and not ndc:
        raise ConfigError("model.camera.start identity needs a forward-facing scene in NDC here; the method nerf takes others.")
    pivot = config.pivot
    if pivot is None:
        pivot = NDC_PIVOT if ndc or config.start == "identity" else 0.0
    return LearnedCameras(config, cameras, train, pivot) if config.learn else None


def _noise(cameras: Cameras, config: CameraConfig) -> Float[Tensor, "views 3"]:
    return config.disturb * torch.randn(len(cameras), 3)


def _first_focal(config: CameraConfig, cameras: Cameras) -> Tensor:
    """First focal lengths, over the width and, if they are learned separately, over the height."""
    across = (cameras.fx / cameras.width).mean(), (cameras.fy / cameras.height).mean()
    if config.fov is not None:
        wide = 0.5 / math.tan(0.5 * math.radians(config.fov))
        across = torch.tensor(wide), wide * (cameras.width / cameras.height).mean()
    return torch.stack(across if config.separate else across[:1])
