"""Everything of ggext but what it imports for extras that a frozen program rarely wants."""

from PyInstaller.utils.hooks import (
    collect_data_files,
    collect_submodules,
    copy_metadata,
)

# Commands, families and lazy names are imported by their names.
hiddenimports = collect_submodules(
    "ggext", filter=lambda name: "_pyinstaller" not in name
)
datas = [*collect_data_files("ggext"), *copy_metadata("ggext")]
# Gigabytes that only pickled checkpoints, verify --reference and --plot need. A program that
# imports one of them itself has it.
excludedimports = ["matplotlib", "torch", "transformers"]
