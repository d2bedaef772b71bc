"""Numba bodies of the kernels: flat arrays in, flat arrays out; the public functions one folder up explain them."""
