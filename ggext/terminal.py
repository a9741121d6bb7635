"""The terminal: everything that draws, and what Ctrl-C means.

The only module that imports rich and prompt_toolkit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggext.errors import MissingExtraError

if TYPE_CHECKING:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("reading"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens {task.fields[left]}"),
        console=console,
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar.add_task("reading", total=total, left="")
    bar.start()
    return bar


def _prompt_session() -> Any:
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    except ModuleNotFoundError as error:
        raise MissingExtraError("prompt_toolkit", "run", "ggext chat on a terminal") from error
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(history=InMemoryHistory(), key_bindings=keys)
    return session
