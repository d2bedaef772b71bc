"""Camera poses of photographs and videos by structure from motion (COLMAP)."""
