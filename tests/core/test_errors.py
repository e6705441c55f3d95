"""The words that errors share."""

from nbviz.core.errors import ModelError, PictureError, PictureNotFoundError, unknown


def test_unknown_names_what_was_given_the_nearest_and_the_accepted():
    error = unknown("layer", "featurs.3", ["features.0", "features.3", "classifier"])
    assert isinstance(error, ValueError)
    message = "no layer 'featurs.3'; did you mean 'features.3'? Accepted: features.0, features.3, classifier"
    assert str(error) == message


def test_unknown_offers_nothing_where_nothing_is_near():
    assert str(unknown("seed", "zzz", ["max", "unit"])) == "no seed 'zzz'. Accepted: max, unit"


def test_unknown_keeps_long_things_short():
    message = str(unknown("layer", "x" * 10_000, [f"layer{i}" for i in range(500)]))
    assert len(message) < 500
    assert "500 in all" in message


def test_unknown_takes_what_is_no_text():
    assert str(unknown("rule", None, ["guided"])) == "no rule 'None'. Accepted: guided"


def test_errors_are_also_the_built_in_ones():
    assert issubclass(PictureError, ValueError)
    assert issubclass(PictureNotFoundError, FileNotFoundError)
    assert issubclass(PictureNotFoundError, PictureError)
    assert issubclass(ModelError, RuntimeError)
    assert str(PictureNotFoundError("there is no file 'cat.jpg'")) == "there is no file 'cat.jpg'"
