"""One module per scene format: ``Config``, ``detect`` and ``load``."""
