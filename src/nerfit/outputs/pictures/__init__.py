"""Pictures and videos of a field, and drawings of cameras and rays."""
