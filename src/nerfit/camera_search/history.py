"""What a search for camera poses has done so far: kept in the run folder for pictures of it, and watched for hope."""

import math
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.learned import LearnedCameras
from nerfit.scenes.images import replacing
from nerfit.scenes.scene import Scene, composite

FILE = "poses.safetensors"
"""Where a run folder keeps its search."""
_NUMBERS = ("steps", "progress", "psnr", "focal")
"""What is known of each look, beside its poses."""
MOST, FIRST_EVERY = 200, 5
"""Looks that are kept, and steps between the first of them; beyond that every second one is dropped."""
SHARE, EARLY, LATE = 0.1, 200, 400
"""Share of the budget after which a search is judged, and steps before which and after which it is not."""
EXPLAINED, LITTLE = 0.7, 0.4
"""Shares of the pictures' variance that the field explains by then: below the second there is no hope, nor below the first if cameras
flee."""
DIVERGING, STRAIGHT = 0.15, 0.45
"""Cameras flee that are so far from their middle on average, and so far from where they began as a share of their way in `LEGS` legs."""
LEGS = 10
LIKE = 0.25
"""Likeness of the pictures below which an adjustment has found no common surfaces."""
STUCK = 0.003
"""Cameras that are less far from their middle have not moved."""


@dataclass
class PoseSearch:
    """Looks at the training cameras at evenly spaced steps, fewer than ``MOST`` of them however long the training."""

    every: int = FIRST_EVERY
    steps: list[int] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    """Share of the budget spent at each look."""
    psnr: list[float] = field(default_factory=list)
    """Of the training pixels, averaged over the latest steps, in dB."""
    c2w: list[Float[Tensor, "views 3 4"]] = field(default_factory=list)
    focal: list[float] = field(default_factory=list)
    """Mean focal length over the width."""

    @torch.no_grad()
    def record(self, cameras: LearnedCameras, scene: Scene, step: int, progress: float, psnr: float) -> None:
        """Keep the cameras of every `every`-th step; warn once, early in the budget, if the search is hopeless."""
        if step % self.every:
            return
        now = cameras()
        self.steps.append(step)
        self.progress.append(progress)
        self.psnr.append(psnr)
        self.c2w.append(now.c2w[cameras.views].detach().float().cpu().clone())
        self.focal.append(float((now.fx / now.width).mean()))
        still = cameras.config.warmup > 0  # cameras that hardly move at first are not judged early by what they have reached
        search = cameras.config.start == "identity" and cameras.config.learn_from == 0
        if search and (why := self.hopeless(scene, math.inf if still else LATE)):
            _warn_hopeless(why)
        if len(self.steps) >= MOST:
            self._thin()

    def judge(self, likeness: float) -> None:
        """Say that a search is hopeless whose first adjustment leaves the pictures of surfaces unlike (`adjust_photometrically`)."""
        if likeness < LIKE:
            _warn_hopeless(f"seen from the cameras found by now, the photos agree to {likeness:.0%} only")

    def hopeless(self, scene: Scene, late: float = LATE) -> str | None:
        """Why there is no hope, said once: at the first look after `SHARE` of the budget and `EARLY` steps, or after ``late`` steps."""
        shared = [step >= EARLY and share >= SHARE for step, share in zip(self.steps, self.progress, strict=True)]
        judged = [due or step >= late for due, step in zip(shared, self.steps, strict=True)]
        place = torch.stack(self.c2w)[:, :, :, 3]
        spread = float((place[-1] - place[-1].mean(0)).norm(dim=-1).mean())
        if _now(shared) and spread < STUCK:
            return f"after {self.progress[-1]:.0%} of the run the cameras are no farther apart than {spread:.2g}"
        if not _now(judged):
            return None
        explained = 1 - 10 ** (-self.psnr[-1] / 10) / _variance(scene)
        legs = place[torch.linspace(0, len(place) - 1, LEGS + 1).long()]
        way = legs.diff(dim=0).norm(dim=-1).sum(0).mean()
        straight = float((place[-1] - place[0]).norm(dim=-1).mean() / way.clamp(min=1e-9))
        flee = spread > DIVERGING and straight > STRAIGHT
        if explained >= (EXPLAINED if flee else LITTLE):
            return None
        what = f"after {self.steps[-1]} steps the field explains {max(explained, 0.0):.0%} of the pictures' variance only"
        return what + (f", and the cameras flee from each other ({spread:.2g} apart)" if flee else "")

    def _thin(self) -> None:
        """Drop every second look."""
        self.every *= 2
        kept = [i for i, step in enumerate(self.steps) if step % self.every == 0]
        for name in ("steps", "progress", "psnr", "c2w", "focal"):
            setattr(self, name, [getattr(self, name)[i] for i in kept])

    def cameras(self, look: int, training: Cameras) -> Cameras:
        """The ``training`` cameras as they were at a look."""
        focal = self.focal[look] / float((training.fx / training.width).mean())
        return replace(training, c2w=self.c2w[look], fx=training.fx * focal, fy=training.fy * focal)

    def save(self, folder: Path) -> None:
        """Write the looks into a run folder, whole or not at all."""
        if not self.steps:
            return
        looks = {"c2w": torch.stack(self.c2w), "steps": torch.tensor(self.steps)}
        looks |= {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in _NUMBERS[1:]}
        with replacing(folder / FILE) as temporary:
            temporary.write_bytes(save(looks, {"every": str(self.every)}))

    @classmethod
    def load(cls, folder: Path, until: int) -> "PoseSearch":
        """The looks that a run folder holds, up to step ``until``; none where it holds none."""
        try:
            with safe_open(folder / FILE, framework="pt") as file:
                about = file.metadata()
                looks = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            count = len(looks["steps"])
            size = looks["c2w"].shape
            if size[:1] + size[2:] != (count, 3, 4) or any(looks[name].shape != (count,) for name in _NUMBERS):
                raise ValueError("its shapes are wrong")
            kept = int((looks["steps"] <= until).sum())
            lists = {name: looks[name][:kept].tolist() for name in _NUMBERS}
            return cls(int(about["every"]), c2w=list(looks["c2w"][:kept]), **lists)
        except FileNotFoundError:
            return cls()
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
            warnings.warn(f"{folder / FILE} is damaged ({error}): pictures of the search begin here.", stacklevel=2)
            return cls()


def _warn_hopeless(why: str) -> None:
    warnings.warn(
        f"the search for camera poses is probably hopeless: {why}. Photos must show one scene from places side by side; try "
        "fewer or closer ones, --seeds 3, a lower --model.camera.lr, --recipe nerfmm-siren (of nerf), or nerfit poses (COLMAP).",
        stacklevel=2,
    )


def _now(due: list[bool]) -> bool:
    """Whether the newest of several looks is the first that is due."""
    return due[-1] and not any(due[:-1])


def _variance(scene: Scene) -> float:
    """Of the colours of the training views, about their mean; of some ten thousand pixels of each."""
    seen = []
    for view in scene.splits["train"]:
        start, size = int(scene.starts[view]), int(scene.cameras.width[view] * scene.cameras.height[view])
        pixels = scene.stored_pixels[start : start + size][:: -(-size // 10_000)].float() / 255
        seen.append(composite(pixels, scene.backdrop))
    return max(float(torch.cat(seen).var(0).mean()), 1e-9)
