"""Where along a ray to look: stratified samples and inverse-CDF resampling; which pixels to train on."""
