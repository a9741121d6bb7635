"""Opening what `ggext chat` needs: the model, a context that can be opened again, what is kept."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ggext.cli.chat_request import SAMPLED, Request
from ggext.errors import GgextError, MissingExtraError, OutputError

if TYPE_CHECKING:
    from ggext.chat.conversation import Conversation
    from ggext.chat.fit import Room
    from ggext.chat.kept_settings import KeptSettings
    from ggext.chat.loop import Chat
    from ggext.chat.screens import Screen
    from ggext.chat.session import Keeper
    from ggext.cli.chat_input import ChatInput
    from ggext.footprint.cache import Swa
    from ggext.runtime.auto import Chosen
    from ggext.runtime.engine import Session, SessionOptions
    from ggext.runtime.memory.options import Evicted, WhenFull
    from ggext.runtime.model import Model
    from ggext.runtime.regimes import DynamicNtk

#: Of a text, for each token of a common vocabulary: rather too few.
_CHARACTERS = 3
#: What --flash-attn means.
_FLASH = {"on": True, "off": False, "auto": None}


def require_extras(*, typed: bool) -> None:
    """Raises MissingExtraError where a package of the extra "run" is not installed, before anything
    is drawn or loaded."""
    from importlib.util import find_spec

    packages = {"llama_cpp": "llama-cpp-python", "jinja2": "jinja2", "rich": "rich"}
    if typed:
        packages["prompt_toolkit"] = "prompt_toolkit"
    for module, package in packages.items():
        if _is_missing(module, find_spec):
            raise MissingExtraError(package, "run", "ggext chat")


def _is_missing(module: str, find_spec: Callable[[str], object]) -> bool:
    try:
        return find_spec(module) is None
    except ValueError:  # sys.modules says that it cannot be imported
        return True


class Engine:
    """The model of a chat and its one context, which another can replace."""

    def __init__(
        self, request: Request, screen: Screen, *, is_empty: bool, text: int = 0
    ) -> None:
        """``is_empty``: nothing stands in the chat yet, and nothing that is long is known to
        come; ``text``: about how many tokens the documents have that are asked about."""
        from ggext.runtime import llama
        from ggext.runtime.engine import Model

        llama.lib("ggext chat")
        self.request = request
        self.ctx = request.ctx
        self.chosen: Chosen | None = None
        interrupted: list[bool] = []
        with (
            screen.interrupts(lambda: interrupted.append(True)),
            screen.waiting(f"loading {request.file.name}"),
        ):
            self.model: Model = Model.open(
                request.file, request.gpu_layers, lambda _: not interrupted
            )
        try:
            self._options = _session_options(request, is_empty=is_empty)
            with screen.waiting("making room for the context"):
                self.session: Session = self._first(text)
        except BaseException:
            self.model.close()
            raise

    def close(self) -> None:
        """Frees context and model."""
        self.session.close()
        self.model.close()

    def room(self) -> Room:
        """What bounds the context that there is."""
        from ggext.chat.fit import Room
        from ggext.footprint.planner import Choices
        from ggext.runtime import capacity

        model = self.model
        session = self.session
        options = self._options
        choices = Choices(
            options.kv_type,
            session.n_batch,
            swa=options.swa,
            moves=options.edits_cache,
        )
        memory = capacity.room(model, choices)
        free = None if memory is None else memory.free
        cache = None if memory is None else memory.cache
        needed = None if memory is None else memory.needed
        return Room(
            self.request.file,
            session.n_ctx,
            model.n_ctx_train,
            model.n_ctx_original,
            needed,
            cache,
            free,
            self._options.memory.when_full,
            getattr(session.memory, "reserved", 0),
            session.computes,
        )

    def reopen(self, tokens: int | None, policy: str) -> list[str]:
        """Another context of so many tokens (None: what the file is made for, or what fits) with a
        policy; what is cached goes with it where that can be. What the user should know. Raises
        GgextError, after which the context is as it was."""
        memory = self._options.memory.of(cast("WhenFull", policy))
        options = replace(
            self._options, n_ctx=tokens, memory=memory, leaves_memory=False
        )
        with tempfile.TemporaryDirectory(prefix="ggext-") as folder:
            path = Path(folder, "kv.bin")
            saved = self._saved(path)
            self._replace(options)
            self.ctx = "auto" if tokens is None else tokens
            return [*self.session.notices, *self._restored(path, saved=saved)]

    def _replace(self, options: SessionOptions) -> None:
        self.session.close()
        try:
            self.session = self._opened(options)
        except BaseException:
            self.session = self._opened(self._options)
            raise
        self._options = options

    def _first(self, text: int) -> Session:
        """The first context; ``request`` then says what was chosen for a full one."""
        if self.request.when_full != "auto":
            return self._opened(self._options)
        from ggext.runtime.auto import open_session
        from ggext.runtime.prefixes import Prefixes

        session, self.chosen = open_session(self.model, self._options, Prefixes(), text)
        self._options = session.options
        self.request = self.request.with_policy(self.chosen)
        return session

    def _opened(self, options: SessionOptions) -> Session:
        """A context, and room for texts that leave it for another."""
        from ggext.runtime.engine import Session
        from ggext.runtime.prefixes import Prefixes

        return Session(self.model, options, Prefixes())

    def _saved(self, path: Path) -> bool:
        from ggext.runtime import store

        if not self.session.used:
            return False
        try:
            store.save(path, self.session, store.session_key(self.session))
        except (GgextError, OSError):
            return False
        return True

    def _restored(self, path: Path, *, saved: bool) -> list[str]:
        from ggext.runtime import store

        if not saved:
            return []
        try:
            store.restore(path, self.session, store.session_key(self.session))
        except GgextError as error:
            return [f"the next turn reads the chat again: {error}"]
        return []


def _session_options(request: Request, *, is_empty: bool) -> SessionOptions:
    from ggext.runtime.engine import MemoryOptions, SessionOptions

    n_ctx = None if request.ctx == "auto" else request.ctx
    return SessionOptions(
        n_ctx,
        request.threads,
        request.batch_size,
        flash_attention=_FLASH[request.flash_attn],
        kv_type=request.kv,
        memory=MemoryOptions(
            cast("WhenFull", request.policy),
            keep=request.keep,
            evicted=cast("Evicted | None", request.evicted),
            evicted_memory=request.evicted_memory,
        ),
        dynamic_ntk=cast("DynamicNtk | None", request.dynamic_ntk),
        swa=cast("Swa", request.swa),
        leaves_memory=request.ctx is None and is_empty,
        adapter=request.adapter,
    )


def open_chat(
    request: Request,
    screen: Screen,
    stack: ExitStack,
    chat_input: ChatInput,
    *,
    debug: bool,
) -> Chat:
    """The chat that a request asks for, with what there was of it. Raises GgextError."""
    from ggext.chat.conversation import Conversation
    from ggext.chat.loop import Chat

    is_long = (
        request.documents or request.session is not None or request.load is not None
    )
    text = sum(len(one.text) for one in chat_input.documents) // _CHARACTERS
    engine = Engine(
        request, screen, is_empty=chat_input.is_chat and not is_long, text=text
    )
    stack.callback(engine.close)
    request = engine.request
    conversation = Conversation(
        engine.model, engine.session, request.sampling, request.options
    )
    for notice in engine.session.notices:
        screen.notice(notice)
    if engine.chosen is not None:
        screen.notice(engine.chosen.sentence)
    if conversation.prompts.template is None:
        screen.notice(
            "the file has no chat template: the model continues the text as it is"
        )
    if request.load is not None:
        _load(request, conversation, screen)
    screen.markdown = request.markdown and conversation.prompts.template is not None
    keeper = _keeper(
        request, screen, conversation, engine.session, is_chat=chat_input.is_chat
    )
    chat = Chat(conversation, screen, engine.room(), keeper, debug=debug)
    if keeper is not None:
        stack.callback(_leave, request, screen, keeper)
        _resume(request, conversation, screen, keeper)

    def reopen(tokens: int | None, policy: str) -> tuple[Room, list[str]]:
        try:
            notices = engine.reopen(tokens, policy)
        finally:
            conversation.change_engine(engine.session)
            if chat.keeper is not None and chat.keeper.session is not None:
                chat.keeper.session = engine.session
        return engine.room(), notices

    chat.reopen = reopen
    chat.settings = lambda: _settings(request, chat, engine)
    return chat


def _load(request: Request, conversation: Conversation, screen: Screen) -> None:
    """Continues a saved chat; what the command line says of sampling counts for more."""
    from ggext.chat.loop import load

    assert request.load is not None
    load(conversation, screen, request.load, request.file.name)
    given: dict[str, Any] = {
        name: getattr(request.sampling, name)
        for name in SAMPLED
        if name in request.explicit
    }
    conversation.sampling = replace(conversation.sampling, **given)


def _settings(request: Request, chat: Chat, engine: Engine) -> KeptSettings:
    """What the chat runs with now."""
    from ggext.chat.kept_settings import KeptSettings

    conversation = chat.conversation
    options = conversation.options
    sampling = conversation.sampling
    think = request.think
    if conversation.prompts.think is False and sampling.grammar is None:
        think = "off"
    elif chat.screen.show_thoughts:
        think = "show"
    elif think is not None or conversation.prompts.think:
        think = "hide"
    adapter = None if request.adapter is None else os.path.abspath(request.adapter)
    sampled: dict[str, Any] = {name: getattr(sampling, name) for name in SAMPLED}
    when_full = "turns" if options.drop_turns else chat.room.when_full
    return KeptSettings(
        model=os.path.abspath(request.file),
        max_tokens=options.max_tokens,
        stop=options.stop,
        think=cast("Any", think),
        when_full=when_full,
        keep=request.keep,
        evicted=request.evicted,
        evicted_memory=request.evicted_memory,
        ctx=engine.ctx,
        kv=request.kv,
        swa=request.swa,
        dynamic_ntk=request.dynamic_ntk,
        adapter=adapter,
        **sampled,
    )


def _keeper(
    request: Request,
    screen: Screen,
    conversation: Conversation,
    session: Session,
    *,
    is_chat: bool,
) -> Keeper | None:
    """A chat is kept under its name, or without one if it is typed; one question only under a name.
    Where nothing can be written the chat goes on, and says so."""
    from ggext.chat.folder import OpenElsewhereError
    from ggext.chat.session import Keeper, autosaved, named, read_only

    try:
        if request.session is not None:
            return Keeper(named(request.session), request.file.name, session)
        if is_chat and request.autosave:
            return Keeper(autosaved(), request.file.name, None)
    except OpenElsewhereError:
        raise
    except OutputError as error:
        screen.notice(str(error))
        turns = [] if request.session is None else read_only(request.session)
        if turns:
            conversation.restart(turns)
            screen.notice("what was kept of it is read, what is said now is not kept")
    return None


def _resume(
    request: Request, conversation: Conversation, screen: Screen, keeper: Keeper
) -> None:
    from ggext.chat.notices import left_earlier
    from ggext.chat.transcript import questions

    if request.session is None:
        return
    restored, summary = keeper.restore()
    if keeper.turns:
        by_turns = request.when_full in (
            "stop",
            "turns",
        )  # the others are given every turn
        dropped_turns = keeper.dropped_turns if by_turns else 0
        conversation.restart(keeper.turns, dropped_turns)
        if restored:
            conversation.is_cached()
        if request.options.system is not None:
            conversation.set_system(request.options.system)
    screen.notice(f"session {keeper.name}: {questions(keeper.turns)}; {summary}")
    if request.as_it_was:
        screen.notice(f"with what it had: {request.as_it_was}")
    for notice in left_earlier(conversation):
        screen.notice(notice)
    if keeper.damaged:
        lines = "a line" if keeper.damaged == 1 else f"{keeper.damaged} lines"
        screen.notice(
            f"{lines} of its journal was cut off or damaged, and is left out with its turns"
        )
    if keeper.model != request.file.name:
        screen.notice(
            f"it was started with {keeper.model!r:.80}; this is {request.file.name}"
        )


def _leave(request: Request, screen: Screen, keeper: Keeper) -> None:
    """Keeps what there is; also when an error ends the chat, which goes on afterwards."""
    try:
        keeper.save_state()
    except GgextError as error:
        screen.error(f"the KV cache is not kept: {error}")
    except KeyboardInterrupt:
        screen.error("the KV cache is not kept: Ctrl-C stopped its writing")
    keeper.close()
    if request.session is None and keeper.kept:
        command = shlex.join(
            ["ggext", "chat", str(request.file), "--session", keeper.name]
        )
        screen.notice(f"the chat is kept: {command}")
