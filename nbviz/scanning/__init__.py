"""Whole datasets: statistics of a model over all pictures, computed in parallel and checkpointed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["statistics"])
