"""torchvision's classification models with their default weights, and a clear error without a network connection."""

from __future__ import annotations

import threading
from http.client import HTTPException
from pathlib import Path
from typing import cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from torch import nn

from nbviz.core.generators import OwnGenerators

#: Seconds after which a server that does not answer counts as unreachable.
PATIENCE = 5.0


def names() -> list[str]:
    """The names of torchvision's classification models."""
    from torchvision import models

    return cast(list[str], models.list_models(models))


def load(name: str) -> nn.Module:
    """One of torchvision's classification models with its default weights.

    Raises
    ------
    ConnectionError
        When the weights are not in torch's cache and cannot be downloaded.
    """
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    cause: Exception | None = None
    if cached.is_file() or reachable(weights.url):
        try:
            # torchvision's builders unpickle arbitrary objects, so check first that the file holds only tensors.
            weights.get_state_dict(check_hash=True, weights_only=True)
        except (URLError, ConnectionError, TimeoutError, HTTPException) as error:
            cause = error
        else:
            with OwnGenerators(), torch.device("cpu"):
                return cast(nn.Module, models.get_model(name, weights=weights)).eval()
    raise ConnectionError(
        f"the weights of {name!r} are not on this machine ({cached}) and cannot be downloaded from {weights.url}; "
        "without a network these work: 'fashion', 'efficientnet_lite0', 'vgg16_edges'"
    ) from cause


def reachable(url: str) -> bool:
    """Whether a server answers at all within `PATIENCE` seconds.

    torch's own download waits without limit, and the look-up of a host name has no time-out, so the
    request is made in a thread that may be abandoned.
    """
    answered = False

    def ask() -> None:
        nonlocal answered
        try:
            urlopen(Request(url, method="HEAD"), timeout=PATIENCE).close()
            answered = True
        except HTTPError:  # an answer, though an error
            answered = True
        except (OSError, HTTPException):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answered
