"""One file per command: its options, what it does, and how its answer reads."""
