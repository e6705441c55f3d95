"""Complete docstrings: what parameters of many functions mean is written once, here, and shown in the help of each."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

from nbviz.core import types
from nbviz.core.errors import unknown

Thing = TypeVar("Thing")
#: Of a section of a docstring, the names that head each entry, and the indented text below them.
Entries = list[tuple[list[str], str]]

#: How :func:`nbviz.scan` goes through a dataset; functions that call it take these as ``**options``.
_SCAN_OPTIONS = """
batch_size
    How many pictures go through the model at once.
workers
    How many processes read pictures beside this one, as in a ``DataLoader``.
executor
    Where the work is done: a ``concurrent.futures.Executor``, such as a ``ProcessPoolExecutor``, dask's
    ``client.get_executor()`` or ipyparallel's ``client.load_balanced_view().executor``. None takes this process.
parts
    Into how many parts the batches are divided; None takes parts of 8 batches.
threads
    How many threads each of the executor's workers has.
checkpoint
    A file to which partial results are written from time to time. A scan that ended early goes on from it, in another
    process too; it is refused where the model, the statistics or the dataset differ.
progress
    Show a bar with the rate and the time left.
watch
    Called about once a second with the results so far, and at the end; a :class:`nbviz.ScanView` shows them.
"""

#: The shared parameters, and the errors that they can raise. A sentence applies where all parameters that it names do.
SHARED = f"""
Parameters
----------
model
    Any PyTorch model. It is left unchanged.
images
    A path, a PIL picture, an array or a tensor, or a list of these; see :func:`nbviz.load`.
dataset
    Pictures, with labels where there are any: the path of a folder (its sub-folders are the classes), a torchvision or
    Hugging Face dataset, an array, a tensor, or anything else with a length and items; see :func:`nbviz.scan`.
layer
    The name of a module, ``"name:1"`` for its second call; :func:`nbviz.layers` lists them.
layers
    Names of layers; None takes the first and the last that give feature maps.
channels
    Which channels of the layer; None takes all.
target
    The class, or one for each picture; None takes the predicted class.
rule
    The backward rule: ``"deconvnet"``, ``"guided"`` or ``"gradient"``; see :func:`nbviz.reconstruct`.
fill
    What replaces the pixels: ``"grey"``, ``"mean"`` (the mean colour of the picture) or ``"blur"`` (the picture itself,
    blurred). Functions also take values in the units of the model's input: a number, such as 0, which is Captum's
    default, one for each channel, or (C, H, W), (N, C, H, W).
samples
    How many noisy copies of each picture.
noise
    The standard deviation of the noise, as a fraction of the range of the picture's values.
seed
    Seed of the random numbers. The global random state is left alone.
raw
    Return the map at the layer's size and in units of the score, neither scaled nor enlarged.
reshape
    For a layer of another shape: a callable from its activation to feature maps (N, C, H, W). It is not needed for
    tokens (N, T, C) on a grid of the picture's shape, with or without class tokens before them, or for channels last.
preprocess
    A callable from a PIL picture to the model's input (C, H, W), such as ``weights.transforms()``. None takes the
    model's own, which is known for torchvision's weights and timm's configurations.
inputs
    For a model that takes more than the pictures: a callable from their batch (N, C, H, W) to the model's argument, a
    tuple of its arguments, or a dict of its keyword arguments.
output
    For a model that returns more than class scores (N, classes): where they are. A key, the name of an attribute, an
    index, or a callable that picks them.
answer
    What the model's answer means: ``"classes"``, scores of classes of which one holds, before the softmax;
    ``"labels"``, scores of labels any of which may hold, before the sigmoid; ``"value"``, such as a regression's;
    ``"probabilities"``, after a softmax or a sigmoid. None takes probabilities where the scores are such beyond doubt,
    a value where there is one score for each picture, else classes.
labels
    The names of the model's outputs, in order. None takes those found with the preprocessing: torchvision's and timm's
    ImageNet models have them.
picture
    Which of the pictures is shown at first, from 0.
cmap
    The colour map of values, which the page can change: ``"viridis"``, ``"magma"``, ``"inferno"``, ``"cividis"``,
    ``"gray"``, ``"turbo"`` or ``"coolwarm"``.
opacity
    Opacity of a map over its picture, from 0, the picture alone, to 1.
contrast
    By how much signed values are spread around grey, from 1 to 16.
order
    The order of the tiles: ``"index"``, ``"strongest"`` first, by ``"spread"`` or, once it is known, ``"redundant"``.
scale
    ``"each"`` tile from its own lowest to its own highest value, or all on one ``"shared"`` scale.
columns
    Tiles in a row of the grid, up to 32; 0 takes up to 8.
{_SCAN_OPTIONS.strip()}
**options
    Options of :func:`nbviz.scan`:

{textwrap.indent(_SCAN_OPTIONS.strip(), "    ")}

Raises
------
ValueError
    When the model has no such ``layer``; the message names the nearest. When a layer of ``layers`` is unknown. When one
    of ``channels`` is out of range. When ``target`` is out of range, or is neither one class nor one for each picture.
    When ``rule`` is unknown. When ``fill`` is unknown. When ``answer`` is unknown. When ``output`` does not lead to
    class scores (N, classes).
PictureError
    When ``images`` has a picture that cannot be read or does not fit the model. When ``dataset`` has no picture that
    can be read.
ModelError
    When the model fails on ``images``, or memory does not suffice. When the model fails on ``dataset``, or memory does
    not suffice.
TypeError
    When ``model`` is not a PyTorch model, or is scripted or exported. When ``images`` has something that is not a
    picture. When ``preprocess`` is not callable. When ``inputs`` is not callable.
"""

#: The sections of a docstring in numpydoc's order; the first is what comes before any of them.
_ORDER = ("", "Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns", "Notes", "Examples")


def documented(thing: Thing) -> Thing:
    """Complete the docstring of a function or a class: parameters that it does not describe are taken from ``SHARED``.

    So are the errors that its parameters can raise. ``**options: Unpack[SubjectOptions]`` of a function, or another of
    the dicts in :mod:`nbviz.core.types`, is spelled out: help() and Shift-Tab show the options, and others are refused.

    Examples
    --------
    >>> @documented
    ... def pool(model, size=2):
    ...     '''A docstring that says nothing of the model.'''
    >>> pool.__doc__.splitlines()[4:6]
    ['model', '    Any PyTorch model. It is left unchanged.']
    """
    return _complete(thing, [SHARED])


def documented_like(*others: object) -> Callable[[Thing], Thing]:
    """Complete a docstring from those of other functions or classes first, then from ``SHARED``.

    A function that does not say what it returns takes that from the others, too.
    """
    return lambda thing: _complete(thing, [*(inspect.getdoc(other) or "" for other in others), SHARED])


def _spelled_out(function: Any) -> Any:
    """Replace ``**options: Unpack[...]`` in a function's signature by the options, and refuse others by their names."""
    parameters = [*inspect.signature(function).parameters.values()]
    options_type = str(parameters.pop().annotation) if parameters else ""
    kind = None if isinstance(function, type) else re.fullmatch(r"Unpack\[(\w+)\]", options_type)
    if kind is None:
        return function
    options = vars(types)[kind[1]].__annotations__
    for name, hint in options.items():
        annotation = getattr(hint, "__forward_arg__", hint)
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    accepted = [parameter.name for parameter in parameters]

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs.keys() - accepted:
            raise TypeError(f"{function.__name__}(): {unknown('argument', name, accepted)}")
        return function(*args, **kwargs)

    call.__signature__ = inspect.signature(function).replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


def _complete(given: Thing, sources: Iterable[str]) -> Thing:
    thing: Thing = _spelled_out(given)
    if not thing.__doc__:  # python -OO
        return thing
    own, shared = _sections(thing.__doc__), [_sections(source) for source in sources]
    names = _parameter_names(thing)
    sections = {
        **own,
        "Parameters": _parameters(names, _entries(own, "Parameters"), [_entries(s, "Parameters") for s in shared]),
        "Returns": own.get("Returns") or next((s["Returns"] for s in shared if "Returns" in s), ""),
        "Raises": _errors(names, own, shared),
    }
    if isinstance(thing, type):
        del sections["Returns"]
    thing.__doc__ = "\n\n".join(
        f"{title}\n{'-' * len(title)}\n{text}".strip()
        for title, text in sorted(sections.items(), key=lambda section: _ORDER.index(section[0]))
        if text
    )
    return thing


def meanings(kind: type) -> dict[str, str]:
    """What the docstring of a class says of each of its parameters, without dtype, shape and markup.

    Empty under ``python -OO``, which has no docstrings.

    Examples
    --------
    >>> from nbviz.core.layers import Layer
    >>> meanings(Layer)["type"]
    'The class of the module.'
    """
    found: dict[str, str] = {}
    for names, body in _entries(_sections(kind.__doc__ or ""), "Parameters"):
        text = re.sub(r"^\w+ \([^)]*\): |:\w+:(?=`)|`", "", " ".join(body.split()))
        found |= dict.fromkeys(names, text[:1].upper() + text[1:])
    return found


def _sections(docstring: str) -> dict[str, str]:
    """The text of each section by its title."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.cleandoc(docstring) + "\n", flags=re.MULTILINE)
    return {title: text.strip("\n") for title, text in zip(["", *parts[1::2]], parts[::2], strict=True)}


def _entries(sections: dict[str, str], title: str) -> Entries:
    found = re.findall(r"^(\S.*)\n((?: .*\n|\n)*)", sections.get(title, "") + "\n", re.MULTILINE)
    return [(head.split(", "), body.rstrip()) for head, body in found]


def _parameter_names(thing: Any) -> list[str]:
    """The names in the signature, with their stars."""
    signature = inspect.signature(thing)
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
    return [str(parameter) for parameter in bare]


def _parameters(names: list[str], own: Entries, shared: list[Entries]) -> str:
    """The section in the order of the signature; what is described of other names comes last, where a test finds it."""
    described = {name for heads, _ in own for name in heads}
    others = [([n for n in heads if n in names and n not in described], body) for s in shared for heads, body in s]
    chosen = [next((entry for entry in [*own, *others] if name in entry[0]), None) for name in names]
    entries = [entry for entry in chosen if entry is not None] + own
    return "\n".join(dict.fromkeys(f"{', '.join(heads)}\n{body}" for heads, body in entries))


def _errors(names: list[str], own: dict[str, str], shared: list[dict[str, str]]) -> str:
    """The function's own errors, and those sentences of the others that speak of its parameters alone."""
    errors = {head: [textwrap.dedent(body)] for heads, body in _entries(own, "Raises") for head in heads}
    for sections in shared:
        known = {name for heads, _ in _entries(sections, "Parameters") for name in heads}
        for heads, body in _entries(sections, "Raises"):
            sentences = re.split(r"(?<=\.) (?=When )", " ".join(body.split()))
            relevant = [s for s in sentences if known.intersection(re.findall(r"``(\w+)``", s)) <= set(names)]
            for head in heads if relevant else ():
                errors.setdefault(head, []).extend(relevant)
    wrap = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False)
    texts = {head: wrap.fill(" ".join(dict.fromkeys(sentences))) for head, sentences in errors.items()}
    return "\n".join(f"{head}\n{textwrap.indent(text, '    ')}" for head, text in texts.items())
