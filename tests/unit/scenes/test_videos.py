"""Videos as scenes: which frames are taken of them, which way up, and what is no video."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nerfit.commands import poses
from nerfit.errors import ConfigError, SceneError
from nerfit.outputs.pictures.video import write_video
from nerfit.scenes import detect_format
from nerfit.scenes.formats import video
from nerfit.scenes.formats.video import SUFFIXES, VideoConfig, extract, frames_to_take, sharpest

SIDE = (64, 48)


pytestmark = pytest.mark.usefixtures("cache")


def frame(number: int, blurred: bool = False) -> np.ndarray:
    """A checkerboard, lost in grey where blurred, beside eight bars, light for the ones of ``number``'s bits; its top left is white."""
    x, y = np.meshgrid(np.arange(SIDE[0]), np.arange(SIDE[1]))
    picture = np.where((x // 4 + y // 4) % 2, 140 if blurred else 220, 120 if blurred else 40)
    bits = np.where((number >> np.arange(8)) & 1, 156, 100)
    picture[:, SIDE[0] // 2 :] = np.repeat(bits, SIDE[1] // 8)[:, None]
    picture[:8, :8] = 255
    return np.repeat(picture[..., None].astype(np.uint8), 3, -1)


def number_of(picture: Path) -> int:
    """Which frame a picture shows."""
    bars = np.asarray(Image.open(picture).convert("L"))[:, SIDE[0] // 2 + 4 :].reshape(8, -1).mean(1)
    return int(((bars > 128) << np.arange(8)).sum())


def clip(path: Path, count: int, fps: float, blurred: Any = lambda number: False) -> Path:
    return write_video(path, (frame(i, blurred(i)) for i in range(count)), fps, crf=4)


def encode(path: Path, count: int, angle: int = 0) -> None:
    """A video of 2 frames a second in the container that the name says, to be turned by ``angle`` degrees when shown."""
    codec = "libvpx" if path.suffix == ".webm" else "mpeg4"
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=2)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *SIDE, "yuv420p", 4_000_000
        if angle:
            stream.set_display_rotation(angle)
        for i in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(i), format="rgb24")))
        container.mux(stream.encode())


# --- Which frames -------------------------------------------------------------------------------------------------


@given(st.integers(1, 20_000), st.floats(0.5, 240), st.one_of(st.none(), st.floats(0.1, 300)), st.integers(3, 500))
def test_numbers_of_frames(count: int, own: float, fps: float | None, most: int) -> None:
    take = frames_to_take(count, count / own, fps, most)
    wanted = 2.0 if fps is None else fps
    assert 1 <= take <= min(count, most)
    if own <= wanted:
        assert take == min(count, most)
    elif fps is not None and count > take and take < most:
        assert take == math.ceil(fps * count / own)
    if fps is None:
        assert take >= min(count, most, 60)


@given(st.integers(1, 200), st.integers(1, 200))
def test_spans_are_even_and_none_is_empty(count: int, take: int) -> None:
    take = min(count, take)

    def flat() -> Iterator[av.VideoFrame]:
        for _ in range(count):
            yield av.VideoFrame(8, 8, "gray")

    numbers = [number for number, _ in sharpest(flat(), count, take)]
    assert len(numbers) == take and all(number * take // count == span for span, number in enumerate(numbers))


def test_no_frame_of_a_slow_video_is_dropped(tmp_path: Path) -> None:
    """At one frame a second, below the two that are taken; each once, in order; a second call decodes nothing."""
    path = clip(tmp_path / "slow.mp4", 20, 1.0)
    frames = extract(path, VideoConfig())
    assert [number_of(f) for f in frames] == list(range(20)) and frames[7].name == "frame_000007.jpg"
    dates = [f.stat().st_mtime_ns for f in frames]
    assert [f.stat().st_mtime_ns for f in extract(path, VideoConfig())] == dates


@pytest.mark.parametrize(("config", "span"), [({"fps": 5.0}, 6), ({"fps": 30.0, "most_frames": 10}, 12), ({}, 2)], ids=str)
def test_the_sharpest_frame_of_each_span_is_taken(config: dict[str, Any], span: int, tmp_path: Path) -> None:
    path = clip(tmp_path / "fast.mp4", 120, 30.0, blurred=lambda number: number % span != span // 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        frames = extract(path, VideoConfig(**config))
    assert [number_of(f) for f in frames] == list(range(span // 2, 120, span))
    assert len(said) == ("most_frames" in config)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mov", "clip.avi", "clip.webm", "clip.gif", "ein Film ü.mp4"])
def test_every_container_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix in (".gif", ".mp4"):
        clip(path, 5, 2.0)
    else:
        encode(path, 5)
    assert detect_format(str(path)) == "video" and path.suffix in SUFFIXES
    assert [number_of(f) for f in extract(path, VideoConfig())] == list(range(5))


@pytest.mark.parametrize("angle", [90, 180, -90])
def test_frames_are_turned_as_the_file_says(angle: int, tmp_path: Path) -> None:
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV can't write the rotation of a video")
    path = tmp_path / "held.mp4"
    encode(path, 3, angle)
    picture = np.asarray(Image.open(extract(path, VideoConfig())[0]).convert("L")).astype(float)
    expected = np.rot90(frame(0)[..., 0], angle // 90).astype(float)
    assert picture.shape == expected.shape and np.abs(picture - expected).mean() < 12


# --- What is no video ---------------------------------------------------------------------------------------------


def sound(path: Path) -> Path:
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        piece = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        piece.sample_rate = 8000
        container.mux(stream.encode(piece))
        container.mux(stream.encode())
    return path


def test_files_that_are_no_videos_are_refused_in_a_sentence(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mp4", 10, 2.0).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 8])
    (tmp_path / "text.mov").write_text("a recipe for soup")
    (tmp_path / "empty.webm").touch()
    sound(tmp_path / "song.mkv")
    for name in ("cut.mp4", "text.mov", "empty.webm", "song.mkv"):
        assert video.detect(str(tmp_path / name))
        with pytest.raises(SceneError, match=name):
            video.load(str(tmp_path / name), video.Config())
    with pytest.raises(SceneError, match="neither"):
        poses.run(poses.Options(source=str(tmp_path / "absent.mp4")))
    for wrong in (VideoConfig(fps=0.0), VideoConfig(fps=math.nan), VideoConfig(most_frames=2)):
        with pytest.raises(ConfigError):
            extract(tmp_path / "whole.mp4", wrong)


def test_what_a_damaged_video_still_shows_is_used(tmp_path: Path) -> None:
    path = tmp_path / "torn.mkv"
    encode(path, 20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert 5 < len(extract(path, VideoConfig())) < 20


@pytest.mark.slow
def test_all_frames_of_the_fern_video_are_posed(data_folder: Path) -> None:
    scene = video.load(str(data_folder / "video" / "fern.mp4"), video.Config(factor=4))
    assert len(scene.view_names) == 20 and scene.name == "fern"


def test_what_is_written_beside_the_frames_need_not_be_unicode(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", 4)
    data = (tmp_path / "a.mp4").read_bytes()
    assert b"Lavf" in data
    (tmp_path / "a.mp4").write_bytes(data.replace(b"Lavf", "Lévf".encode("latin-1")))
    assert len(extract(tmp_path / "a.mp4", VideoConfig())) == 4
