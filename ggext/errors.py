"""Every error that ggext raises on purpose.

Library code raises; only ``ggext.cli`` prints a message and sets the exit code. A message is one
line that names the object, its value and the remedy.
"""

from __future__ import annotations


class GgextError(Exception):
    """Base of all errors that a user or a host application can cause; ``exit_code`` is the
    CLI's."""

    exit_code = 1


class UsageError(GgextError):
    """The request itself cannot be meant: an option out of range, two options that exclude each
    other."""

    exit_code = 2


class MissingExtraError(GgextError):
    """An optional package is not installed. ``extra`` names the extra that
    brings it; ``instead``: what else helps, for the end of the message."""

    def __init__(
        self, package: str, extra: str, purpose: str, instead: str = ""
    ) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed: pip install "
            f'"ggext[{extra}]"{instead}'
        )
        self.package = package
        self.extra = extra


class CheckpointError(GgextError):
    """A Hugging Face checkpoint is missing something, or something in it is malformed."""


class HubError(CheckpointError):
    """A model cannot be had from the hub: gated, missing, not in the cache, or the network
    failed."""


class GgufError(GgextError):
    """A GGUF file is malformed, or says something that cannot be honoured."""


class RopeError(GgextError):
    """A RoPE configuration is unknown, incomplete, contradictory or not expressible."""


class OutputError(GgextError):
    """An output file cannot be written: it exists, its folder is missing, the disk is full."""


class ModelError(GgextError):
    """llama.cpp refused a model, a context or a batch."""


class EngineDiedError(ModelError):
    """The process in which llama.cpp ran has died: of a signal, an abort, for want of memory.

    ``signal``: its name, such as ``SIGKILL``; None where the process ended with ``status`` by
    itself.
    """

    def __init__(self, message: str, signal: str | None, status: int) -> None:
        super().__init__(message)
        self.signal = signal
        self.status = status


class ContextFullError(ModelError):
    """The prompt does not fit. Nothing was evaluated and nothing was dropped. All counts in
    tokens."""

    exit_code = 3

    def __init__(self, requested: int, used: int, available: int) -> None:
        if used:
            what = (
                f"the context is full: {requested:,} more tokens are needed, {available:,} of "
                f"{used + available:,} are left; leave older turns out"
            )
        else:
            what = (
                f"the text has {requested:,} tokens and the context holds "
                f"{available:,}; shorten it"
            )
        super().__init__(
            f"{what}, take a longer context, or convert the model for one (ggext convert MODEL "
            "--target-context N)"
        )
        self.requested = requested
        self.used = used
        self.available = available


def first_line(error: BaseException) -> str:
    """What another library's error says, for a message of one line; its class, where it says
    nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
