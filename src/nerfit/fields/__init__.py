"""Fields: position (and direction) to density and colour, and the encodings that they begin with."""
