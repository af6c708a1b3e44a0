"""Tasks of a package as environment functions: imported when made, with errors that name the extra to install or the options that exist."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import gymnasium

from marl_hpc.config import ConfigError


def load(name: str, module: str, extra: str) -> Any:
    """Import what environment `name` is made of. Raises ConfigError naming the extra when it or something it needs is missing."""
    try:
        return importlib.import_module(module)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise ConfigError(
            f"env={name} needs the package {module.partition('.')[0]} ({error}); pip install 'marl_hpc[{extra}]'"
        ) from error


def task(name: str, module: str, extra: str, function: str = "parallel_env") -> Callable[..., Any]:
    """The function of environment `name`: `module`'s `function` with the options that its `raw_env` takes."""

    def make(**options: Any) -> Any:
        loaded = load(name, module, extra)
        try:
            return getattr(loaded, function)(**options)
        except TypeError as error:
            raw = getattr(loaded, "raw_env", getattr(loaded, function))
            known = ", ".join(key for key in inspect.signature(raw).parameters if key not in ("self", "args", "kwargs"))
            raise ConfigError(f"env={name}: {error}; it takes {known or 'no options'}") from error
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            raise ConfigError(f"env={name} needs more than is installed ({error}); pip install 'marl_hpc[{extra}]'") from error

    make.__name__ = make.__qualname__ = name.partition("/")[2]
    make.__doc__ = f"{module}, {'turn-based' if function == 'env' else 'parallel'} API."
    return make
