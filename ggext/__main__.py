"""``python -m ggext`` is ``ggext``."""

from ggext.cli import main

if __name__ == "__main__":
    main(prog_name="ggext")
