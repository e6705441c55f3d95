"""The strongest patches that a scan has found, read again from its dataset for display."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nbviz.core.calls import Feed
from nbviz.core.errors import ModelError
from nbviz.core.layers import Layer, Layers, trace_layers
from nbviz.imaging.charts import picture_row
from nbviz.imaging.encode import Array, channels_last
from nbviz.imaging.pixels import cut
from nbviz.pictures.load import Pictures
from nbviz.scanning.dataset import Inputs
from nbviz.scanning.records import Skipped


@dataclass
class Patches:
    """What the strongest positions of a layer see of a dataset's pictures.

    Parameters
    ----------
    model
        The model.
    source
        The dataset as its inputs. One that can be read only once has no patches.
    feed
        From the pictures to what the model is called with; see :func:`nbviz.core.calls.call_model`.
    """

    model: nn.Module
    source: Inputs
    feed: Feed = None
    _pictures: dict[int, Tensor] = field(default_factory=dict)  # uint8 (3, H, W): those last read
    _layers: dict[str, Layer] | None = None

    def rows(self, layer: str, indices: Tensor, positions: Tensor) -> list[str]:
        """For each channel an image for HTML of its patches, strongest first; none where there are no pictures to show.

        Parameters
        ----------
        layer
            The name of the layer.
        indices
            int64 (K, k): the pictures' indices in the dataset; -1 for none.
        positions
            int64 (K, k, 2): row and column in the layer's map; (K, k, 0) for a layer without maps.
        """
        if self.source.batches is None or self.source.reader.axes != 2:
            return []
        kept = self._pictures
        self._pictures = {}
        for index in indices.unique().tolist():
            picture = kept.get(index) if index in kept or index < 0 else self._read(index)
            if picture is not None:
                self._pictures[index] = picture
        rows = []
        for channel, places in zip(indices.tolist(), positions.tolist(), strict=True):
            found = [self._patch(layer, *at) for at in zip(channel, places, strict=True) if at[0] in self._pictures]
            rows.append(picture_row(found, f"{len(found)} patches, strongest first") if found else "")
        return rows

    def _read(self, index: int) -> Tensor | None:
        """A picture as the model sees it, uint8 (3, H, W); None if it cannot be shown."""
        item = self.source[index]
        if isinstance(item, Skipped) or item[1].ndim != 3:
            return None
        return Pictures(item[1][None], self.source.reader.preprocess, ("",)).display()[0]

    def _patch(self, layer: str, index: int, position: list[int]) -> Array:
        """What a position sees; the whole picture where it has no receptive field that is known."""
        if self._layers is None:
            try:
                found, _ = trace_layers(self.model, self.source.first(), self.feed)
            except ModelError:  # it has been moved or changed since the scan
                found = Layers()
            self._layers = {entry.name: entry for entry in found}
        entry, picture = self._layers.get(layer), self._pictures[index]
        if entry is None or not entry.has_maps or not position:
            return channels_last(picture)
        return channels_last(cut(picture, *entry.patch(position, picture.shape[1:]), 128))
