"""Weights that the original NeRF programs saved, as those of the method `nerf`.

nerf-pytorch writes ``{step}.tar`` (both networks' state dictionaries), bmild/nerf ``model_{step}.npy`` and
``model_fine_{step}.npy`` (the arrays of Keras, each layer's matrix [in, out] and bias in turn), and the other nerf-pytorch, krrish94's,
``checkpoint{step}.ckpt`` (state dictionaries of its FlexibleNeRFModel).
"""

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nerfit.errors import RunError
from nerfit.files import read_text

_HEADS = {"feature_linear": "bottleneck", "views_linears.0": "view", "rgb_linear": "rgb", "alpha_linear": "density"}
"""The layers after the trunk, as nerf-pytorch names them and in Keras's order, with our names."""
_ARRAYS = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0] for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
}
"""The only callables that a pickle of arrays may name."""


@dataclass
class OldWeights:
    """Both networks with our names of their tensors, and the step they were saved at."""

    coarse: dict[str, Tensor]
    fine: dict[str, Tensor] | None
    step: int

    def state(self) -> dict[str, Tensor]:
        """The state for `Nerf.load_state_dict`."""
        return {f"{name}.network.{key}": t for name in ("coarse", "fine") for key, t in (getattr(self, name) or {}).items()}

    def flags(self) -> list[str]:
        """The command line of a run with such networks, whose rays and density are those of the original programs."""
        depth, width, inputs, skips = _trunk(self.coarse)
        flags = ["--model.depth", depth, "--model.width", width, "--model.frequencies", _octaves(inputs)]
        if self.fine is None:
            flags += ["--model.fine-samples", 0]
        else:
            fine_depth, fine_width, _, fine_skips = _trunk(self.fine)
            flags += ["--model.fine-depth", fine_depth, "--model.fine-width", fine_width]
            skips = sorted({*skips, *fine_skips})
        flags += ["--model.skips", *skips, "--model.density-activation", "relu", "--scene.pixel-offset", 0.0]
        if "view.weight" in self.coarse:
            flags += ["--model.viewdirs", "--model.view-frequencies", _octaves(self.coarse["view.weight"].shape[1] - width)]
        else:
            flags += ["--model.no-viewdirs"]
        return [str(word) for word in flags]


def read_weights(path: Path) -> OldWeights:
    """The weights in a ``.tar``, ``.ckpt`` or ``.npy`` file (with its fine or coarse companion); nothing in it is executed.

    Raises RunError for anything else.
    """
    readers = {".tar": _read_tar, ".ckpt": _read_ckpt, ".npy": _read_npy}
    if path.suffix not in readers:
        raise RunError(f"{path} is none of the weights that can be imported: a .tar or .ckpt of nerf-pytorch or a .npy of bmild/nerf.")
    try:
        return readers[path.suffix](path)
    except Exception as error:  # a damaged file makes PyTorch, NumPy and pickle raise nearly anything, MemoryError too
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise RunError(f"{path} can't be read as the weights of a NeRF: {reason}.") from error


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_tar(path: Path) -> OldWeights:
    saved = _load(path)
    fine = saved.get("network_fine_state_dict")
    return OldWeights(_from_torch(saved["network_fn_state_dict"]), None if fine is None else _from_torch(fine), int(saved["global_step"]))


def _from_torch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """nerf-pytorch's names to ours; without view directions its density head, and of five outputs the fifth, are unused."""
    state = {name.removeprefix("module."): t.float() for name, t in state.items()}
    depth = sum(re.fullmatch(r"pts_linears\.\d+\.weight", name) is not None for name in state)
    layers = {f"pts_linears.{i}": f"trunk.{i}" for i in range(depth)}
    layers |= {"output_linear": "output"} if "output_linear.weight" in state else _HEADS
    found = {f"{ours}.{part}": state[f"{theirs}.{part}"] for theirs, ours in layers.items() for part in ("weight", "bias")}
    return {name: t[:4] if name.startswith("output.") else t for name, t in found.items()}


def _read_ckpt(path: Path) -> OldWeights:
    saved, config = _load(path), path.with_name("config.yml")
    if config.is_file() and re.search(r"log_sampling_(xyz|dir):\s*false", read_text(config)):
        raise ValueError("its frequencies are evenly spaced (log_sampling false in config.yml), where the method nerf doubles them")
    fine = saved.get("model_fine_state_dict")
    return OldWeights(_from_flexible(saved["model_coarse_state_dict"]), None if fine is None else _from_flexible(fine), int(saved["iter"]))


def _from_flexible(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A FlexibleNeRFModel (krrish94's nerf/models.py) as a network that computes the same.

    Its first two layers have no ReLU between them, so they are one. At a skip the features come before the position. Its feature layer
    ends in a ReLU: it becomes a layer of the trunk, in which one more channel carries the density past it, rectified as
    density is. An encoding without the input itself gets three columns of zeros.
    """
    state = {name.removeprefix("module."): t.double() for name, t in state.items()}
    depth = sum(re.fullmatch(r"layers_xyz\.\d+\.weight", name) is not None for name in state)
    directed = "fc_alpha.weight" in state
    if not depth or "layer1.weight" not in state or not directed and "fc_out.weight" not in state:
        raise ValueError("its network is no FlexibleNeRFModel, the only one of that program that is imported")
    first, bias = state["layer1.weight"], state["layer1.bias"]
    hidden = len(first)
    found = {"trunk.0.weight": state["layers_xyz.0.weight"] @ _with_input(first)}
    found["trunk.0.bias"] = state["layers_xyz.0.weight"] @ bias + state["layers_xyz.0.bias"]
    for i in range(1, depth):
        weight = state[f"layers_xyz.{i}.weight"]
        found[f"trunk.{i}.weight"] = torch.cat([_with_input(weight[:, hidden:]), weight[:, :hidden]], 1)
        found[f"trunk.{i}.bias"] = state[f"layers_xyz.{i}.bias"]
    if not directed:
        return {name: t.float() for name, t in (found | {f"output.{part}": state[f"fc_out.{part}"] for part in ("weight", "bias")}).items()}
    if "layers_dir.1.weight" in state:
        raise ValueError("it has several layers after the direction, where FlexibleNeRFModel has one")
    found = {name: F.pad(t, (0, 1) if t.ndim == 1 else (0, int(name != "trunk.0.weight"), 0, 1)) for name, t in found.items()}
    found[f"trunk.{depth}.weight"] = F.pad(torch.cat([state["fc_feat.weight"], state["fc_alpha.weight"]]), (0, 1))
    found[f"trunk.{depth}.bias"] = torch.cat([state["fc_feat.bias"], state["fc_alpha.bias"]])
    feature, density = torch.eye(hidden + 1).split([hidden, 1])
    found |= {"density.weight": density, "density.bias": torch.zeros(1)}
    found |= {"bottleneck.weight": F.pad(feature, (0, 0, 0, 1)), "bottleneck.bias": torch.zeros(hidden + 1)}
    view = state["layers_dir.0.weight"]
    found["view.weight"] = torch.cat([F.pad(view[:, :hidden], (0, 1)), _with_input(view[:, hidden:])], 1)
    found |= {"view.bias": state["layers_dir.0.bias"]} | {f"rgb.{part}": state[f"fc_rgb.{part}"] for part in ("weight", "bias")}
    return {name: t.float() for name, t in found.items()}


def _with_input(weight: Tensor) -> Tensor:
    """A matrix whose columns are those of a frequency encoding, with columns for the input itself where they are left out."""
    columns = weight.shape[1]
    return F.pad(weight, (3, 0)) if columns and columns % 6 == 0 else weight


def _read_npy(path: Path) -> OldWeights:
    named = re.fullmatch(r"model_(?:fine_)?(\d+)\.npy", path.name)
    if named is None:
        return OldWeights(_from_keras(_read_arrays(path)), None, 0)
    coarse, fine = (path.with_name(f"model_{kind}{named[1]}.npy") for kind in ("", "fine_"))
    return OldWeights(_from_keras(_read_arrays(coarse)), _from_keras(_read_arrays(fine)) if fine.exists() else None, int(named[1]))


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, where only arrays are admitted")
        return _ARRAYS[module, name]


def _read_arrays(path: Path) -> list[np.ndarray]:
    """The list of arrays in a .npy file."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        if not header(file)[2].hasobject:
            raise ValueError("it is one array and no list of them")
        arrays = list(_ArrayUnpickler(file, encoding="latin1").load())
    if not all(isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.ndim == 2 - i % 2 for i, a in enumerate(arrays)):
        raise ValueError("it does not hold a matrix and a bias for each layer")
    return arrays


def _from_keras(arrays: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """The trunk's layers, then bottleneck, view, colour and density, or one output; matrices are transposed."""
    heads = ["output"] if len(arrays[-1]) >= 4 else list(_HEADS.values())
    names = [f"trunk.{i}" for i in range(len(arrays) // 2 - len(heads))] + heads
    found = {}
    for name, matrix, bias in zip(names, arrays[::2], arrays[1::2], strict=True):
        found |= {f"{name}.weight": torch.tensor(matrix.T).float(), f"{name}.bias": torch.tensor(bias).float()}
    return found


def _trunk(network: dict[str, Tensor]) -> tuple[int, int, int, list[int]]:
    """Layers, channels, inputs, and after which layers the inputs join again."""
    sizes = [t.shape for name, t in network.items() if re.fullmatch(r"trunk\.\d+\.weight", name)]
    width, inputs = sizes[0]
    return len(sizes), width, inputs, [i for i, (_, columns) in enumerate(sizes[1:]) if columns == width + inputs]


def _octaves(features: int) -> int:
    """Octaves of a frequency encoding of three coordinates with this number of features."""
    octaves, rest = divmod(features - 3, 6)
    if rest or octaves < 0:
        raise RunError(f"the network takes {features} inputs, which is no frequency encoding of three coordinates.")
    return octaves
