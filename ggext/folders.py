"""Where ggext keeps a user's things, by the custom of the system: on Linux in $XDG_CACHE_HOME/ggext
and $XDG_STATE_HOME/ggext, or ~/.cache/ggext and ~/.local/state/ggext."""

from __future__ import annotations

from pathlib import Path


def cache_folder() -> Path:
    """For what can be found out or downloaded again."""
    import platformdirs

    return platformdirs.user_cache_path("ggext", appauthor=False)


def state_folder() -> Path:
    """For chats and what was typed, which nobody can make again."""
    import platformdirs

    return platformdirs.user_state_path("ggext", appauthor=False)
