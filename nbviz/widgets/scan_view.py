"""The results of a scan so far, live below its progress bar."""

from __future__ import annotations

from typing import Any

import ipywidgets
from IPython.display import display

from nbviz.scanning.result import ScanResult


class ScanView(ipywidgets.HTML):  # type: ignore[misc]
    """Shows the results of a scan so far, and at the end all of them; pass it to :func:`nbviz.scan` as ``watch``.

    It shows itself when it is first called.

    Parameters
    ----------
    **options
        Options of ``ipywidgets.HTML``, such as ``layout``.

    Examples
    --------
    >>> import nbviz
    >>> images, _ = nbviz.bundled.fashion_test()
    >>> view, top = ScanView(), nbviz.statistics.TopK("features.8")
    >>> found = nbviz.scan(nbviz.bundled.load("fashion"), images[:64, None], {"top": top}, watch=view, progress=False)
    ... # doctest: +ELLIPSIS
    ScanView(...)
    >>> "64 pictures" in view.value
    True
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._displayed = False

    def __call__(self, found: ScanResult) -> None:
        """Show these results."""
        self.value = found._repr_html_()
        if not self._displayed:
            self._displayed = True
            display(self)  # type: ignore[no-untyped-call]
