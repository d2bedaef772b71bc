"""Where along a ray to look: stratified samples, and where an occupancy grid says matter is; which pixels to train on."""
