"""Finding cameras that are unknown or wrong: photometric adjustment, relocation and the history of a search."""
