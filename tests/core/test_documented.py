"""What a docstring leaves out is taken from others, in the order of the signature."""

import pytest

from nbviz.core.documented import SHARED, documented, documented_like


def whole(model, layer, /, *, seed=0):
    """Of a whole.

    Parameters
    ----------
    layer
        Of the whole.

    Returns
    -------
    int
        A number.

    Raises
    ------
    KeyError
        When ``seed`` is odd. When ``layer`` is even.
    """


def shown(function):
    return function.__doc__.split("\n")


def test_a_parameter_that_is_not_described_has_the_shared_description():
    @documented
    def take(model, depth, seed):
        """Take.

        Parameters
        ----------
        depth
            How deep.
        """

    lines = shown(take)
    assert [line for line in lines if line in ("model", "depth", "seed")] == ["model", "depth", "seed"]
    assert lines[lines.index("seed") + 1] in SHARED.split("\n")
    assert "TypeError" in lines


def test_its_own_description_comes_before_a_shared_one():
    @documented
    def take(model):
        """Take.

        Parameters
        ----------
        model
            Mine.
        """

    assert take.__doc__.count("    Mine.") == 1
    assert "Any PyTorch model" not in take.__doc__


def test_what_another_function_says_comes_before_what_all_share():
    @documented_like(documented(whole))
    def part(model, layer):
        """Of a part.

        Examples
        --------
        >>> part
        """

    assert "    Of the whole." in shown(part)
    assert "    When ``layer`` is even." in shown(part)
    assert "odd" not in part.__doc__, "an error of a parameter that it does not have"
    titles = [before for before, line in zip(shown(part), shown(part)[1:], strict=False) if line.startswith("---")]
    assert titles == ["Parameters", "Returns", "Raises", "Examples"]


def test_a_class_has_the_parameters_of_its_constructor_and_returns_nothing():
    @documented_like(whole)
    class Part:
        """Of a part."""

        def __init__(self, layer, **options):
            pass

    lines = shown(Part)
    assert lines[lines.index("layer") + 1] == "    Of the whole."
    assert "    batch_size" in lines
    assert "self" not in lines
    assert "Returns" not in lines


def test_errors_of_one_kind_stand_together():
    @documented
    def take(layer, target):
        """Take.

        Raises
        ------
        ValueError, OSError
            When it is late.
        """

    lines = shown(take)
    assert lines.count("ValueError") == lines.count("OSError") == 1
    assert lines[lines.index("ValueError") + 1].startswith("    When it is late. When the model has no such ``layer``")


def test_without_docstrings_there_is_nothing_to_complete():
    def take(model):
        pass

    assert documented(take) is take
    assert take.__doc__ is None


@pytest.mark.parametrize("title", ["Parameters", "Raises"])
def test_the_table_is_a_docstring_itself(title):
    assert f"\n{title}\n{'-' * len(title)}\n" in SHARED
