# The compiled CUDA backend, native/cuda_module.c; not in every build. Use it through ggext.native.
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
def measure(
    type: int, to: _Table, neox: bool, n_heads: int, head_dim: int, repeats: int, /
) -> tuple[float, float]: ...
