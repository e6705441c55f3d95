"""One file per method: pure functions from a model and pictures to maps, torch in, torch out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["sanity"])
