"""What a field's grid takes from its scene: the cells of the finest level, from the pixels of the pictures."""

from dataclasses import replace

import pytest
import torch

from nerfit.sampling.space import box_of, finest_cells
from nerfit.scenes.formats.procedural import Config, load
from nerfit.scenes.scene import Scene


def pixel_apart(scene: Scene) -> float:
    """How far apart the rays of two neighbouring pixels are at the box's middle, median over training views; in NDC at the far end."""
    views = torch.tensor(scene.splits["train"])
    x, y = scene.cameras.width[views] // 2, scene.cameras.height[views] // 2
    one, other = (scene.rays(views, x + k, y) for k in (0, 1))
    if scene.ndc:
        ends = [rays.origins + rays.directions for rays in (one, other)]
        return float((ends[1] - ends[0]).norm(dim=-1).median())
    distance = (one.origins - box_of(scene)[1]).norm(dim=-1)
    return float(((one.viewdirs - other.viewdirs).norm(dim=-1) * distance).median())


@pytest.mark.parametrize("kind", ["object", "forward-facing", "unbounded"])
def test_the_finest_level_has_five_cells_for_four_pixels(kind: str) -> None:
    scene = load(f"procedural:{kind}" if kind == "forward-facing" else "procedural", Config(size=160, views=6, samples=1))
    scene = replace(scene, bounds=kind)
    half, middle = 1.3 * box_of(scene)[0], box_of(scene)[1]
    assert finest_cells(scene, middle, half) == pytest.approx(1.25 * 2 * half / pixel_apart(scene), rel=0.05)
    assert finest_cells(scene, middle, 1e-3) == 64 and finest_cells(scene, middle, 1e3) == 1024
