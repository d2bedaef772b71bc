"""nerfit doctor: versions, devices, kernels and missing extras."""

import importlib.metadata
import platform
import sys
import warnings
from dataclasses import dataclass
from typing import Any

from nerfit import __version__
from nerfit.commands.options import Common

_NEEDED = (
    *("torch", "numba", "numpy", "pillow", "scikit-image", "tyro", "pyyaml", "safetensors", "rich", "tensorboard", "av", "pycolmap"),
    *("viser", "websockets", "jaxtyping", "pi-heif"),
)
_ABSENT = {"pycolmap": "missing (no wheels for Linux ARM64): posed scenes and --scene.format unposed work without"}
_EXTRAS = {
    "mesh": (("trimesh", "fast-simplification", "xatlas"), "meshes with textures, with fewer triangles, or as .glb"),
    "wandb": (("wandb",), "logging to Weights & Biases"),
    "clip": (("transformers",), "CLIP from Hugging Face's hub"),
    "cluster": (("ray",), "many jobs, blocks and frames on Ray"),
}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kernels(device: Any) -> str:
    """The implementation of the kernels that runs here."""
    from nerfit.kernels.dispatch import backend

    kind = backend(device)
    if kind != "cpu":
        return {"triton": "Triton", "reference": "plain PyTorch"}[kind]
    from nerfit.kernels.cpu.amx import has_tiles

    return f"Numba on plain threads, {'bfloat16 tiles (AMX) where precision allows' if has_tiles() else 'float32 vectors'}"


@dataclass
class Options(Common):
    """nerfit doctor: versions, devices, kernels in use, and missing extras with the command that installs them."""


def run(options: Options) -> dict[str, str]:
    """Versions, devices, kernels in use, missing extras and how to get them, as label and text."""
    import torch

    from nerfit.metrics.lpips import find_weights
    from nerfit.outputs.pictures.video import find_encoder
    from nerfit.training.devices import devices, free_memory, pick_device

    lines = {
        "nerfit": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.machine()}",
    }
    for package in _NEEDED:
        lines[package] = _version(package) or _ABSENT.get(package, "missing: pip install nerfit again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its reason is in the table
        device = pick_device("auto")
    for name, reason in devices().items():
        what = f"{torch.cuda.get_device_name(name)}: " if name.startswith("cuda:") else ""
        lines[f"device {name}"] = what + (f"left alone, for {reason}" if reason else "usable")
    lines["device in use"] = f"{device}, {free_memory(device) / 2**30:.1f} GiB free"
    lines["threads"] = str(torch.get_num_threads())
    lines["cpu instructions"] = torch.backends.cpu.get_cpu_capability()
    lines["kernels"] = _kernels(device)
    lines["video"] = find_encoder() or "no H.264 encoder in PyAV: videos become GIFs"
    for net in ("vgg", "alex"):
        lines[f"lpips {net}"] = str(find_weights(net) or f"no weights: put {net}.safetensors into a folder and set NERFIT_LPIPS to it")
    for extra, (packages, what) in _EXTRAS.items():
        found = {package: _version(package) for package in packages}
        versions = ", ".join(f"{package} {version}" for package, version in found.items())
        lines[f"extra {extra}"] = versions if all(found.values()) else f'not installed ({what}): pip install "nerfit[{extra}]"'
    return lines


def text(answer: dict[str, str]) -> str:
    """A line for each fact."""
    return "\n".join(f"{key:22} {value}" for key, value in answer.items())
