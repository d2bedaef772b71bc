"""Made-up weights of the networks that compare pictures, in files stored like the real ones."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# torchvision's `features`, layer by layer: a number is a convolution to that many channels, "R" a ReLU, "T" a ReLU that LPIPS taps.
ALEX = [64, "T", "P3", 192, "T", "P3", 384, "T", 256, "T", 256, "T"]
VGG = [64, "R", 64, "T", "P2", 128, "R", 128, "T", "P2", 256, "R", 256, "R", 256, "T", "P2",
       512, "R", 512, "R", 512, "T", "P2", 512, "R", 512, "R", 512, "T"]  # fmt: skip
LAYERS: dict[str, list[Any]] = {"alex": ALEX, "vgg": VGG}


def geometry(net: str, index: int) -> tuple[int, int, int]:
    """Kernel, stride and padding of a convolution."""
    return {0: (11, 4, 2), 3: (5, 1, 2)}.get(index, (3, 1, 1)) if net == "alex" else (3, 1, 1)


def save_lpips(net: str, folder: Path) -> Path:
    tensors, channels, tap = {}, 3, 0
    generator = torch.Generator().manual_seed(3)
    for index, layer in enumerate(LAYERS[net]):
        if isinstance(layer, int):
            kernel = geometry(net, index)[0]
            weight = torch.randn(layer, channels, kernel, kernel, generator=generator)
            tensors[f"features.{index}.weight"] = (weight * (2 / (channels * kernel**2)) ** 0.5).half()
            tensors[f"features.{index}.bias"] = (0.1 * torch.randn(layer, generator=generator)).half()
            channels = layer
        elif layer == "T":
            tensors[f"lin{tap}.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
            tap += 1
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{net}.safetensors"
    save_file(tensors, path)
    return path


CLIP = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 16, "patch_size": 8,
    "projection_dim": 10, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
"""Sizes of a small image tower of CLIP."""


def clip_weights() -> dict[str, Tensor]:
    """Its weights by Hugging Face's names."""
    width, hidden, patch = CLIP["hidden_size"], CLIP["intermediate_size"], CLIP["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": ((CLIP["image_size"] // patch) ** 2 + 1, width),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    for i in range(CLIP["num_hidden_layers"]):
        layer = f"encoder.layers.{i}."
        norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
        for name, size in [(f"self_attn.{n}_proj", (width, width)) for n in "qkv"] + [
            ("self_attn.out_proj", (width, width)),
            ("mlp.fc1", (hidden, width)),
            ("mlp.fc2", (width, hidden)),
        ]:
            shapes |= {f"{layer}{name}.weight": size, f"{layer}{name}.bias": size[:1]}
    for norm in norms:
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    generator = torch.Generator().manual_seed(5)
    weights = {f"vision_model.{name}": 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return weights | {"visual_projection.weight": torch.randn(CLIP["projection_dim"], width, generator=generator)}


def save_clip(folder: Path, weights: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    """A folder of a whole CLIP model as Hugging Face lays it out; of the text tower there is one tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file((weights or clip_weights()) | {"text_model.final_layer_norm.weight": torch.ones(3)}, folder / "model.safetensors")
    config = {"model_type": "clip", "projection_dim": CLIP["projection_dim"], "vision_config": CLIP | changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
