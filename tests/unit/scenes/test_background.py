"""The background of opaque pictures: found along their borders, overridden, kept by a run; random where they show surroundings."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import assert_close
from nerfit.cameras import Cameras
from nerfit.config import parse
from nerfit.errors import ConfigError, SceneError
from nerfit.methods.pixel_batches import PixelSource, random_pixels
from nerfit.scenes import load_scene
from nerfit.scenes.background import border_colour, choose_background, saved_background
from nerfit.scenes.formats import blender
from nerfit.scenes.scene import Scene, SceneConfig

pytestmark = pytest.mark.usefixtures("cache")

SIZES = [(40, 30), (25, 50), (30, 30)]


def scene_on(colour: Any, noise: float = 2.0, channels: int = 3, object_at: int = 8, **choices: Any) -> Scene:
    """Three views of different sizes: a colourful square ``object_at`` pixels from the edges, on a colour with noise (levels of 255)."""
    rng = np.random.default_rng(0)
    views = []
    for width, height in SIZES:
        picture = np.asarray(colour, float) + rng.normal(0, noise, (height, width, 3))
        inside = picture[object_at : height - object_at, object_at : width - object_at]
        inside[:] = rng.integers(0, 256, inside.shape)
        views.append(picture.round().clip(0, 255).astype(np.uint8).reshape(-1, 3))
    pixels = torch.from_numpy(np.concatenate(views))
    if channels == 4:
        pixels = torch.cat([pixels, torch.full_like(pixels[:, :1], 255)], 1)
    width, height = torch.tensor(SIZES).T
    c2w = torch.eye(4)[:3].repeat(len(SIZES), 1, 1)
    focal = torch.full((3,), 30.0)
    cameras = Cameras(c2w, focal, focal, focal, focal, width, height)
    return Scene("photos", "test", cameras, 1.0, 3.0, {"train": [0, 1], "test": [2]}, pixels, **choices)


def border_of(scene: Scene) -> Any:
    return border_colour(scene.stored_pixels, scene.cameras, scene.splits["train"])


@given(colour=st.tuples(*[st.integers(0, 255)] * 3), noise=st.sampled_from([0.0, 1.0, 3.0]))
def test_an_even_border_is_found_through_noise(colour, noise):
    found = border_of(scene_on(colour, noise))
    assert found is not None
    assert np.abs(255 * np.array(found) - colour).max() <= 0.5 + noise


def test_a_border_that_shows_things_is_none():
    assert border_of(scene_on((0, 0, 0), object_at=0)) is None
    assert border_of(scene_on((200, 200, 200), noise=25)) is None


def test_an_object_may_reach_the_border_a_little():
    """One side of one of two pictures, a sixteenth of all borders."""
    scene = scene_on((255, 255, 255), 0)
    assert border_of(scene) == (1.0, 1.0, 1.0)
    scene.stored_pixels[:1200].view(30, 40, 3)[:15, :3] = 90
    assert border_of(scene) == (1.0, 1.0, 1.0)
    scene.stored_pixels[:1200].view(30, 40, 3)[:, :3] = 90
    scene.stored_pixels[:1200].view(30, 40, 3)[:, -3:] = 60
    assert border_of(scene) is None


def test_views_that_differ_share_no_border():
    scene = scene_on((255, 255, 255), 0)
    scene.stored_pixels[:1200] = 255 - scene.stored_pixels[:1200]
    assert border_of(scene) is None


def test_test_views_have_no_say():
    scene = scene_on((255, 255, 255), 0)
    scene.stored_pixels[scene.starts[2] :] = 7
    assert border_of(scene) == (1.0, 1.0, 1.0)


def test_what_masks_hide_is_passed_over():
    scene = scene_on((255, 255, 255), 0, channels=4, masked=True)
    hidden = scene.stored_pixels[:1200].view(30, 40, 4)[:, :15]
    hidden[:] = 0
    assert border_of(scene) == (1.0, 1.0, 1.0)
    scene.stored_pixels[:, 3] = 0
    assert border_of(scene) is None


@pytest.mark.parametrize(
    ("colour", "background", "name"),
    [((255, 255, 255), "white", "white"), ((0, 0, 0), "black", "black"), ((51, 102, 153), (0.2, 0.4, 0.6), "#336699")],
)
@pytest.mark.parametrize("asked", ["auto", "random"])
def test_opaque_pictures_get_the_colour_of_their_border(colour, background, name, asked, capsys):
    scene = choose_background(scene_on(colour, 0, background=asked))
    assert scene.background == pytest.approx(background) if isinstance(background, tuple) else scene.background == background
    assert scene.backdrop_name == name
    assert_close(scene.backdrop, np.array(colour) / 255)
    assert f"so the background is {name} (--scene.background overrides)" in capsys.readouterr().err


def test_jpeg_noise_is_no_colour():
    assert choose_background(scene_on((255, 255, 255), 1.5)).background == "white"
    assert choose_background(scene_on((0, 0, 0), 1.5)).background == "black"


def test_a_given_background_stays_with_a_warning_where_the_border_differs():
    with pytest.warns(UserWarning, match="plain border of #ffffff, but the background is black; leave --scene.background out"):
        assert choose_background(scene_on((255, 255, 255), 0, background="black")).background == "black"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in ("white", (0.97, 1.0, 1.0)):
            assert choose_background(scene_on((255, 255, 255), 0, background=given)).background == given


@pytest.mark.parametrize(("asked", "expected"), [("auto", "white"), ("random", "random"), ("black", "black"), ((0.5, 0.0, 1.0),) * 2])
def test_pictures_with_alpha_keep_what_was_asked_for(asked, expected):
    scene = scene_on((0, 0, 0), 0, channels=4, background=asked)
    assert choose_background(scene).background == expected


def test_surroundings_keep_a_random_background():
    """It forces matter onto every ray, without which an opaque room is fog; only a plain border takes its place."""
    room = scene_on((0, 0, 0), object_at=0, background="random")
    chosen = choose_background(room)
    assert chosen.background == "random" and chosen.other_background is not None
    drawn = random_pixels(PixelSource(chosen, 0, torch.Generator().manual_seed(0), torch.device("cpu")), 16, 1.0).background
    assert isinstance(drawn, torch.Tensor) and drawn.shape == (16, 3) and drawn.std() > 0.1
    assert choose_background(replace(room, background="auto")).background == "white"


@pytest.mark.parametrize("background", ["white", "black", "random", (0.25, 0.5, 1.0)])
def test_a_run_keeps_its_background(tmp_path, background):
    scene = scene_on((9, 9, 9), background=background)
    scene.save(tmp_path)
    assert saved_background(tmp_path) == background
    assert Scene.load(tmp_path).background == background


@pytest.mark.parametrize("background", ["blue", (0.5, 0.5), (0.5, 0.5, 1.5), (0.5, 0.5, "a"), 3])
def test_what_is_no_colour_is_refused(background):
    with pytest.raises(SceneError, match=r"photos: the background must be one of auto, white, black, random, or three numbers"):
        scene_on((0, 0, 0), background=background)


def test_the_command_line_takes_words_and_colours():
    assert parse(SceneConfig, ["--background", "0.2", "0.4", "1"]).background == (0.2, 0.4, 1.0)
    assert parse(SceneConfig, ["--background", "black"]).background == "black"
    for wrong in (["blue"], ["0.2", "0.4"], []):
        with pytest.raises(ConfigError):
            parse(SceneConfig, ["--background", *wrong])


def flattened(folder: Path, shade: int) -> None:
    """Replace the pictures of a Blender scene by opaque ones over a grey."""
    for file in folder.glob("*/*.png"):
        picture = Image.open(file)
        Image.alpha_composite(Image.new("RGBA", picture.size, (shade, shade, shade, 255)), picture).convert("RGB").save(file)


@pytest.mark.parametrize("shade", [255, 0, 100])
def test_an_opaque_blender_scene_stays_an_object(blender_folder, shade):
    flattened(blender_folder, shade)
    scene = load_scene(str(blender_folder))
    clear = blender.load(str(blender_folder), blender.Config())
    assert (scene.bounds, scene.near, scene.far, scene.has_alpha) == ("object", 2.0, 6.0, False)
    assert torch.equal(scene.cameras.c2w, clear.cameras.c2w)
    assert_close(scene.backdrop, np.full(3, shade / 255))


def test_a_blender_layout_with_surroundings_is_a_capture(blender_folder):
    for i, file in enumerate(blender_folder.glob("*/*.png")):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 10, 3), dtype=np.uint8)).save(file)
    scene = load_scene(str(blender_folder))
    assert (scene.format, scene.bounds, scene.near, scene.far, scene.background) == ("blender", "unbounded", 0.05, 100.0, "white")
    assert [len(scene.splits[s]) for s in ("train", "val", "test")] == [5, 3, 6]
    assert float(scene.cameras.centers.norm(dim=-1).mean()) == pytest.approx(1, rel=1e-4)
    assert replace(scene, background=(0.1, 0.2, 0.3)).backdrop_name == "#1a334c"
