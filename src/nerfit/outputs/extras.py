"""Optional packages, imported where they are used."""

from importlib import import_module
from typing import Any

from nerfit.errors import ConfigError


def extra(module: str, what: str) -> Any:
    """A module of the extra `mesh`; ConfigError, naming ``what`` needs it, where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        nowhere = " (xatlas has no wheels for Linux ARM64 and for Python 3.14)" if module == "xatlas" else ""
        raise ConfigError(f"{what} needs the extra `mesh`: pip install 'nerfit[mesh]'{nowhere}.") from error
