"""One file per published method, composed of the parts in the rooms below. `base.Method` says what the loop asks of it."""
