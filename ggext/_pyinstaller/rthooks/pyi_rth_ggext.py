"""Before the frozen program's first line: where it was started as a child, it is one."""

import sys

from ggext.runtime.child import run_if_child

if sys.argv[1:2] and sys.argv[1].startswith("--ggext-"):
    from ggext import freeze_support

    freeze_support()
run_if_child()  # from now on children may be started
