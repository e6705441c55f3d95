"""Whole datasets: statistics of what a model does on all pictures, gathered in parallel and kept on disk."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["statistics"])
