"""nerfit: photographs in, a navigable radiance field out, on any machine."""

__version__ = "0.1.0"
