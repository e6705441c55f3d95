"""Layer names, labels, file names and class names may hold anything; what goes to the page is text it can show."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import pytest
import torch
from torch import Tensor, nn

import nbviz
from nbviz.core.errors import line, shown
from nbviz.errors import ModelError
from tests.rounds import few

TEXTS = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "nothing": "",
    "NUL": "a\0b",
    "turned": "\u202egnp.tac\u2066",
    "half": "\ud83d",
    "escaped byte": "caf\udcc3",
    "escape": "\x1b[31mred",
    "mathematics": "$\\frac{$_^{",
    "lines": "a\n\r\n\t" * 50,
    "letters without a glyph": "\U0001f408 ネコ قط",
    "long": "x" * 100_000,
}


def texts_of_which(*kinds: str) -> pytest.MarkDecorator:
    """All; ``make test`` tries these."""
    rows = [pytest.param(text, id=kind) for kind, text in TEXTS.items()]
    return pytest.mark.parametrize("text", few(rows, *map(list(TEXTS).index, kinds)))


class Net(nn.Module):
    """One layer of the name given, and as many outputs as asked for."""

    def __init__(self, name: str, outputs: int = 3) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()))
        self.name, self.outputs = name, outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x).flatten(1).mean(1, keepdim=True).expand(-1, self.outputs)


def messages(view: ipywidgets.Widget) -> Iterator[str]:
    """The state that each widget of a view would send, as Jupyter puts it in a message."""
    waiting: list[Any] = [view]
    for widget in waiting:
        waiting.extend(getattr(widget, "children", ()))
        state = {key: value for key, value in widget.get_state().items() if key not in ("_esm", "_css")}
        yield json.dumps(state, ensure_ascii=False, allow_nan=False, default=len).encode("utf-8").decode()


def check(view: Any, most: int = 20_000) -> list[str]:
    sent = list(messages(view))
    assert max(map(len, sent)) < most
    for text in sent:
        assert not re.search(r"[\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\\u00(?!0a|09)[01]", text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle = view._repr_mimebundle_()
        json.dumps(bundle, ensure_ascii=False).encode()
        assert bundle["image/png"]
    assert view.header.error == ""
    view.close()
    return sent


@texts_of_which("long")
def test_any_layer_name(text: str, tmp_path: Path) -> None:
    net = Net(text.replace(".", "·") or "a")
    layers = nbviz.layers(net, torch.rand(1, 8, 8))
    assert len(repr(layers).encode()) < 10_000
    name = layers[-1].name
    assert torch.equal(
        nbviz.feature_maps(net, torch.ones(1, 8, 8), name), layers and net.get_submodule(name)(torch.ones(1, 1, 8, 8))
    )
    start = time.monotonic()
    view = nbviz.Explorer(net, torch.rand(1, 8, 8), layer=name)
    view.finish()
    assert view.layer == name
    view.layer = layers[0].name
    view.save(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 1000
    # The code that gives the view holds the layer's name as it is.
    check(view, 250_000 if len(text) > 200 else 20_000)
    with pytest.raises(ValueError, match=r"no layer .*Accepted: ") as raised:
        nbviz.feature_maps(net, torch.rand(1, 8, 8), f"{text}?")
    assert len(str(raised.value).encode()) < 2000
    assert time.monotonic() - start < 10


@texts_of_which("letters without a glyph")
def test_any_label_and_class_name(text: str) -> None:
    try:
        kind = type(text or "a", (Net,), {})
    except (UnicodeEncodeError, ValueError):  # a name that no class can have
        kind = Net
    view = nbviz.Explorer(kind("layer"), torch.rand(1, 8, 8), labels=[text, "dog", text])
    view.finish()
    labels = [label for label, _ in view.strip.predictions]
    assert line(text) in labels
    check(view)
    preprocess = nbviz.Preprocess(lambda _: torch.rand(1, 8, 8), labels=[text] * 3, source=text)
    other = nbviz.FeatureMaps(kind("layer"), torch.rand(1, 8, 8), preprocess=preprocess)
    assert max(map(len, messages(other))) < 20_000


@texts_of_which("half", "escape", "long")
def test_any_text_in_an_error_of_the_model(text: str) -> None:
    net = Net("layer")
    view = nbviz.Explorer(net, torch.rand(1, 8, 8))
    view.finish()

    def fail(*_: Any) -> None:
        raise RuntimeError(text)

    net.layer[0].register_forward_hook(fail)
    with pytest.raises(ModelError) as raised:
        nbviz.feature_maps(net, torch.rand(1, 8, 8), "layer.0")
    assert len(str(raised.value).encode()) < 4000
    view.session.forget()
    view.layer = "layer.0"
    view.finish()
    assert "ModelError" in view.header.error
    assert max(len(text.encode()) for text in messages(view)) < 20_000


@texts_of_which("half", "escape", "long")
def test_any_text_in_another_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view = nbviz.Explorer(Net("layer"), torch.rand(1, 8, 8))
    view.finish()

    def fail(*_: Any) -> None:
        raise MemoryError(text)

    monkeypatch.setattr(view.session, "look", fail)
    view.layer = "layer.0"
    view.finish()
    assert view.header.error.startswith("MemoryError")
    assert max(len(text.encode()) for text in messages(view)) < 20_000


def test_a_million_labels() -> None:
    start = time.monotonic()
    view = nbviz.Explorer(Net("layer", 1_000_000), torch.rand(1, 8, 8), labels=["<b>"] * 1_000_000)
    view.finish()
    assert [label for label, _ in view.strip.predictions] == ["<b>"] * 5
    assert max(map(len, messages(view))) < 20_000
    assert time.monotonic() - start < 10
    with pytest.raises(ValueError, match="^labels has 1000000 names for the model's 3 outputs; expected one for each$"):
        nbviz.Explorer(Net("layer"), torch.rand(1, 8, 8), labels=["a"] * 1_000_000)


@pytest.mark.parametrize("labels", [{0: "cat"}, {"cat"}, b"cat", 3, iter("cat"), "cat", [Path]])
def test_what_is_no_list_of_names(labels: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="^labels (is a|has)"):
        nbviz.Explorer(Net("layer"), torch.rand(1, 8, 8), labels=labels)


def test_what_is_shown_is_short_and_no_error() -> None:
    class Fails:
        def __repr__(self) -> str:
            raise OSError

        __str__ = __repr__

    assert shown(Fails()) == line(Fails()) == "a Fails"
    assert shown(10**5000) == "a int"
    assert len(shown(["a"] * 1000)) == 80
    assert len(line("x" * 1000)) == 200
    assert line("a\u200d\u00e9\u3000\n") == "a\u200d\u00e9\u3000\n"  # what languages need
    assert line("\x85\u2028\ud800\x7f") == "\ufffd" * 4
