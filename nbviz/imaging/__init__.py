"""From tensors to pixels: normalise, tile, colour, overlay, encode. Independent of models and widgets."""
