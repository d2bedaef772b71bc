"""The viewer without a browser: cameras, crops and photos, how large pictures are and when they interrupt training, files, ports."""

import contextlib
import io
import math
import socket
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import viser.transforms
from hypothesis import given
from hypothesis import strategies as st

from conftest import around, assert_close, rotation
from nerfit.cameras import Cameras, Rays
from nerfit.cameras.axes import convert_axes
from nerfit.cameras.ndc import from_ndc
from nerfit.cameras.paths import make_path
from nerfit.cameras.poses import rays_meet
from nerfit.cli import main
from nerfit.errors import ConfigError, SceneError
from nerfit.methods.batch import Batch
from nerfit.outputs.surfaces import clip_to_box
from nerfit.rendering.volume import Rendering
from nerfit.scenes.formats import procedural
from nerfit.scenes.scene import Scene
from nerfit.training.checkpoints import load_checkpoint
from nerfit.viewer.drawing import Frame, Viewpoint, Wish, draw, orbit, photo
from nerfit.viewer.keyframes import KeyFrames
from nerfit.viewer.pacing import LEAST_PIXELS, MOVING, TRAINING_SHARE, Pace, Ration, Sight, most_in_need
from nerfit.viewer.ports import free_port
from nerfit.viewer.server import REFRESH, Viewer
from viewer_ball import Ball, ball_scene

seeds = st.integers(0, 10_000)


# cameras


@given(seeds, st.floats(0.3, 2.0), st.floats(0.4, 2.5))
def test_a_viewpoint_is_what_viser_means_and_comes_back(seed: int, fov: float, aspect: float) -> None:
    rng = np.random.default_rng(seed)
    pose = torch.tensor(np.concatenate([rotation(rng), rng.normal(size=(3, 1))], 1))
    viewpoint = Viewpoint.at(pose, fov, aspect)
    assert_close(viewpoint.pose(), pose)
    matrix = viser.transforms.SO3(np.array(viewpoint.wxyz)).as_matrix()
    assert_close(convert_axes(pose, "opengl", "opencv")[:, :3], matrix)
    camera = viewpoint.camera(40_000)
    assert_close(2 * math.atan(int(camera.height[0]) / (2 * float(camera.fy[0]))), fov)
    assert int(camera.width[0] * camera.height[0]) == pytest.approx(40_000, rel=0.02)
    again = Viewpoint.of(camera, 0)
    assert_close(again.pose(), pose)
    assert (again.fov, again.aspect) == pytest.approx((fov, aspect), rel=0.02)


def test_a_panorama_is_viewed_through_a_right_angle() -> None:
    camera = Cameras.pinhole(torch.eye(4)[None], 100.0, 200, 100)
    camera.lens = torch.tensor([2])
    assert Viewpoint.of(camera, 0).fov == pytest.approx(math.pi / 2)


@given(seeds)
def test_orbit_controls_keep_the_pose(seed: int) -> None:
    rng = np.random.default_rng(seed)
    meeting = rays_meet(ball_scene(8, 3).cameras)
    pose = torch.tensor(np.concatenate([rotation(rng), rng.normal(size=(3, 1))], 1))
    position, look_at, up = (np.array(v) for v in orbit(pose, meeting))
    z = (position - look_at) / np.linalg.norm(position - look_at)
    x = np.cross(up, z)
    assert_close(np.stack([x, np.cross(z, x), z, position], 1), pose)


# pictures


@given(seeds)
def test_rays_are_clipped_to_the_box_as_points_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(-1, 0, 3)
    high = low + rng.uniform(0.3, 1.5, 3)
    origins, directions = rng.uniform(-2, 2, (20, 3)), rng.normal(size=(20, 3))
    directions[:6, rng.integers(3)] = 0.0
    o, d = torch.tensor(origins), torch.tensor(directions)
    one = torch.ones(20, dtype=torch.float64)
    rays, meets = clip_to_box(Rays(o, d, d, 0.1 * one, 3 * one, one, torch.arange(20)), torch.tensor(low), torch.tensor(high))
    t = np.linspace(0.1, 3, 2001)
    for ray in range(20):
        points = origins[ray] + t[:, None] * directions[ray]
        inside = ((low < points) & (points < high)).all(1)
        between = (t > float(rays.near[ray])) & (t < float(rays.far[ray])) & bool(meets[ray])
        assert np.count_nonzero(between != inside) <= 2


def test_a_picture_shows_colour_depth_opacity_normals_over_a_background() -> None:
    scene, method = ball_scene(), Ball()
    camera = Viewpoint.of(scene.cameras, 1).camera(64 * 64)
    height, width = int(camera.height[0]), int(camera.width[0])
    middle = (height // 2, width // 2)
    frames = {q: draw(method, scene, camera, Wish(q, (0.2, 0.4, 0.6)), 999) for q in ("rgb", "depth", "opacity", "normal")}
    for quantity, frame in frames.items():
        assert frame is not None and frame.image.shape == (height, width, 3)
        assert frame.depth[middle] == pytest.approx(3, abs=0.01) and math.isinf(frame.depth[0, 0])
        assert frame.image[0, 0].tolist() == ([0, 0, 0] if quantity == "opacity" else [51, 102, 153])
    rgb, normal, opacity, depth = (frames[q].image.astype(int) for q in ("rgb", "normal", "opacity", "depth"))  # type: ignore[union-attr]
    inside = frames["rgb"].depth < 3.3  # type: ignore[union-attr]
    assert np.abs(rgb - normal)[inside].max() <= 4
    assert (opacity[inside] == 255).all()
    assert depth[middle].sum() < depth[inside].reshape(-1, 3).sum(1).max()
    black = Scene("b", "t", scene.cameras, 2.0, 6.0, scene.splits, background="black")
    assert draw(method, black, camera, Wish(), 999).image[0, 0].tolist() == [0, 0, 0]  # type: ignore[union-attr]


def test_a_point_of_the_picture_is_a_point_of_the_scene() -> None:
    scene = ball_scene()
    frame = draw(Ball(), scene, Viewpoint.of(scene.cameras, 2).camera(10_000), Wish(), 4096)
    assert frame is not None
    point = frame.point(0.45, 0.6)
    assert point is not None and float(point.norm()) == pytest.approx(1, abs=1e-3)
    place, _ = frame.camera.project(torch.tensor([0]), point[None])
    assert_close(place[0] / torch.tensor([frame.depth.shape[1], frame.depth.shape[0]]), [0.45, 0.6], 0.02)
    assert frame.point(0, 0) is None and frame.point(1, 1) is None


@pytest.mark.parametrize("distance", [1.6, 2.5, 4.0, 9.0])
def test_an_object_is_whole_from_near_and_from_far(distance: float) -> None:
    """Also where the distances that training cameras look at, 2 to 6, would cut it."""
    pose = torch.tensor(around(0.4, 0.3))[:3]
    pose[:, 3] *= distance / 4
    frame = draw(Ball(), ball_scene(), Viewpoint.at(pose, 0.5, 1.0).camera(441), Wish(), 999)
    assert frame is not None and frame.depth[10, 10] == pytest.approx(distance - 1, abs=0.02)


def test_a_crop_box_cuts_the_field() -> None:
    scene, method = ball_scene(), Ball()
    camera = Viewpoint.of(scene.cameras, 0).camera(32 * 32)  # from +x
    whole = draw(method, scene, camera, Wish(), 500)
    left = draw(method, scene, camera, Wish(box=((-2, -2, -2), (2, 0, 2))), 500)
    front = draw(method, scene, camera, Wish(box=((0.5, -2, -2), (2, 2, 2))), 500)
    away = draw(method, scene, camera, Wish(box=((5, 5, 5), (6, 6, 6))), 500)
    assert whole and left and front and away
    seen = np.isfinite(whole.depth)
    half = seen.shape[1] // 2
    assert np.isfinite(left.depth)[:, : half - 1].sum() == seen[:, : half - 1].sum() > 50
    assert not np.isfinite(left.depth)[:, half + 1 :].any()
    assert 0 < np.isfinite(front.depth).sum() < seen.sum()
    assert (away.image == 255).all()


def test_a_picture_is_left_between_chunks() -> None:
    scene, method = ball_scene(), Ball()
    assert draw(method, scene, scene.cameras[0], Wish(), 100, stop=lambda: len(method.chunks) >= 2) is None
    assert method.chunks[-2:] == [100, 100]


class Wall(Ball):
    """An opaque wall at z = -3 of a scene in NDC, whose rays reach it at t = 2/3."""

    def render(self, batch: Batch) -> Rendering:
        one = torch.ones(len(batch))
        assert batch.rays is not None
        assert batch.rays.origins.isfinite().all() and batch.rays.directions.isfinite().all()
        return Rendering(torch.zeros(len(batch), 3), one * 2 / 3, one)


@pytest.mark.parametrize("fov", [0.5, 1.2])
def test_a_forward_facing_field_looks_the_same_through_any_lens(fov: float) -> None:
    scene = procedural.load("procedural:forward-facing", procedural.Config(size=12, views=3, samples=1))
    turn = torch.tensor([[0.9553, 0, 0.2955, 0.1], [0, 1, 0, -0.2], [-0.2955, 0, 0.9553, 0.3]])
    camera = Viewpoint.at(turn, fov, 1.5).camera(600)
    frame = draw(Wall(), scene, camera, Wish(), 1000)
    assert frame is not None
    points = [frame.point(x, y) for x, y in ((0.1, 0.2), (0.5, 0.5), (0.9, 0.3))]
    assert all(point is not None and float(point[2]) == pytest.approx(-3, abs=1e-3) for point in points)
    pixels = torch.arange(600)
    width = int(camera.width[0])
    world = camera.rays(torch.zeros_like(pixels), pixels % width, pixels // width, 0.0, 1.0)
    warped = scene.rays(torch.zeros_like(pixels), pixels % width, pixels // width, camera)
    t = torch.full((600, 1), 0.4)
    back = from_ndc(warped.origins + t * warped.directions, *scene.ndc_by(torch.device("cpu")))
    along = torch.nn.functional.normalize(back - world.origins, dim=-1)
    assert_close(along, world.viewdirs, 1e-4)


def test_what_looks_away_from_a_forward_facing_scene_is_background() -> None:
    scene = procedural.load("procedural:forward-facing", procedural.Config(size=12, views=3, samples=1))
    behind = torch.tensor([[-1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]])
    frame = draw(Wall(), scene, Viewpoint.at(behind, 1.0, 1.0).camera(400), Wish(background=(0, 1, 0)), 1000)
    assert frame is not None and (frame.image == [0, 255, 0]).all() and not np.isfinite(frame.depth).any()


def test_a_photo_lies_exactly_over_its_view() -> None:
    scene = ball_scene()
    shown, known = photo(scene, 3, scene.cameras[3])
    assert known.all() and torch.equal(shown, scene.image(3))
    turned = scene.cameras[3]
    turned.c2w = scene.cameras.c2w[[3]].clone()
    turned.c2w[0, :, :3] = (
        torch.tensor(np.asarray(viser.transforms.SO3.exp(np.array([0, 0, 0.1])).as_matrix()), dtype=torch.float32)
        @ (scene.cameras.c2w[3, :, :3])
    )
    other, seen = photo(scene, 3, turned)
    assert 0.5 < float(seen.float().mean()) < 1
    truth = draw(Ball(), scene, turned, Wish(), 999)
    assert truth is not None
    close = (other - torch.from_numpy(truth.image) / 255).abs().amax(-1)[seen]
    assert float((close < 0.1).float().mean()) > 0.9


def test_photo_and_picture_are_compared() -> None:
    scene, method = ball_scene(), Ball()
    same = draw(method, scene, scene.cameras[2], Wish(photo=2, share=0.5), 999)
    assert same is not None and same.psnr is not None and same.psnr > 50
    other = draw(method, scene, scene.cameras[2], Wish(photo=3, share=1.0), 999)
    assert other is not None and (other.psnr is None or other.psnr < 40)
    scene.pixels = torch.zeros_like(scene.stored_pixels)
    half = draw(method, scene, scene.cameras[2], Wish(photo=2, share=0.5), 999)
    assert half is not None
    width = half.image.shape[1]
    assert (half.image[:, : width // 2] == 0).all() and (half.image[0, width // 2 :] == 255).all()
    alone = draw(None, scene, scene.cameras[2], Wish(photo=2, share=1.0), 999)
    assert alone is not None and (alone.image == 0).all() and alone.psnr is None


# pacing


def stand(x: float) -> Viewpoint:
    return Viewpoint((x, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), 1.0, 1.0)


def test_pictures_grow_from_what_movement_allows_to_what_patience_allows() -> None:
    pace, sight = Pace(100_000), Sight(stand(0), most=10**6, seconds=4.0)
    sizes = []
    while (size := sight.next_size(pace)) is not None:
        sizes.append(size)
        sight.drawn = size
    assert sizes[0] == round(100_000 * MOVING) and sizes[-1] == 400_000
    assert all(b <= 8 * a for a, b in zip(sizes, sizes[1:], strict=False)) and len(sizes) <= 4
    sight.drawn = 0
    sight.most = 5000
    assert sight.next_size(pace) == 5000
    sight.drawn = 5000
    assert sight.next_size(pace) is None


@given(st.floats(1e3, 1e7), st.floats(1e3, 1e7))
def test_the_pace_is_learned(start: float, true: float) -> None:
    pace = Pace(start)
    for _ in range(30):
        pixels = pace.pixels(0.1)
        pace.learn(pixels, pixels / true)
    assert pace.rate == pytest.approx(true, rel=0.01)
    assert pace.pixels(1e-9) == LEAST_PIXELS


def frame(pixels: int) -> Frame:
    return Frame(np.zeros((1, pixels, 3), np.uint8), np.zeros((1, pixels), np.float32), Cameras.pinhole(torch.eye(4)[None], 1.0, pixels, 1))


def test_a_picture_of_what_was_is_shown_but_not_counted() -> None:
    sight = Sight(stand(0))
    version = sight.version
    sight.change(viewpoint=stand(1))
    sight.take(frame(100), version, 1.0)
    assert (sight.drawn, sight.served) == (0, 1.0) and sight.frame is not None
    sight.take(frame(100), sight.version, 2.0)
    assert sight.drawn == 100
    sight.change(viewpoint=stand(1))  # nothing new
    assert sight.drawn == 100


def test_the_least_sharp_browser_is_served_first_and_none_starves() -> None:
    paces = {"rgb": Pace(10_000), "normal": Pace(1000)}
    sights = [Sight(stand(i)) for i in range(3)]
    sights[0].drawn = 5000
    served = []
    for turn in range(6):  # two browsers that never stand still
        found = most_in_need(sights, paces)
        assert found is not None
        served.append(sights.index(found[0]))
        found[0].served = turn + 1.0
    assert served == [1, 2, 1, 2, 1, 2]
    for sight in sights:
        sight.drawn = sight.most
    assert most_in_need(sights, paces) is None


@given(st.lists(st.tuples(st.floats(0.1, 2), st.floats(0.1, 0.9)), min_size=1, max_size=10), st.floats(0.05, 0.9))
def test_drawing_takes_its_share_of_the_time(pictures: list[tuple[float, float]], share: float) -> None:
    ration, now, drawn, begun = Ration(), 0.0, 0.0, 0.0
    for seconds, step in pictures:
        while not ration.allows(now, share):
            now += step
        if not drawn:
            begun = now
        assert drawn <= share * (now - begun) + 1e-9
        ration.spent(now, now + seconds)
        now, drawn = now + seconds, drawn + seconds


# camera paths


def test_key_frames_become_the_path_that_render_reads(tmp_path: Path) -> None:
    poses = [torch.tensor(around(0.3 * i, 0.2 * i)[:3]) for i in range(4)]
    keys = KeyFrames(64, 36, 0.8, 2.5, poses)
    file = tmp_path / "path.json"
    file.write_text(keys.to_json("ball"))
    scene = ball_scene(8, 3)
    path, look = make_path(str(file), scene.cameras)
    assert look is None and len(path) == keys.frames == 75
    assert_close(path.c2w, keys.path())
    assert_close(path.c2w[[0, -1]], torch.stack([poses[0], poses[-1]]))
    mine = keys.cameras()
    for name in ("fx", "fy", "cx", "cy", "width", "height"):
        assert_close(getattr(path, name).float(), getattr(mine, name).float())
    again = KeyFrames.from_json(file.read_bytes(), scene.cameras)
    assert (again.width, again.height, again.frames) == (64, 36, 75)
    assert again.fov == pytest.approx(0.8, abs=1e-6)
    assert_close(torch.stack(again.poses), torch.stack(poses))


def test_the_path_of_another_scene_is_refused(tmp_path: Path) -> None:
    scene = ball_scene(8, 3)
    mine = KeyFrames(64, 36, 0.8, 2.5, [torch.tensor(around(0.3, 0.2)[:3])])
    with pytest.raises(SceneError, match=r"^mine.json is a path through the scene 'ball', not through 'lego'"):
        KeyFrames.from_json(mine.to_json("ball").encode(), scene.cameras, "mine.json", "lego")
    far = torch.tensor(around(0.3, 0.2)[:3])
    far[:, 3] *= 20
    nameless = tmp_path / "far.json"
    nameless.write_text(KeyFrames(64, 36, 0.8, 2.5, [far]).to_json("ball").replace('"scene": "ball",', ""))
    with pytest.warns(UserWarning, match="21 times as far away as the scene's cameras"):
        make_path(str(nameless), scene.cameras, scene="ball")


def test_what_is_no_path_is_refused_by_its_name() -> None:
    with pytest.raises(SceneError, match=r"^mine.json is not a camera path"):
        KeyFrames.from_json(b"{", ball_scene(8, 3).cameras, "mine.json")
    with pytest.raises(SceneError, match="no key frame"):
        KeyFrames(8, 8, 1.0).path()


# the server, and a browser that is made up


@dataclass
class Control:
    """A control, a node of the scene, or a folder."""

    value: Any = None
    content: str = ""
    visible: bool = True

    def __post_init__(self) -> None:
        self.calls: list[Any] = []

    def on_update(self, call: Any) -> Any:
        self.calls.append(call)
        return call

    on_click = on_upload = on_update

    def use(self, value: Any = None) -> None:
        self.value = self.value if value is None else value
        for call in self.calls:
            call(SimpleNamespace(target=self))

    def remove(self) -> None:
        self.visible = False

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Controls(dict[str, Control]):
    """A gui or a scene: remembers what was added by its label."""

    def __getattr__(self, name: str) -> Any:
        def add(label: str, *args: Any, **options: Any) -> Control:
            value = args[3] if name in ("add_slider", "add_multi_slider") else args[0] if args else None
            control = Control(options.get("initial_value", value), visible=options.get("visible", True))
            self[label] = control
            return control

        return add


class Browser:
    """What the panel uses of viser's client."""

    def __init__(self, client_id: int, viewpoint: Viewpoint) -> None:
        self.client_id, self.gui = client_id, Controls()
        self.scene: Any = Controls()
        self.pictures: list[np.ndarray] = []
        self.files: dict[str, bytes] = {}
        self.notes: list[str] = []
        self.clicked: Any = None
        self.scene.set_background_image = lambda image, *_, **__: self.pictures.append(image)
        self.scene.on_click = lambda: lambda call: setattr(self, "clicked", call)
        self.scene.remove_click_callback = lambda: None
        self.moves: list[Any] = []
        self.camera = SimpleNamespace(on_update=self.moves.append, look_at=None, up_direction=None)
        self.move(viewpoint)

    def move(self, viewpoint: Viewpoint) -> None:
        self.camera.position, self.camera.wxyz = np.array(viewpoint.position), np.array(viewpoint.wxyz)
        self.camera.fov, self.camera.aspect = viewpoint.fov, viewpoint.aspect
        for call in self.moves:
            call(self.camera)

    def atomic(self) -> Any:
        return contextlib.nullcontext()

    def send_file_download(self, name: str, content: bytes) -> None:
        self.files[name] = content

    def add_notification(self, title: str, body: str, **_: Any) -> None:
        self.notes.append(body)


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    scene = ball_scene()
    with contextlib.closing(Viewer(scene, port=17_007, make_folder=lambda: tmp_path / "video")) as viewer:
        viewer.watch(Ball(), 4096)
        yield viewer


def visit(viewer: Viewer, number: int = 0) -> Browser:
    browser = Browser(number, Viewpoint.of(viewer.scene.cameras, 0))
    viewer._welcome(browser)  # type: ignore[arg-type]
    return browser


def draw_all(viewer: Viewer) -> int:
    count = 0
    while viewer.draw_next():
        count += 1
    return count


def test_the_page_is_served_here_and_beside_a_port_in_use(viewer: Viewer) -> None:
    assert viewer.url == f"http://127.0.0.1:{viewer.port}"
    with urllib.request.urlopen(viewer.url) as page:
        assert page.status == 200 and b"<html" in page.read()
    assert free_port("127.0.0.1", viewer.port) > viewer.port
    start = viewer.server.initial_camera
    assert start.up is not None
    assert_close(np.array(start.position), viewer.scene.cameras.centers[0])


def test_a_connection_that_is_not_used_is_not_reported(viewer: Viewer, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", viewer.port)):
        pass
    with urllib.request.urlopen(viewer.url):  # comes after it
        pass
    assert capfd.readouterr() == ("", "")


def test_hosts_and_ports_that_can_not_be() -> None:
    with pytest.raises(ConfigError, match=r"--host 203.0.113.7"):
        free_port("203.0.113.7", 7007)
    with pytest.raises(ConfigError, match="--port"):
        free_port("127.0.0.1", 70_000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert free_port("127.0.0.1", taken.getsockname()[1]) != taken.getsockname()[1]


def test_a_browser_gets_a_coarse_picture_and_then_sharp_ones(viewer: Viewer) -> None:
    browser = visit(viewer)
    viewer.paces["rgb"].rate = LEAST_PIXELS / MOVING
    browser.gui["longest side"].use(256)
    assert draw_all(viewer) >= 2
    sizes = [picture.shape[0] * picture.shape[1] for picture in browser.pictures]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] and max(browser.pictures[-1].shape) <= 257
    truth = draw(Ball(), viewer.scene, viewer.panels[0].sight.viewpoint.camera(sizes[-1]), Wish(background=(1, 1, 1)), 4096)
    assert truth is not None and np.array_equal(truth.image, browser.pictures[-1])
    assert not viewer.draw_next()
    browser.move(Viewpoint.of(viewer.scene.cameras, 1))
    assert viewer.draw_next() and browser.gui[""].content.startswith(f"{browser.pictures[-1].shape[1]} × ")


def test_several_browsers_each_have_their_own_picture(viewer: Viewer) -> None:
    one, two = visit(viewer, 1), visit(viewer, 2)
    two.move(Viewpoint.of(viewer.scene.cameras, 2))
    two.gui["quantity"].use("opacity")
    draw_all(viewer)
    assert not np.array_equal(one.pictures[-1], two.pictures[-1])
    assert set(np.unique(two.pictures[-1])) == {0, 255}


def test_a_move_interrupts_a_sharp_picture(viewer: Viewer) -> None:
    browser = visit(viewer)
    viewer.draw_next()
    sight = viewer.panels[0].sight
    sharp = viewer.scene
    method = Ball()
    render = method.render

    def moving(batch: Batch) -> Rendering:
        browser.move(Viewpoint.of(sharp.cameras, len(method.chunks) % 5))
        return render(batch)

    method.render = moving
    viewer.watch(method, 4096)
    viewer._draw(sight, 10**6, lambda: sight.drawn == 0)
    assert len(browser.pictures) == 1 and len(method.chunks) <= 2


def test_a_click_on_a_camera_flies_there_and_lays_its_photo_over(viewer: Viewer) -> None:
    browser = visit(viewer)
    browser.scene["/cameras/3"].use()
    there = Viewpoint.of(viewer.scene.cameras, 3)
    assert_close(np.array(browser.camera.position), np.array(there.position))
    browser.move(there)
    draw_all(viewer)
    assert "dB to the photo" in browser.gui[""].content
    assert viewer.panels[0].sight.wish.photo == 3 and browser.gui["photo"].value == 0.5
    browser.move(Viewpoint.of(viewer.scene.cameras, 1))
    assert viewer.panels[0].sight.wish.photo is None
    browser.move(there)
    browser.gui["leave the photo"].use()
    assert viewer.panels[0].sight.wish.photo is None
    browser.gui["frusta"].use(False)
    assert not browser.scene["/cameras/3"].visible


def test_frusta_that_the_browser_stands_in_are_hidden(viewer: Viewer) -> None:
    browser = visit(viewer)
    assert [browser.scene[f"/cameras/{i}"].visible for i in range(5)] == [False, True, True, True, True]
    browser.move(Viewpoint.of(viewer.scene.cameras, 2))
    assert [browser.scene[f"/cameras/{i}"].visible for i in range(5)] == [True, True, False, True, True]
    browser.gui["frusta"].use(False)
    assert not any(browser.scene[f"/cameras/{i}"].visible for i in range(5))


def test_a_clicked_point_becomes_what_the_camera_turns_about(viewer: Viewer) -> None:
    browser = visit(viewer)
    draw_all(viewer)
    browser.gui["choose a point"].use()
    browser.clicked(SimpleNamespace(screen_pos=(0.5, 0.5)))
    assert np.linalg.norm(browser.camera.look_at) == pytest.approx(1, abs=0.01)
    browser.clicked(SimpleNamespace(screen_pos=(0.0, 0.0)))
    assert browser.notes == ["The picture is empty where you clicked."]


def test_the_crop_box_is_shown_and_applied(viewer: Viewer) -> None:
    browser = visit(viewer)
    for axis, (low, high) in {"x": (3.0, 4.0), "y": (3.0, 4.0), "z": (3.0, 5.0)}.items():
        browser.gui[axis].use((low, high))
    assert not browser.scene["/crop"].visible
    browser.gui["crop"].use(True)
    assert browser.scene["/crop"].visible and browser.scene["/crop"].position == (3.5, 3.5, 4.0)
    draw_all(viewer)
    assert (browser.pictures[-1] == 255).all()


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("seconds", math.nan),
        ("longest side", 10**9),
        ("quantity", "x"),
        ("background", (1, 2)),
        ("x", (0.0,)),
        ("x", (math.nan, 1.0)),
    ],
)
def test_what_no_page_can_say_is_not_drawn(viewer: Viewer, control: str, value: Any) -> None:
    browser = visit(viewer)
    browser.gui["crop"].use(True)
    browser.gui[control].use(value)
    sight = viewer.panels[0].sight
    assert sight.most <= 2048**2 and 0.5 <= sight.seconds <= 30 and draw_all(viewer) > 0
    stood = sight.viewpoint
    browser.camera.wxyz = np.zeros(4)
    for move in browser.moves:
        move(browser.camera)
    assert sight.viewpoint == stood


def test_a_path_is_edited_saved_loaded_and_filmed(viewer: Viewer, tmp_path: Path) -> None:
    browser = visit(viewer)
    browser.gui["save"].use()
    assert "no key frame" in browser.notes[-1]
    for view in (0, 1, 2):
        browser.move(Viewpoint.of(viewer.scene.cameras, view))
        browser.gui["add key frame"].use()
    browser.gui["remove the last"].use()
    browser.gui["duration"].use(0.5)
    browser.gui["width"].use(20)
    browser.gui["height"].use(16)
    browser.gui["save"].use()
    keys = KeyFrames.from_json(browser.files["path.json"], viewer.scene.cameras)
    assert (len(keys.poses), keys.frames, keys.width, keys.height) == (2, 15, 20, 16)
    assert browser.scene["/path/0"].visible and "/path/line" in browser.scene
    browser.gui["preview"].use()
    assert_close(np.array(browser.camera.position), viewer.scene.cameras.centers[1], 1e-4)
    other = visit(viewer, 1)
    other.gui["load"].use(SimpleNamespace(name="path.json", content=browser.files["path.json"]))
    assert other.gui["duration"].value == 0.5 and len(viewer.panels[1].editor.keys.poses) == 2  # type: ignore[union-attr]
    other.gui["load"].use(SimpleNamespace(name="bad.json", content=b"[]"))
    assert "bad.json" in other.notes[-1]
    browser.gui["quantities"].value = "rgbb"
    browser.gui["render video"].use()
    assert "did you mean 'rgb'" in browser.notes[-1] and not viewer.jobs
    browser.gui["quantities"].value = "rgb"
    browser.gui["render video"].use()
    viewer.draw_next()
    assert len(browser.files["path.mp4"]) > 500 and len(list((tmp_path / "video" / "rgb").glob("*.png"))) == 15
    browser.gui["render video"].use()
    browser.gui["cancel the video"].use()
    viewer.draw_next()
    assert "cancelled" in viewer.panels[0].editor.status.content  # type: ignore[union-attr]


# while training


def test_training_gives_up_its_share_and_no_more(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of our own: a step takes 30 ms, drawing 10 µs a pixel."""
    clock = [0.0]
    monkeypatch.setattr("nerfit.viewer.server.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    viewer.add_training_controls()
    viewer._reported = math.inf
    method = Ball()
    render = method.render

    def slow(batch: Batch) -> Rendering:
        clock[0] += 1e-5 * len(batch)
        return render(batch)

    method.render = slow
    browser = visit(viewer)

    def train(steps: int, move: bool) -> float:
        before, begun = clock[0], len(method.chunks)
        for step in range(steps):
            if move:
                browser.move(Viewpoint.of(viewer.scene.cameras, step % 5))
            clock[0] += 0.03
            viewer.between_steps(method, 4096, "")
        assert len(method.chunks) > begun
        return 1 - 0.03 * steps / (clock[0] - before)

    assert 0.3 < train(200, move=True) < 0.6
    train(200, move=False)
    assert viewer.panels[0].sight.drawn * 1e-5 < 1.5 * REFRESH
    assert 0.02 < train(6000, move=False) < 1.5 * TRAINING_SHARE


def test_a_paused_training_waits_and_draws(viewer: Viewer) -> None:
    viewer.add_training_controls()
    browser = visit(viewer)
    viewer.paused.value = True
    thread = threading.Thread(target=viewer.between_steps, args=(Ball(), 4096, "step 1"))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive() and browser.pictures
    viewer.paused.value = False
    viewer.awake.set()
    thread.join(5)
    assert not thread.is_alive()


TINY = ["--scene.size=16", "--scene.views=6", "--scene.samples=1", "--scene.test-views=2", "--scene.val-views=1", "--threads=1"]


def nerfit(*argv: Any) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in argv])
    return code, out.getvalue(), err.getvalue()


def test_a_watched_training_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "train",
        "nerf",
        "procedural",
        *TINY,
        "--model.depth=2",
        "--model.width=16",
        "--model.skips",
        "--model.samples=8",
        "--steps=12",
    ]
    words += ["--model.fine-samples=8", "--model.rays=64", "--no-evaluate", "--log.image-every=0"]
    assert nerfit(*words, "--out", "alone")[0] == 0
    browsers: list[Browser] = []

    def watched(self: Viewer, stop: Any = None) -> None:
        assert stop is not None or browsers[0].pictures  # the one that waits after the training ends at once

    welcome = Viewer.add_training_controls

    def with_a_browser(self: Viewer) -> None:
        welcome(self)
        browsers.append(visit(self))

    monkeypatch.setattr(Viewer, "serve", watched)
    monkeypatch.setattr(Viewer, "add_training_controls", with_a_browser)
    code, out, err = nerfit(*words, "--out", "watched", "--viewer", "--port", 17_100)
    assert code == 0 and "12 steps" in out and "viewer: http://127.0.0.1:171" in err and "until Ctrl-C" in err
    (_, one), (_, two) = (load_checkpoint(Path(f) / "checkpoints") or (None, {}) for f in ("alone", "watched"))
    assert one and all(torch.equal(one[name], two[name]) for name in one)


def test_runs_and_scenes_are_viewed_from_the_command_line(blender_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Viewer] = []
    monkeypatch.setattr(Viewer, "serve", lambda self, stop: seen.append(self))
    code, out, _ = nerfit("view", blender_folder, "--port", 17_200)
    assert code == 0 and f"{blender_folder} -> http://127.0.0.1:172" in out and not seen[0].shows_field
    words = [*TINY, "--model.depth=1", "--model.width=8", "--model.skips", "--model.samples=4", "--model.fine-samples=0", "--steps=2"]
    assert nerfit("train", "nerf", "procedural", *words, "--no-evaluate", "--out", "run")[0] == 0
    code, out, _ = nerfit("view", "run", "--json", "--port", 17_200)
    assert code == 0 and '"url": "http://127.0.0.1:172' in out and seen[1].shows_field and seen[1].scene.pixels is not None
    config = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(config.replace("source: procedural", "source: procedural:nothing"))
    code, _, err = nerfit("view", "run", "--port", 17_200)
    assert code == 0 and "without photos" in err and seen[2].scene.pixels is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["view", "/no/where"], "no known scene"),
        (["view", "procedural", "--host", "203.0.113.7"], "--host 203.0.113.7"),
        (["view", "procedural", "--prot", "1"], "did you mean '--port'?"),
        (["train", "nerf", "procedural", *TINY, "--port", "1"], "--viewer is off"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = nerfit(*words)
    assert code == 1 and out == "" and expected in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
