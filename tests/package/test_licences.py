"""Everything that an installation of nerfit pulls in may be used with Apache-2.0 code: no GPL, no AGPL, nothing unknown."""

import re
import tomllib
from collections.abc import Collection, Iterable
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement

from conftest import ROOT

EXCUSED = {
    "nvidia-": "CUDA's libraries, which PyTorch's wheels for GPUs bring and its CPU build does not; free to use, not to change",
    "cuda-": "the same",
    "docutils": "GPL for its Emacs mode alone, which nothing here uses; the rest is in the public domain or BSD (extra docs)",
    "pi_heif": "LGPL, as its wheels bring libheif and libde265 as libraries of their own, which are linked and not changed",
}
"""Beginnings of the names of distributions with another licence than `FREE` names, and why they are used nevertheless."""
FREE = (
    *("MIT", "MIT-0", "MIT-CMU", "BSD", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC", "Zlib", "HPND", "PSF", "PSF-2.0", "Python-2.0"),
    *("Apache", "Apache-2.0", "MPL-2.0", "MPL 2.0", "Unlicense", "CC0-1.0", "BSL-1.0", "LLVM-exception", "Python Software Foundation"),
)
"""Licences and their short names. MPL binds the changed files of its own package alone (certifi, tqdm)."""
FORBIDDEN = r"(?<!L)\bA?GPL|Affero|(?<!Lesser )General Public"


def licence(of: Distribution) -> str:
    """What a distribution says of its licence: an SPDX expression, else its classifiers, else the beginning of its text."""
    about = of.metadata
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    return str(about["License-Expression"] or " AND ".join(classifiers) or (about["License"] or "")[:200]).strip()


def installed(lines: Iterable[str], extras: Collection[str], found: dict[str, Distribution]) -> None:
    """Add what requirements name, and what that needs in turn, as far as it is installed."""
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras or [""]):
            continue
        with suppress(PackageNotFoundError):  # an extra that is not installed here
            of = distribution(requirement.name)
            name = of.metadata["Name"].lower()
            if name not in found:
                found[name] = of
                installed(of.requires or [], requirement.extras, found)


def is_free(text: str) -> bool:
    """Whether one of the alternatives ("OR") names only free licences, and nothing forbidden is joined to it."""
    alternatives = re.split(r"\bOR\b", text.strip("() "))
    return any(
        not re.search(FORBIDDEN, one) and any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", one) for name in FREE)
        for one in alternatives
    )


def test_the_licences_of_all_that_is_installed_with_nerfit_are_free() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name not in ("dev", "all") for line in lines]
    found: dict[str, Distribution] = {}
    installed([*project["dependencies"], *extras], (), found)
    assert {"torch", "numpy", "numba", "pillow", "viser", "websockets", "safetensors", "pyyaml"} <= found.keys()
    reported = {name: licence(of) for name, of in found.items()}
    print("\n".join(f"{name:28} {text}" for name, text in sorted(reported.items())))
    assert {name: text for name, text in reported.items() if not name.startswith((*EXCUSED,)) and not is_free(text)} == {}


@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("MIT", True),
        ("MIT License", True),
        ("BSD-3-Clause AND MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("MPL-2.0 AND MIT", True),
        ("GPL-3.0-or-later", False),
        ("MIT AND GPL-2.0-only", False),
        ("AGPL-3.0", False),
        ("GNU Affero General Public License v3", False),
        ("GNU General Public License v3 (GPLv3)", False),
        ("", False),
        ("Proprietary", False),
        ("SUBMITTER", False),
    ],
)
def test_what_counts_as_free(text: str, free: bool) -> None:
    assert is_free(text) == free
