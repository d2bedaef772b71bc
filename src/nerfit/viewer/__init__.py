"""The browser viewer: `drawing` makes pictures, `pacing` says how large and when, `server` and `panel` talk to viser."""
