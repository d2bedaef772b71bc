"""CLIP's image tower against its formulas in float64, against Hugging Face's own where it is installed, and files that are not one."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nerfit.errors import ConfigError, NerfitError, RunError
from nerfit.metrics.clip import ClipTower, load_clip
from networks import CLIP, clip_weights, save_clip


def picture(height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def tower(folder: Path) -> ClipTower:
    return load_clip(str(folder))


def slow_embedding(image: Tensor, activation: str) -> np.ndarray:
    """The tower of CLIP's size, token by token and head by head."""
    w = {name: t.double().numpy() for name, t in clip_weights().items()}
    x = (image.double().numpy() - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    patch, heads = CLIP["patch_size"], CLIP["num_attention_heads"]

    def norm(v: np.ndarray, name: str) -> np.ndarray:
        v = (v - v.mean()) / np.sqrt(v.var() + CLIP["layer_norm_eps"])
        return v * w[f"vision_model.{name}.weight"] + w[f"vision_model.{name}.bias"]

    def linear(v: np.ndarray, name: str) -> np.ndarray:
        return w[f"vision_model.{name}.weight"] @ v + w[f"vision_model.{name}.bias"]

    def activate(v: float) -> float:
        return v / (1 + math.exp(-1.702 * v)) if activation == "quick_gelu" else 0.5 * v * (1 + math.erf(v / math.sqrt(2)))

    kernel = w["vision_model.embeddings.patch_embedding.weight"]
    tokens = [w["vision_model.embeddings.class_embedding"]]
    for top in range(0, len(x), patch):
        for left in range(0, len(x), patch):
            tokens.append(np.einsum("oiyx,yxi->o", kernel, x[top : top + patch, left : left + patch]))
    tokens = [t + place for t, place in zip(tokens, w["vision_model.embeddings.position_embedding.weight"], strict=True)]
    tokens = [norm(t, "pre_layrnorm") for t in tokens]
    for i in range(CLIP["num_hidden_layers"]):
        at = f"encoder.layers.{i}."
        inner = [norm(t, at + "layer_norm1") for t in tokens]
        q, k, v = ([linear(t, f"{at}self_attn.{n}_proj").reshape(heads, -1) for t in inner] for n in "qkv")
        for n, token in enumerate(tokens):
            heard = []
            for h in range(heads):
                scores = np.array([q[n][h] @ k[m][h] / math.sqrt(len(q[n][h])) for m in range(len(tokens))])
                share = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
                heard.append(sum(share[m] * v[m][h] for m in range(len(tokens))))
            tokens[n] = token + linear(np.concatenate(heard), f"{at}self_attn.out_proj")
        for n, token in enumerate(tokens):
            hidden = np.array([activate(y) for y in linear(norm(token, at + "layer_norm2"), f"{at}mlp.fc1")])
            tokens[n] = token + linear(hidden, f"{at}mlp.fc2")
    out = w["visual_projection.weight"] @ norm(tokens[0], "post_layernorm")
    return out / np.linalg.norm(out)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_tower_against_its_formulas(tmp_path: Path, activation: str) -> None:
    tower = load_clip(str(save_clip(tmp_path / "clip", hidden_act=activation)))
    assert tower.embed(picture()).numpy() == pytest.approx(slow_embedding(picture(), activation), abs=1e-5)


def test_difference_is_one_minus_the_cosine(tower: ClipTower) -> None:
    a, b = picture(), picture(seed=1)
    x, y = slow_embedding(a, "quick_gelu"), slow_embedding(b, "quick_gelu")
    for aligned in (True, False):
        assert float(tower.difference(a, b, aligned)) == pytest.approx(1 - x @ y, abs=1e-5)
    assert abs(float(tower.difference(a, a))) < 1e-5


def test_pictures_of_any_size_are_used_whole(tower: ClipTower) -> None:
    small = picture(4, 6)
    large = small.repeat_interleave(20, 0).repeat_interleave(30, 1)
    twice, half, other = large.repeat_interleave(2, 1), large[:, :90], picture(4, 6, 1)
    same, *apart = (float(tower.difference(large, seen)) for seen in (twice, half, other))
    assert abs(same) < 0.1 * min(apart), "what is left out of a picture is missed"


def test_gradients_reach_the_picture_alone(tower: ClipTower) -> None:
    a = picture(9, 12).requires_grad_()
    tower.difference(a, picture(seed=1)).backward()
    assert a.grad is not None and a.grad.abs().min() > 0
    assert not any(p.requires_grad or p.is_meta for p in tower.parameters())


def test_hugging_faces_own_tower_says_the_same(folder: Path, tower: ClipTower, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(**CLIP)
    theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    left = theirs.load_state_dict(clip_weights(), strict=False)
    assert not left.unexpected_keys and all("position_ids" in key for key in left.missing_keys)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    with torch.no_grad():
        seen = theirs(pixel_values=((picture().movedim(-1, 0) - mean) / deviation)[None]).image_embeds[0]
    assert torch.allclose(tower.embed(picture()), torch.nn.functional.normalize(seen, dim=0), atol=1e-5)
    theirs.save_pretrained(tmp_path / "saved")
    ours = load_clip(str(tmp_path / "saved"))
    assert torch.allclose(ours.embed(picture()), tower.embed(picture()), atol=1e-6)
    from nerfit.metrics.clip import _from_hub

    weights = _from_hub(str(tmp_path / "saved"))[1]
    assert all(torch.equal(weights[name], value) for name, value in clip_weights().items())


def refusal(source: Path | str) -> str:
    with pytest.raises(NerfitError) as caught:
        load_clip(str(source))
    message = str(caught.value)
    assert str(source) in message and "\n" not in message and message.endswith(".")
    return message


def test_a_missing_tower_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="pip install"):
        load_clip("openai/clip-vit-base-patch32")
    assert "no folder 'nowhere'" in refusal("nowhere")


def test_unusable_folders(folder: Path, tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "can't be read as CLIP weights" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[")
    assert "config.json" in refusal(tmp_path)
    good, layer = clip_weights(), "vision_model.encoder.layers.1.mlp.fc1.bias"
    save_clip(tmp_path, {name: t for name, t in good.items() if name != layer})
    assert f"{layer} is missing" in refusal(tmp_path)
    save_clip(tmp_path, good | {layer: torch.zeros(3)})
    assert f"{layer} is [3], expected [40]" in refusal(tmp_path)
    save_clip(tmp_path, good | {layer: torch.full((40,), math.nan)})
    assert "not finite" in refusal(tmp_path)
    assert "activation 'silu'" in refusal(save_clip(tmp_path, hidden_act="silu"))
    with pytest.raises(RunError):
        load_clip(str(save_clip(tmp_path, num_hidden_layers=3)))
