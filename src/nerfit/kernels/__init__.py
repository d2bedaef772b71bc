"""The hot functions, each defined once in PyTorch (``reference``) and written again for speed (``cpu``: Numba, ``cuda``: Triton).

A kernel's public function has one signature and one docstring; `backend` decides which body runs.
"""
