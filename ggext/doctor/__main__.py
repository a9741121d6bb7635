"""``python -m ggext.doctor STEP...``: the steps in this process, for `ggext.doctor.runs`."""

import sys

from ggext.doctor.runs import run_in_this_process

run_in_this_process(sys.argv[1:])
