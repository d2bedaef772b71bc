"""nerfit: photographs in, a navigable radiance field out, on any machine."""

import os

# PyTorch then asks Linux for pages of 2 MB where they help: a hash table is read all over the place, and looking up small pages takes time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
