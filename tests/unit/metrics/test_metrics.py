import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conftest import DATA
from nerfit.errors import RunError
from nerfit.metrics import lpips, psnr_ssim
from nerfit.metrics.lpips import Lpips, find_weights, load_lpips
from nerfit.metrics.psnr_ssim import mean_psnr, psnr, quantise, ssim
from networks import LAYERS, geometry, save_lpips

NETS = ("alex", "vgg")


def picture(height, width, seed=0):
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_known_error():
    target = torch.full((4, 5, 3), 0.5)
    assert psnr(target + 0.1, target) == pytest.approx(20, abs=1e-5)
    assert psnr(target, target) == math.inf
    assert psnr(torch.full((2, 2, 3), 7.0), torch.ones(2, 2, 3)) == math.inf, "values are clipped"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_psnr_against_a_loop(h, w, seed):
    a, b = 1.4 * picture(h, w, seed) - 0.2, picture(h, w, seed + 1)
    squares = [(min(max(x, 0.0), 1.0) - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
    assert psnr(a, b) == pytest.approx(-10 * math.log10(sum(squares) / len(squares)), rel=1e-9)


def test_psnr_counts_in_float64():
    target = torch.zeros(1000, 1000, 3)
    assert psnr(target + 1e-4, target) == pytest.approx(80, abs=1e-5)
    assert psnr((target + 0.5).half(), target.half()) == pytest.approx(10 * math.log10(4), abs=1e-9)


def test_mean_psnr_is_not_the_psnr_of_the_pooled_error():
    target = torch.full((2, 2, 3), 0.5)
    views = [target + 0.1, target + 0.01]
    assert mean_psnr(views, [target, target]) == pytest.approx(30, abs=1e-4)
    assert psnr(torch.stack(views), torch.stack([target, target])) == pytest.approx(22.967, abs=1e-3)
    with pytest.raises(ValueError, match="argument"):
        mean_psnr(views, [target])


def test_quantise():
    values = torch.tensor([-0.3, 0.0, 0.49 / 255, 0.51 / 255, 0.5, 1.0, 1.2])
    assert quantise(values).tolist() == pytest.approx([0, 0, 0, 1 / 255, 128 / 255, 1, 1])


def slow_ssim(a, b):
    """Wang et al. 2004, equation 13, window by window and channel by channel."""
    taps = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    values = []
    for channel in range(3):
        for y in range(a.shape[0] - 10):
            for x in range(a.shape[1] - 10):
                p, q = a[y : y + 11, x : x + 11, channel], b[y : y + 11, x : x + 11, channel]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return np.mean(values)


@pytest.mark.parametrize(("height", "width"), [(11, 11), (11, 17), (20, 14)])
def test_ssim_against_explicit_windows(height, width):
    a = picture(height, width)
    for b in (0.7 * a + 0.3 * picture(height, width, 1), 1 - a, torch.full_like(a, 0.5)):
        expected = slow_ssim(a.double().numpy(), b.double().numpy())
        assert ssim(a, b) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_equal_and_of_tiny_images():
    a = picture(16, 16)
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert ssim(1 + a, torch.ones_like(a)) == pytest.approx(1, abs=1e-12), "values are clipped"
    assert math.isnan(ssim(a[:10], a[:10])) and math.isnan(ssim(a[:, :10], a[:, :10]))


@pytest.mark.parametrize("strip", [1, 40, 200])
def test_ssim_by_strips_is_that_of_the_whole_picture(monkeypatch, strip):
    a, b = picture(43, 20), picture(43, 20, 1)
    whole = ssim(a, 0.7 * a + 0.3 * b)
    monkeypatch.setattr(psnr_ssim, "_STRIP", strip)
    assert ssim(a, 0.7 * a + 0.3 * b) == pytest.approx(whole, abs=1e-12)


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory):
    """A folder with made-up weights."""
    folder = tmp_path_factory.mktemp("lpips")
    for net in NETS:
        save_lpips(net, folder)
    return folder


def windows(x, kernel, stride):
    """[channels, h, w] -> [channels, h', w', kernel, kernel]."""
    return np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (1, 2))[:, ::stride, ::stride]


def slow_lpips(net, weights, a, b, aligned=True):
    """LPIPS 0.1 in float64, one layer after another; not ``aligned``, of the features' means over the picture."""
    total, features = 0.0, []
    for image in (a, b):
        x = (image.double().numpy() * 2 - 1 - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        x, taps = x.transpose(2, 0, 1), []
        for index, layer in enumerate(LAYERS[net]):
            if isinstance(layer, int):
                kernel, stride, pad = geometry(net, index)
                weight, bias = (weights[f"features.{index}.{part}"].double().numpy() for part in ("weight", "bias"))
                patches = windows(np.pad(x, ((0, 0), (pad, pad), (pad, pad))), kernel, stride)
                x = np.tensordot(weight, patches, ([1, 2, 3], [0, 3, 4])) + bias[:, None, None]
            elif layer[0] == "P":
                x = windows(x, int(layer[1]), 2).max((3, 4))
            else:
                x = np.maximum(x, 0)
                taps += [x] if layer == "T" else []
        features.append(taps)
    for tap, (x, y) in enumerate(zip(*features, strict=True)):
        x, y = (f / (np.sqrt((f**2).sum(0)) + 1e-10) for f in (x, y))
        if not aligned:
            x, y = (f.mean((1, 2), keepdims=True) for f in (x, y))
        weight = weights[f"lin{tap}.weight"].double().numpy()[0, :, 0, 0]
        total += np.einsum("c,chw->hw", weight, (x - y) ** 2).mean()
    return total


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("height", "width"), [(31, 31), (33, 46)])
def test_lpips_against_the_explicit_network(random_weights, net, height, width):
    path = random_weights / f"{net}.safetensors"
    a, b = picture(height, width), picture(height, width, 1)
    assert load_lpips(net, path).distance(a, b) == pytest.approx(slow_lpips(net, load_file(path), a, b), rel=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_pictures_from_different_places_are_compared_by_their_mean_features(random_weights, net):
    path = random_weights / f"{net}.safetensors"
    a, b = picture(33, 46), picture(40, 31, 1)
    expected = slow_lpips(net, load_file(path), a, b, aligned=False)
    assert float(load_lpips(net, path).difference(a, b, aligned=False)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("aligned", [True, False])
def test_the_difference_has_a_gradient(random_weights, aligned):
    """Along a random direction it is the finite difference, in float64."""
    model, direction = load_lpips("alex", random_weights / "alex.safetensors").double(), picture(33, 35, 2).double() - 0.5
    a, b = picture(33, 35).double().requires_grad_(), picture(33, 35, 1).double()
    (gradient,) = torch.autograd.grad(model.difference(a, b, aligned), a)
    with torch.no_grad():
        ahead, behind = (model.difference(a + s * direction, b, aligned) for s in (1e-6, -1e-6))
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-5)
    assert float(model.difference(b, b, aligned)) == 0


@pytest.mark.parametrize("net", NETS)
def test_real_lpips(net):
    path = find_weights(net, DATA / "lpips")
    if path is None:
        pytest.skip(f"no {net}.safetensors in {DATA / 'lpips'} or $NERFIT_LPIPS")
    model, a = load_lpips(net, path), 0.25 + 0.5 * picture(8, 8).repeat_interleave(8, 0).repeat_interleave(8, 1)
    b = picture(64, 64, 1)
    assert model.distance(a, a) == 0
    assert model.distance(a, b) == pytest.approx(model.distance(b, a), rel=1e-5)
    noise = 2 * b - 1
    distances = [model.distance(a, a + s * noise) for s in (0.01, 0.03, 0.1, 0.25)]
    assert distances[0] > 0 and distances == sorted(distances) and distances[-1] < 2
    assert model.distance(torch.zeros(64, 64, 3), torch.ones(64, 64, 3)) > 0.4
    small = picture(32, 32, 4), picture(32, 32, 5)
    assert model.distance(*small) == pytest.approx(slow_lpips(net, load_file(path), *small), rel=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_lpips_of_images_too_small(random_weights, net):
    model = load_lpips(net, random_weights / f"{net}.safetensors")
    side = model.smallest
    assert math.isfinite(model.distance(picture(side, side), picture(side, side, 1)))
    assert math.isnan(model.distance(picture(side - 1, 64), picture(side - 1, 64, 1)))


def test_lpips_draws_no_random_numbers_and_keeps_no_graph(random_weights):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model = load_lpips("alex", random_weights / "alex.safetensors")
    assert torch.equal(torch.rand(3), expected)
    assert isinstance(model, Lpips) and not any(p.requires_grad or p.is_meta for p in model.parameters())
    assert isinstance(model.distance(picture(40, 40).requires_grad_(), picture(40, 40, 1)), float)


def test_unusable_weight_files(random_weights, tmp_path):
    good = load_file(random_weights / "alex.safetensors")
    path = tmp_path / "bad.safetensors"

    def message():
        with pytest.raises(RunError) as caught:
            load_lpips("alex", path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).endswith(".")
        return str(caught.value)

    message()
    for damaged in (b"", b"rubbish" * 10, (random_weights / "alex.safetensors").read_bytes()[:-100]):
        path.write_bytes(damaged)
        message()
    save_file({k: v for k, v in good.items() if k != "lin3.weight"}, path)
    assert "lin3.weight is missing" in message()
    save_file(good | {"features.3.bias": torch.zeros(7)}, path)
    assert "features.3.bias is [7]" in message()
    save_file(good | {"features.6.weight": torch.full_like(good["features.6.weight"], math.nan)}, path)
    assert "features.6.weight" in message()
    path = random_weights / "vgg.safetensors"
    assert "alex" in message()


def test_where_weights_are_searched(tmp_path, monkeypatch):
    given, named, cache, home = (tmp_path / n for n in ("given", "named", "cache", "home"))
    monkeypatch.setenv("NERFIT_LPIPS", str(named))
    monkeypatch.setenv("NERFIT_CACHE", str(cache))
    monkeypatch.setattr(Path, "home", lambda: home)
    assert find_weights("vgg", given) is None and find_weights("vgg") is None
    files = [home / ".cache" / "nerfit" / "lpips", cache / "lpips", named, given]
    for folder in files:
        folder.mkdir(parents=True)
        (folder / "vgg.safetensors").touch()
    assert find_weights("vgg", given) == given / "vgg.safetensors"
    assert find_weights("vgg") == find_weights("vgg", tmp_path) == named / "vgg.safetensors"
    assert find_weights("alex", given) is None
    monkeypatch.delenv("NERFIT_LPIPS")
    assert find_weights("vgg") == cache / "lpips" / "vgg.safetensors"
    monkeypatch.delenv("NERFIT_CACHE")
    assert find_weights("vgg") == home / ".cache" / "nerfit" / "lpips" / "vgg.safetensors"


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("height", "width"), [(70, 35), (37, 64)])
def test_lpips_by_strips_is_that_of_the_whole_picture(net, aligned, height, width, random_weights, monkeypatch):
    model = load_lpips(net, random_weights / f"{net}.safetensors").double()
    a, b = picture(height, width).double().requires_grad_(), picture(height, width, 1).double()
    values, gradients = [], []
    for strip in (1 << 40, 1, 5000):
        monkeypatch.setattr(lpips, "_STRIP", strip)
        values.append(value := model.difference(a, b, aligned))
        gradients.append(torch.autograd.grad(value, a)[0])
    assert values[0] > 0
    for value, gradient in zip(values[1:], gradients[1:], strict=True):
        torch.testing.assert_close(value, values[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-9, atol=1e-12)
