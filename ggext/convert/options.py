"""What is asked of a conversion, and what is decided about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggext.arguments import check_fields
from ggext.convert.fold import RoundingLoss
from ggext.convert.header_only import Bake
from ggext.convert.imatrix import Imatrix
from ggext.convert.model_source import ModelSource, SourceTensor
from ggext.convert.tensor_types import TypePlan
from ggext.gguf.types import Field
from ggext.gguf.writer import (
    TensorToWrite,
)
from ggext.rope.encoding import Encoding, EncodingName
from ggext.rope.recipe import PROGRAM, Searched
from ggext.rope.scaling import RopeGeometry, RopeScaling


@dataclass(frozen=True)
class ConvertOptions:
    """What is asked of a conversion."""

    # A checkpoint's folder or a GGUF file.
    model: Path
    # None: a name made from the model's and the request's.
    out: Path | None = None
    # None bakes what the source itself says. A factor of None is made from `target_context`.
    rope: RopeScaling | None = None
    # Tokens.
    target_context: int | None = None
    # auto (the source's own), f32, f16, bf16, q8_0 or a K-quant's name.
    type: str = "auto"
    # PATTERN=TYPE for some tensors.
    tensor_types: tuple[str, ...] = ()
    # An importance matrix for llama.cpp's quantizer.
    imatrix: Path | None = None
    # How the scaling is written; None: the simplest form that is exact.
    encoding: EncodingName | None = None
    # Bytes of tensor data in each file; None: one file.
    split: int | None = None
    # Whether an existing output is replaced.
    force: bool = False
    # Whether the header of `model` is changed: a GGUF file, one of several parts, or their folder.
    in_place: bool = False
    # The gain on cos and sin, in place of the one of the source's own scaling.
    attention_factor: float | None = None
    # What a search measured of ``rope``, to be kept in the file.
    searched: Searched | None = None
    # Who makes this request, as the file will say.
    asked_by: str = PROGRAM

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def replaces_scaling(self) -> bool:
        """Whether the model's own scaling does not matter."""
        return self.rope is not None or self.target_context is not None


@dataclass(frozen=True)
class Plan:
    """What will be written."""

    out: Path
    source: ModelSource
    # None where a GGUF file keeps its RoPE keys as they are.
    encoding: Encoding | None
    scaling: RopeScaling | None
    geometry: RopeGeometry
    # All but what `completed` adds.
    fields: Mapping[str, Field]
    # Those of the source with the scaling in them; `types` says what each becomes.
    sources: Sequence[SourceTensor]
    # All that will be in the file. `execute` makes them again, to sum up `rounding`.
    tensors: Sequence[TensorToWrite]
    # Bytes of tensor data, before quantizing by llama.cpp.
    nbytes: int
    types: TypePlan
    imatrix: Imatrix | None
    split: int | None
    # Lines for the user.
    notes: Sequence[str] = ()
    # What folding cost a GGUF file's query weights; known after writing.
    rounding: RoundingLoss = field(default_factory=RoundingLoss)
    # What was written; known after writing.
    files: tuple[Path, ...] = ()
    # The same plan for a GGUF file whose tensor data stays as it is.
    bake: Bake | None = None
    in_place: bool = False
    # How the data of a GGUF file got into the new one; known after writing.
    how: str = ""
    # Why a gain stays in the keys, where the request named no encoding; a sentence without its end.
    why_not_folded: str = ""

    @property
    def shares_data(self) -> bool:
        """Whether a second file may share the data of the first."""
        return (
            self.bake is not None
            and self.split is None
            and self.types.quantization is None
        )

    def completed(self) -> tuple[dict[str, Field], tuple[str, ...]]:
        """``fields`` with those that a checkpoint's source makes later, and notes on these."""
        architecture = "general.architecture"
        fields = {architecture: self.fields[architecture]}
        notes: list[str] = []
        for make in self.source.later:
            made, of_fields = make()
            fields |= made
            notes += of_fields
        return fields | dict(self.fields), tuple(notes)
