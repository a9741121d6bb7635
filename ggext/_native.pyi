# The compiled extension, native/module.c. Use it through ggext.native.
from typing import Any, TypeAlias

from numpy.typing import NDArray
from typing_extensions import Buffer

# numpy says that its arrays are buffers only from Python 3.12 on.
_Array: TypeAlias = NDArray[Any] | Buffer

def rotate(
    rows: _Array,
    positions: _Array,
    inv_freq: _Array,
    attention_factor: float,
    neox: bool,
    inverse: bool,
    threads: int,
    out: _Array,
    /,
) -> None: ...
def cos_sin(
    positions: _Array,
    inv_freq: _Array,
    attention_factor: float,
    threads: int,
    cos_out: _Array,
    sin_out: _Array,
    /,
) -> None: ...
def worst_error(
    actual: _Array,
    rows: _Array,
    positions: _Array,
    inv_freq: _Array,
    attention_factor: float,
    neox: bool,
    inverse: bool,
    threads: int,
    /,
) -> tuple[float, int, int, int]: ...
