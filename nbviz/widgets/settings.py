"""Settings that the page changes without the kernel. Figures and the copied code have them, too."""

from __future__ import annotations

from functools import partial

import traitlets as t

from nbviz.widgets.controls import Choice, Number, Whole
from nbviz.widgets.views import COLOURS, MOST_COLUMNS, ORDERS, SCALES

colour_map = partial(
    Choice,
    help="The colour map of values: the name of one of matplotlib's that the page offers.",
    kind="colour map",
    options=COLOURS,
    default="viridis",
    in_views=True,
)
opacity = partial(
    Number,
    help="Opacity of a map over its picture, from 0, the picture alone, to 1.",
    ends=(0.0, 1.0, 0.05),
    default=0.6,
    in_views=True,
)
contrast = partial(
    Number,
    help="By how much signed values are spread around grey, from 1 to 16.",
    ends=(1.0, 16.0, 0.5),
    default=2.0,
    in_views=True,
)
tile_order = partial(Choice, help="The order of the tiles.", options=ORDERS, default="strongest", in_views=True)
tile_scale = partial(
    Choice,
    help="Each tile from its own lowest to its own highest value, or all on a shared scale.",
    options=SCALES,
    default="each",
    in_views=True,
)


class MapSettings(t.HasTraits):
    """Settings of values in colours, over a picture or alone."""

    cmap = colour_map()
    opacity = opacity()


class SignedSettings(t.HasTraits):
    """Settings of values around grey."""

    contrast = contrast()


class GridSettings(MapSettings, SignedSettings):
    """Settings of a grid of channels."""

    order = tile_order()
    scale = tile_scale()
    columns = Whole(
        help="Tiles in a row of the grid; 0 takes up to 8.", least=0, most=MOST_COLUMNS, default=0, in_views=True
    )
