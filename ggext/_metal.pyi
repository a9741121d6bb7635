# The compiled Metal backend, native/metal_module.c; on macOS only. Use it through ggext.native.
from ggext._native import _Array, _Table

def devices() -> tuple[int, str | None]: ...
def rotate(
    rows: _Array,
    type: int,
    to: _Table | None,
    from_: _Table | None,
    neox: bool,
    threads: int,
    out: _Array,
    /,
) -> None: ...
