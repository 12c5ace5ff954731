"""Reads the parameters of corrections and update rules from the signatures of their functions."""

import inspect
from collections.abc import Callable
from typing import Any


def own_parameters(function: Callable) -> dict[str, float]:
    """Returns the names and defaults of a function's own parameters.

    These are the keyword-only arguments that have a default.
    """
    return {
        key: value
        for key, value in keyword_arguments(function).items()
        if value is not inspect.Parameter.empty
    }


def chosen_parameters(function: Callable, correction_config: Any) -> dict[str, float]:
    """Returns the values in `config.correction` of the function's own parameters, except None."""
    return {
        key: correction_config[key]
        for key in own_parameters(function)
        if correction_config.get(key) is not None
    }


def keyword_arguments(function: Callable) -> dict[str, Any]:
    """Returns the keyword-only arguments with their defaults, or with inspect.Parameter.empty."""
    return {
        key: parameter.default
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
