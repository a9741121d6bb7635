"""llama.cpp's own word on a header before its file gets a name: hyperparameters, vocabulary and the
shape of every tensor, in a child process, since llama.cpp ends its process where it could refuse.

The child starts at once and loads the library while the caller is busy; nothing of the weights is
read (``no_alloc``), so the file may be one of holes. Without llama-cpp-python, or with
GGEXT_FIRST_LOAD=here in the environment, there is no child and no word.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from ggext.errors import GgextError, ModelError, UsageError
from ggext.runtime.channel import Channel
from ggext.runtime.child import Child, is_child, is_unwanted
from ggext.runtime.closing import Closing

_SERVE = "ggext.runtime.header_trial:serve"
#: What an older library says of a file that a newer one opens: no fault of the file.
_NOT_KNOWN = ("unknown model architecture", "unknown pre-tokenizer type")


class HeaderTrial(Closing):
    """One trial: `ask`, and later `refusal`. Needs no closing where it was not asked."""

    def __init__(self) -> None:
        self._child: Child | None = None
        if is_child() or is_unwanted() or importlib.util.find_spec("llama_cpp") is None:
            return
        try:
            self._child = Child(_SERVE)
        except (ModelError, UsageError):
            return

    @property
    def is_possible(self) -> bool:
        """Whether there is a llama.cpp to ask."""
        return self._child is not None

    def ask(self, path: Path) -> None:
        """Have it read the file, which must stay until `refusal` returns."""
        if self._child is not None:
            self._child.send({"path": str(path.absolute())})

    def refusal(self) -> str | None:
        """Waits for the answer: why llama.cpp does not open the file, ``None`` where it does, or
        where it does not know such files at all."""
        if self._child is None:
            return None
        reply = self._child.receive()
        if reply is None:
            return str(self._child.died())
        reason = reply.get("reason")
        if reason is None or any(words in reason for words in _NOT_KNOWN):
            return None
        return str(reason)

    def close(self) -> None:
        """Ends the child. Further calls do nothing."""
        child = self._child
        self._child = None
        if child is not None:
            child.kill()
            child.close()


def serve(channel: Channel) -> None:
    """The child: loads the library, then the file that it is asked about."""
    _import_bindings_alone()
    from ggext.runtime import llama

    try:
        module = llama.lib("reading the finished header")
    except GgextError:
        module = None  # of another version: no word
    request = channel.receive()
    if request is not None:
        reason = None if module is None else _refused(module, request["path"])
        channel.send({"reason": reason})


def _import_bindings_alone() -> None:
    """Let ``import llama_cpp`` give the ctypes bindings alone, in this process: the package also
    loads NumPy, Jinja and more, 0.11 of 0.15 s of CPU time."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        return
    package: Any = ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    package.__version__ = metadata.version("llama-cpp-python")
    sys.modules["llama_cpp"] = package
    importlib.import_module("llama_cpp.llama_cpp")


def _refused(module: Any, path: str) -> str | None:
    from ggext.runtime import llama

    params = module.llama_model_default_params()
    params.no_alloc = True
    params.load_mode = module.LLAMA_LOAD_MODE_NONE
    params.lazy_mode = module.LLAMA_LAZY_MODE_OFF
    params.n_gpu_layers = 0
    with llama.listening():
        handle = module.llama_model_load_from_file(os.fsencode(path), params)
        if handle:
            return None
        return llama.reason()
