"""The program: ``ggext``, or ``python -m ggext``."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Runs the command line. Until it is imported Ctrl-C just ends the process, without a trace."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from ggext.cli import main as command
    from ggext.cli.process import leave_at_once

    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGINT, leave_at_once)
    command(prog_name="ggext")


if __name__ == "__main__":
    main()
