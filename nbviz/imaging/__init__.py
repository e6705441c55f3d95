"""Tensors to pixels and back: load, normalise, tile, colour, overlay. No model is run here, no widget known."""
