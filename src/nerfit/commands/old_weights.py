"""Weights that the original NeRF programs saved, as those of the method `nerf`.

nerf-pytorch writes ``{step}.tar`` (both networks' state dictionaries), bmild/nerf ``model_{step}.npy`` and
``model_fine_{step}.npy`` (the arrays of Keras, each layer's matrix [in, out] and bias in turn).
"""

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfit.errors import RunError

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
    """The weights in a ``.tar`` or ``.npy`` file (with its fine or coarse companion); nothing in it is executed.

    Raises RunError for anything else.
    """
    readers = {".tar": _read_tar, ".npy": _read_npy}
    if path.suffix not in readers:
        raise RunError(f"{path} is none of the weights that can be imported: a .tar of nerf-pytorch or a .npy of bmild/nerf.")
    try:
        return readers[path.suffix](path)
    except Exception as error:  # a damaged file makes PyTorch, NumPy and pickle raise nearly anything, MemoryError too
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise RunError(f"{path} can't be read as the weights of a NeRF: {reason}.") from error


def _read_tar(path: Path) -> OldWeights:
    saved = torch.load(path, map_location="cpu", weights_only=True)
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
