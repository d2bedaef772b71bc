"""CLIP's image tower (Radford et al. 2021), a vision transformer: pictures to unit vectors that say what they show."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nerfit.errors import ConfigError, RunError
from nerfit.metrics.networks import PictureMetric, read_weights, with_weights

_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_ACTIVATIONS = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": F.gelu}


@dataclass
class ClipShape:
    """Sizes of a tower by their names in Hugging Face's config.json, whose defaults are those of ViT-B/32."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


class _Embeddings(nn.Module):
    """Patches of a picture [1, 3, size, size], and one token for all of it before them, as vectors that know their place."""

    def __init__(self, s: ClipShape) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(s.hidden_size))
        self.patch_embedding = nn.Conv2d(3, s.hidden_size, s.patch_size, s.patch_size, bias=False)
        self.position_embedding = nn.Embedding((s.image_size // s.patch_size) ** 2 + 1, s.hidden_size)

    def forward(self, x: Tensor) -> Float[Tensor, "1 tokens width"]:
        patches = self.patch_embedding(x).flatten(2).mT
        return torch.cat([self.class_embedding.expand(1, 1, -1), patches], 1) + self.position_embedding.weight


class _Attention(nn.Module):
    """Every token asks all tokens."""

    def __init__(self, s: ClipShape) -> None:
        super().__init__()
        self.heads = s.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(s.hidden_size, s.hidden_size) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    """Attention and a two-layer network on each token, each normalised before and added."""

    def __init__(self, s: ClipShape) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(s.hidden_size, s.layer_norm_eps) for _ in range(2))
        self.self_attn = _Attention(s)
        self.mlp = nn.ModuleDict({
            "fc1": nn.Linear(s.hidden_size, s.intermediate_size),
            "fc2": nn.Linear(s.intermediate_size, s.hidden_size),
        })  # fmt: skip
        self.activation = _ACTIVATIONS[s.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp["fc2"](self.activation(self.mlp["fc1"](self.layer_norm2(x))))


class ClipTower(PictureMetric):
    """The tower with its projection; its state has Hugging Face's names: ``vision_model.*``, ``visual_projection.weight``."""

    smallest = 1

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.size = shape.image_size
        self.vision_model = nn.ModuleDict({
            "embeddings": _Embeddings(shape),
            "pre_layrnorm": nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps),
            "encoder": nn.ModuleDict({"layers": nn.Sequential(*(_Layer(shape) for _ in range(shape.num_hidden_layers)))}),
            "post_layernorm": nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps),
        })  # fmt: skip
        self.visual_projection = nn.Linear(shape.hidden_size, shape.projection_dim, bias=False)

    def embed(self, image: Float[Tensor, "height width 3"]) -> Float[Tensor, "features"]:
        """Unit vector of what a picture in [0, 1] shows; it is stretched to the tower's square with cubic weights first, as in DietNeRF."""
        image = image.to(self.visual_projection.weight)
        x = F.interpolate(image.movedim(-1, 0)[None], (self.size, self.size), mode="bicubic", antialias=True)
        x = (x - image.new_tensor(_MEAN)[:, None, None]) / image.new_tensor(_DEVIATION)[:, None, None]
        model = self.vision_model
        tokens = model["encoder"]["layers"](model["pre_layrnorm"](model["embeddings"](x)))  # pyright: ignore[reportIndexIssue]
        return F.normalize(self.visual_projection(model["post_layernorm"](tokens[0, 0])), dim=-1)

    def difference(self, a: Float[Tensor, "height width 3"], b: Float[Tensor, "rows columns 3"], aligned: bool = True) -> Float[Tensor, ""]:
        """1 - cos of the angle between the pictures' vectors (DietNeRF, section 4), whether they are aligned or not."""
        return 1 - self.embed(a) @ self.embed(b)


def load_clip(source: str) -> ClipTower:
    """The tower of a local folder (config.json and model.safetensors as Hugging Face lays them out), or of a model's name on its hub."""
    config, weights = _from_folder(Path(source)) if Path(source).is_dir() else _from_hub(source)
    config = config.get("vision_config", config)
    shape = ClipShape(**{f.name: config[f.name] for f in fields(ClipShape) if f.name in config})
    if (projection := weights.get("visual_projection.weight")) is not None:
        shape.projection_dim = len(projection)
    if shape.hidden_act not in _ACTIVATIONS:
        raise RunError(f"{source}: the activation '{shape.hidden_act}' is unknown (known: {', '.join(_ACTIVATIONS)}).")
    with torch.device("meta"):
        model = ClipTower(shape)
    return with_weights(model, weights, source, "image tower of a CLIP model")


def _from_folder(folder: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} holds no CLIP model (config.json and model.safetensors as Hugging Face lays them out): {error}."
        ) from error
    return config, read_weights(folder / "model.safetensors", "CLIP", ("vision_model.", "visual_projection."))


def _from_hub(name: str) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    try:
        from transformers import CLIPVisionModelWithProjection  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"there is no folder '{name}' with a CLIP model's config.json and model.safetensors; "
            'to fetch a model of that name from Hugging Face\'s hub: pip install "nerfit[clip]".'
        ) from error
    try:
        model = CLIPVisionModelWithProjection.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise RunError(f"the CLIP model '{name}' is no folder here, and can't be fetched from Hugging Face's hub: {error}") from error
    return model.config.to_dict(), model.float().state_dict()
