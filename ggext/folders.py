"""Where ggext keeps a user's things, by the custom of the system: on Linux in $XDG_CACHE_HOME/ggext
and $XDG_STATE_HOME/ggext, or ~/.cache/ggext and ~/.local/state/ggext."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ggext.errors import OutputError


def cache_folder() -> Path:
    """For what can be found out or downloaded again. Raises OutputError like `state_folder`."""
    import platformdirs

    return _there(platformdirs.user_cache_path, "XDG_CACHE_HOME")


def state_folder() -> Path:
    """For chats and what was typed, which no one can make again. Raises OutputError for a user who
    has no home and names no other place."""
    import platformdirs

    return _there(platformdirs.user_state_path, "XDG_STATE_HOME")


def _there(path_of: Callable[..., Path], variable: str) -> Path:
    try:
        path = path_of("ggext", appauthor=False)
    except RuntimeError:
        path = Path("~")
    if not path.is_absolute():  # ~ stays as it is where there is no home
        raise OutputError(
            f"there is no home folder to keep anything in; {variable} can name another"
        )
    return path
