# The compiled extension, native/module.c. Use it through ggext.native.
from typing import Any, TypeAlias

from numpy.typing import NDArray
from typing_extensions import Buffer

# numpy says that its arrays are buffers only from Python 3.12 on.
_Array: TypeAlias = NDArray[Any] | Buffer
# (positions, offset, inv_freq, attention_factor)
_Table: TypeAlias = tuple[_Array, int, _Array, float]

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
def cos_sin(to: _Table, threads: int, cos_out: _Array, sin_out: _Array, /) -> None: ...
def worst_error(
    actual: _Array,
    rows: _Array,
    type: int,
    to: _Table | None,
    from_: _Table | None,
    neox: bool,
    threads: int,
    /,
) -> tuple[float, int, int, int]: ...
def convert(values: _Array, type: int, out: _Array, out_type: int, /) -> int: ...
def use_vectors(level: int, /) -> int: ...

# The file tricks of native/files.c; use them through ggext.gguf.
def reserve(descriptor: int, nbytes: int, /) -> bool: ...
def skip_strings(data: Buffer, at: int, n: int, /) -> int: ...
def shift_range(file: int, collapse: bool, offset: int, length: int, /) -> None: ...
def copy(
    source: int, target: int, source_at: int, target_at: int, length: int, /
) -> int: ...

# What llama.cpp logs, native/log.c; use it through ggext.runtime.llama.
def log_callback() -> int: ...
def take_log() -> bytes: ...
