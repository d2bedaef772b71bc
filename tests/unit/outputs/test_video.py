import signal
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from nerfit.errors import RunError
from nerfit.outputs.pictures import video
from nerfit.outputs.pictures.video import write_video


def ramps(count, height, width):
    """Smooth frames whose blue tells the time."""
    y, x = np.mgrid[:height, :width]
    for i in range(count):
        yield np.stack([x / width, y / height, np.full((height, width), i / count)], -1)


def decode(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 97), (33, 64)])
def test_mp4_round_trip(tmp_path, height, width):
    path = write_video(tmp_path / "new" / "a.mp4", ramps(12, height, width), fps=24)
    frames = decode(path)
    assert len(frames) == 12
    for got, sent in zip(frames, ramps(12, height, width), strict=True):
        assert got.shape == (height + height % 2, width + width % 2, 3)
        assert np.abs(got[:height, :width] / 255 - sent).mean() < 0.012
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 24)
        assert stream.duration is not None and stream.time_base is not None
        assert stream.duration * stream.time_base == Fraction(12, 24)
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_odd_sides_repeat_the_edge(tmp_path):
    frame = np.zeros((33, 33, 3), np.uint8)
    frame[-2:], frame[:, -2:] = 255, 255
    padded = decode(write_video(tmp_path / "a.mp4", [frame] * 3))[1]
    assert padded.shape == (34, 34, 3) and padded[-1].min() > 240 and padded[:, -1].min() > 240 and padded[:30, :30].max() < 15


def test_pure_colours_survive(tmp_path):
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)])
    frames = [torch.tensor(c / 255).expand(32, 32, 3) for c in colours]
    for got, colour in zip(decode(write_video(tmp_path / "a.mp4", frames, fps=5)), colours, strict=True):
        assert np.abs(got[8, 8].astype(int) - colour).max() <= 6


def test_the_same_frames_make_the_same_file(tmp_path):
    rng = np.random.default_rng(0)
    frames = list(rng.integers(0, 255, (7, 100, 100, 3), dtype=np.uint8))
    made = set()
    for _ in range(12):
        rubbish = [np.full(rng.integers(100, 200_000), rng.integers(255), np.uint8) for _ in range(50)]
        del rubbish  # memory that is not zero, for what reads it before writing
        made.add(write_video(tmp_path / "a.mp4", frames).read_bytes())
    assert len(made) == 1


def test_the_index_comes_before_the_pictures(tmp_path):
    data = write_video(tmp_path / "a.mp4", ramps(3, 32, 32)).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "browsers start an mp4 only after its index"


def test_frames_are_taken_as_they_come(tmp_path):
    frames, most = [], 0

    def watched():
        nonlocal most
        for i in range(100):
            frame = np.full((16, 16, 3), i, np.uint8)
            frames.append(weakref.ref(frame))
            most = max(most, sum(ref() is not None for ref in frames))
            yield frame

    write_video(tmp_path / "a.mp4", watched())
    assert len(frames) == 100 and most <= 5


def test_a_colon_in_the_name_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(decode(f"file:{write_video(tmp_path / 'http:a.mp4', ramps(2, 16, 16))}")) == 2


def test_gif_without_an_encoder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(video, "H264_ENCODERS", ("no such encoder",))
    path = write_video(tmp_path / "a.mp4", ramps(4, 31, 45), fps=10)
    assert path == tmp_path / "a.gif" and str(path) in capsys.readouterr().out
    with Image.open(path) as image:
        assert (getattr(image, "n_frames", 1), image.size, image.info["duration"], image.info["loop"]) == (4, (45, 31), 100, 0)
        for i, sent in enumerate(ramps(4, 31, 45)):
            image.seek(i)
            assert np.abs(np.asarray(image.convert("RGB")) / 255 - sent).mean() < 0.06


def test_a_gif_may_be_asked_for(tmp_path, capsys):
    assert write_video(tmp_path / "a.gif", ramps(2, 8, 8)) == tmp_path / "a.gif" and not capsys.readouterr().out


def test_unusable_frames(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(RunError, match="no frames"):
        write_video(path, [])
    for second in (np.zeros((8, 10, 3)), np.zeros((8, 8)), np.zeros((8, 8, 4))):
        with pytest.raises(RunError, match="frames of"):
            write_video(path, [np.zeros((8, 8, 3)), second])

    def failing():
        yield np.zeros((8, 8, 3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(path, failing())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
@pytest.mark.parametrize("count", [3, 60])
def test_a_full_disk_is_a_run_error(tmp_path, name, count):
    resource = pytest.importorskip("resource", reason="file size limits are a POSIX matter")
    rng = np.random.default_rng(0)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        with pytest.raises(RunError, match=name):
            write_video(tmp_path / name, (rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(count)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
