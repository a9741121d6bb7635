"""Where ggext keeps a user's things, by the custom of the system: on Linux in $XDG_CACHE_HOME/ggext
and $XDG_STATE_HOME/ggext, or ~/.cache/ggext and ~/.local/state/ggext."""

from __future__ import annotations

from pathlib import Path

from ggext.errors import OutputError


def cache_folder() -> Path:
    """For what can be found out or downloaded again."""
    import platformdirs

    return platformdirs.user_cache_path("ggext", appauthor=False)


def state_folder() -> Path:
    """For chats and what was typed, which nobody can make again. Raises OutputError for a user who
    has no home and names no other place."""
    import platformdirs

    path = platformdirs.user_state_path("ggext", appauthor=False)
    if not path.is_absolute():  # ~ stays as it is where there is no home
        raise OutputError(
            "there is no home folder to keep anything in; XDG_STATE_HOME can name another"
        )
    return path
