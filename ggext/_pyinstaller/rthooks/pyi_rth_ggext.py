"""Before the frozen program's first line: where it was started as a child, it is one."""

from ggext.runtime.child import run_if_child

run_if_child()
