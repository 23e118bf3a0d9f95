"""Environment variables, read into typed, validated values."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from unified_backend.errors import ConfigError
from unified_backend.values import SWITCH, choice, parse_bytes

__all__ = ["CacheSettings", "cache_settings", "default_max_batch_size", "toolchain_directory", "toolchain_mode"]


@dataclasses.dataclass(frozen=True)
class CacheSettings:
    """What the environment says of the cache.

    Attributes:
        directory: `TRITON_UNIFIED_CACHE`, else the user's cache directory.
        max_bytes: `TRITON_UNIFIED_CACHE_MAX_SIZE`; None leaves it to the disk's size.
        key_file: `TRITON_UNIFIED_CACHE_KEY_FILE`: signs entries, and only those so signed are used.
        remote: `TRITON_UNIFIED_REMOTE_CACHE`: URL or folder of the tier behind the disk.
        require_cached: `TRITON_UNIFIED_REQUIRE_CACHED`: what the parameter says, for every model.
    """

    directory: Path
    max_bytes: int | None = None
    key_file: Path | None = None
    remote: str | None = None
    require_cached: bool = False


def cache_settings(environment: Mapping[str, str] | None = None) -> CacheSettings:
    """The cache that the environment variables describe; an empty variable is as good as none.

    Raises:
        ConfigError: a variable that cannot be what it is.
    """
    given = os.environ if environment is None else environment

    return CacheSettings(
        _variable(given, "TRITON_UNIFIED_CACHE", _path, _users_cache()),
        _variable(given, "TRITON_UNIFIED_CACHE_MAX_SIZE", parse_bytes, None),
        _variable(given, "TRITON_UNIFIED_CACHE_KEY_FILE", _path, None),
        _variable(given, "TRITON_UNIFIED_REMOTE_CACHE", str, None),
        _variable(given, "TRITON_UNIFIED_REQUIRE_CACHED", choice(SWITCH), False),
    )


def _variable(given: Mapping[str, str], name: str, parse: Callable[[str], Any], default: Any) -> Any:
    text = given.get(name, "").strip()
    try:
        return parse(text) if text else default
    except ValueError as error:
        raise ConfigError(f'{name} is "{text}"', str(error), "Correct the variable, or unset it") from None


def toolchain_mode(environment: Mapping[str, str] | None = None) -> str:
    """Whether toolchains may be used, and installed when they are needed: `TRITON_UNIFIED_TOOLCHAINS`.

    Returns:
        `auto` (the default): used, and installed; `installed`: only those already there are used; `off`: none is.

    Raises:
        ConfigError: the variable is none of these.
    """
    text = (os.environ if environment is None else environment).get("TRITON_UNIFIED_TOOLCHAINS", "").strip()
    modes = ("auto", "installed", "off")
    if (text.lower() or "auto") not in modes:
        raise ConfigError(
            f'TRITON_UNIFIED_TOOLCHAINS is "{text}"',
            f"it must be one of {', '.join(modes)}",
            "Correct the variable, or unset it",
        )
    return text.lower() or "auto"


def toolchain_directory(environment: Mapping[str, str] | None = None) -> Path:
    """Where toolchains are: `TRITON_UNIFIED_TOOLCHAIN_DIR` (an image's, for example), else a folder of the cache's.

    Raises:
        ConfigError: the variable, or that of the cache, is no path.
    """
    given = os.environ if environment is None else environment
    return _variable(given, "TRITON_UNIFIED_TOOLCHAIN_DIR", _path, None) or (
        cache_settings(given).directory / "toolchains"
    )


def default_max_batch_size(environment: Mapping[str, str] | None = None) -> int:
    """max_batch_size for a batchable model whose config names none: `TRITON_UNIFIED_MAX_BATCH_SIZE`, else 32.

    Raises:
        ConfigError: the variable is not a number of 1 or more.
    """
    text = (os.environ if environment is None else environment).get("TRITON_UNIFIED_MAX_BATCH_SIZE", "32")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f'TRITON_UNIFIED_MAX_BATCH_SIZE is "{text}"',
            "it is not a number of 1 or more",
            "Set it to one, or unset it",
        )
    return int(text)


def _users_cache() -> Path:
    """The user's cache directory; of one without a home, where Docker puts the home of one it does not know: at `/`."""
    try:
        path = platformdirs.user_cache_path("triton-unified")
    except RuntimeError:  # older ones answer with a relative path
        path = Path()
    return path if path.is_absolute() else Path("/.cache/triton-unified")


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # no such user, or no home
        raise ValueError(str(error)) from None
