"""What several formats share in reading files: frames, intrinsics, depth maps, point files, pixels."""
