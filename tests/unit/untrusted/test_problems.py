"""Sentences about wrong values: the same words in a file and in a request."""

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from serve_app.errors import ConfigError
from serve_app.untrusted.problems import (
    MAX_PROBLEMS,
    MAX_QUOTED,
    key_hint,
    label_hint,
    nearest,
    problem_sentence,
    raise_problems,
)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = 0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    labels: tuple[str, ...] = ()
    inner: Inner = Inner()
    weights: dict[str, float] = {}

    @field_validator("name")
    @classmethod
    def _check(cls, name: str) -> str:
        if name == "bad":
            raise ValueError("is bad; use another.")
        return name


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({}, "name is missing."),
        ({"name": "a", "label": []}, "label: unknown key; did you mean labels?"),
        ({"name": "a", "x": 1}, "x: unknown key; use one of name, labels, inner, weights."),
        ({"name": "a", "labels": 3}, "labels: must be a list (got 3)."),
        ({"name": "a", "weights": 3}, "weights: must be an object with keys (got 3)."),
        ({"name": "a", "inner": 3}, "inner: must be an object with keys (got 3)."),
        ({"name": {"a": 1}}, "name: must be a valid string."),
        ({"name": "bad"}, "name: is bad; use another (got 'bad')."),
        ({"name": "a", "inner": {"size": "x"}}, None),
    ],
)
def test_a_problem_is_one_sentence(data: dict[str, Any], sentence: str | None) -> None:
    """With the key, what is wrong, and the value unless it is an object."""
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(data)
    (problem,) = caught.value.errors()
    where = ".".join(str(part) for part in problem["loc"])
    written = problem_sentence(problem, where, Outer.model_fields)
    if sentence is None:
        assert written.startswith("inner.size: must be a valid integer")
        assert written.endswith("(got 'x').")
    else:
        assert written == sentence


def test_a_value_that_was_not_recorded_is_not_shown() -> None:
    """The HTTP face leaves out what a request sent."""
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"name": 3})
    (problem,) = caught.value.errors(include_input=False)
    assert problem_sentence(problem, "name") == "name: must be a valid string."


def test_long_values_and_many_problems_are_cut() -> None:
    """A message stays readable whatever a file contains."""
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"name": "a", "labels": "x" * 10_000})
    assert len(problem_sentence(caught.value.errors()[0], "labels")) < MAX_QUOTED + 100
    with pytest.raises(ConfigError) as refused:
        raise_problems([f"line {i}" for i in range(MAX_PROBLEMS + 7)])
    assert str(refused.value).splitlines()[-1] == "… and 7 more"
    raise_problems([])


def test_the_nearest_name_is_a_hint() -> None:
    """And without a similar one, keys are listed and labels are not."""
    assert nearest("treshold", ["threshold", "labels"]) == "threshold"
    assert nearest("zzz", ["threshold", "labels"]) is None
    assert key_hint("zzz", ["a", "b"]) == "use one of a, b."
    assert label_hint("dog") == "; did you mean 'dog'?"
    assert label_hint(None) == "."
    assert label_hint(None, otherwise="; add it.") == "; add it."
