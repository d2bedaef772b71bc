"""Position and direction to density and colour: the networks."""
