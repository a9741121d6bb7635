"""A checkpoint or a GGUF file goes in, a GGUF file with the chosen RoPE scaling in it comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ggext.convert.fold import Rounding, folded_weights
from ggext.convert.header_only import Bake, check_in_place, float32_bytes
from ggext.convert.imatrix import Imatrix, imatrix_for
from ggext.convert.model_source import ModelSource, SourceTensor
from ggext.convert.options import ConvertOptions, Plan
from ggext.convert.quantize import to_write
from ggext.convert.request import Request, default_name, resolve_scaling
from ggext.convert.scaled import Scaled, unscaled, with_scaling
from ggext.convert.sources import open_source
from ggext.convert.tensor_types import FILE_TYPES, TypePlan, check_made, plan_types
from ggext.convert.trial import Trial, check_source
from ggext.errors import OutputError, UsageError
from ggext.gguf.open import read_gguf
from ggext.gguf.shards import all_parts, metadata_part
from ggext.gguf.split import check_parts, write_parts
from ggext.gguf.types import F32, Field, prevailing_type
from ggext.gguf.writer import (
    LateFields,
    TensorToWrite,
    check_output,
    private_folder_beside,
    put_in_place,
    write_gguf,
)
from ggext.rope.encoding import SCALING_TENSORS, Encoding
from ggext.rope.scaling import RopeScaling

Progress = Callable[[int], None]


def silent(_: object) -> None:
    """A progress that no one watches."""


def convert(options: ConvertOptions, progress: Progress = silent) -> Plan:
    """Write the file that ``plan`` describes. Raises a ``GgextError``; the output is whole or
    absent."""
    return execute(plan(options), progress)


def plan(options: ConvertOptions) -> Plan:
    """Everything that can be decided, and refused, from headers alone. Nothing is written."""
    source = _open(options)
    if source.is_gguf:
        check_source(source.path, source.fields)
    notes = list(source.notes)
    request = resolve_scaling(
        options.rope,
        options.target_context,
        source,
        keeps_own=options.encoding is None and not source.needs_mending,
        asked_by=options.asked_by,
        attention_factor=options.attention_factor,
    )
    scaled = _scaled(options, source, request)
    tensors = scaled.tensors
    types = plan_types(tensors, options.type, options.tensor_types, source.is_gguf)
    written = _to_write(tensors, types, scaled.encoding, Rounding())
    imatrix, of_matrix = imatrix_for(options.imatrix, types, tensors)
    notes += (*request.notes, *scaled.notes, *types.notes, *of_matrix)
    fields = dict(scaled.fields) | _type_fields(options, source, types, tensors)
    keeps_types = types.kinds == [t.type for t in tensors]
    out = _output(options, source, request.scaling, notes[-1:])
    bake = _bake(source, scaled.encoding, fields, tensors) if keeps_types else None
    return Plan(
        out=out,
        source=source,
        encoding=scaled.encoding,
        scaling=request.scaling,
        geometry=scaled.geometry,
        fields=fields | _matrix_fields(imatrix),
        sources=tensors,
        tensors=written,
        nbytes=sum(t.nbytes for t in written),
        types=types,
        imatrix=imatrix,
        split=options.split,
        notes=tuple(notes),
        bake=bake,
        in_place=options.in_place,
        why_not_folded=scaled.why_not_folded,
    )


def _to_write(
    tensors: Sequence[SourceTensor],
    types: TypePlan,
    encoding: Encoding | None,
    rounding: Rounding,
) -> list[TensorToWrite]:
    """``rounding``: gets what the scaled tensors lose when their data is made."""
    factors = {} if encoding is None else encoding.tensors
    return [
        *(
            to_write(t, kind, rounding)
            for t, kind in zip(tensors, types.kinds, strict=True)
        ),
        *(_factors(name, values) for name, values in factors.items()),
    ]


def _scaled(options: ConvertOptions, source: ModelSource, request: Request) -> Scaled:
    if request.scaling is None:
        return unscaled(source)
    return with_scaling(
        source,
        request.scaling,
        options.encoding,
        request.asked_by,
        options.searched,
        in_place=options.in_place,
    )


def _type_fields(
    options: ConvertOptions,
    source: ModelSource,
    types: TypePlan,
    tensors: Sequence[SourceTensor],
) -> dict[str, Field]:
    """What a file says of the types of its tensors; a GGUF file that keeps them says it already."""
    if source.is_gguf and options.type.lower() == "auto":
        return {}
    prevailing = prevailing_type(
        zip(types.kinds, (t.shape for t in tensors), strict=True)
    )
    return {
        "general.file_type": Field.of(FILE_TYPES[prevailing]),
        "general.quantization_version": Field.of(2),
    }


def _matrix_fields(imatrix: Imatrix | None) -> dict[str, Field]:
    metadata = {} if imatrix is None else imatrix.metadata()
    return {key: Field.of(value) for key, value in metadata.items()}


def _open(options: ConvertOptions) -> ModelSource:
    if not options.in_place:
        return open_source(
            options.model,
            replaced=options.replaces_scaling,
            gain_replaced=options.attention_factor is not None,
        )
    checkpoint = (options.model / "config.json").is_file()
    path = options.model if checkpoint else metadata_part(options.model)
    source = open_source(path, one_part=True)
    others = {
        "OUT": options.out,
        "type=…": options.type.lower() != "auto",
        "tensor_types": options.tensor_types,
        "imatrix=…": options.imatrix,
        "split=…": options.split,
    }
    check_in_place(
        source.gguf, source.path, [name for name, given in others.items() if given]
    )
    changes = (
        options.rope
        or options.target_context
        or options.encoding
        or options.attention_factor
    )
    if not changes and not source.needs_mending:
        raise UsageError(
            f"nothing is asked of {source.path}; name a scaling, for example "
            "rope=RopeScaling('yarn', factor=4)"
        )
    return source


def _output(
    options: ConvertOptions,
    source: ModelSource,
    scaling: RopeScaling | None,
    reasons: Sequence[str],
) -> Path:
    """``reasons``: why there may be nothing to write, for a message."""
    if options.in_place:
        return source.path
    out = options.out or Path(default_name(source, scaling, options.type.lower()))
    _check_not_input(out, source, reasons, named=options.out is not None)
    check_output(out, options.force)
    if options.split is not None:
        check_parts(out, options.force)
    return out


def _bake(
    source: ModelSource,
    encoding: Encoding | None,
    fields: dict[str, Field],
    tensors: Sequence[SourceTensor],
) -> Bake | None:
    """``None`` where tensor data is made again, but for query norms."""
    if source.gguf is None:
        return None
    norms = folded_weights(tensors)
    if not norms and any(t.row_scale is not None for t in tensors):
        return None
    factors = {} if encoding is None else encoding.tensors
    stale = (
        ()
        if encoding is None
        else tuple(name for name in SCALING_TENSORS if name in source.gguf.tensors)
    )
    return Bake(
        source.gguf,
        fields,
        {name: float32_bytes(values) for name, values in factors.items()},
        stale,
        norms,
    )


def execute(plan: Plan, progress: Progress = silent) -> Plan:
    """Writes what ``plan`` describes; the plan with what is known after that."""
    if plan.in_place:
        assert plan.bake is not None  # plan() refuses what would change the weights
        return replace(plan, how=plan.bake.in_place(progress), files=(plan.out,))
    how = plan.bake.beside(plan.out, progress) if plan.bake and plan.shares_data else ""
    if how:
        return replace(plan, how=how, files=(plan.out,))
    rounding = Rounding()
    tensors = _to_write(plan.sources, plan.types, plan.encoding, rounding)
    plan = replace(plan, tensors=tensors)
    if plan.source.is_gguf:
        plan = _execute(plan, progress, None)
    else:
        with Trial(plan.out) as trial:
            plan = _execute(plan, progress, trial)
    return replace(plan, rounding=rounding.loss())


def _execute(plan: Plan, progress: Progress, trial: Trial | None) -> Plan:
    quantization = plan.types.quantization
    if quantization is None:
        if plan.split is None:
            late = _write(plan, plan.out, progress, trial)
            return replace(plan, files=(plan.out,), notes=(*plan.notes, *late))
        fields, late = plan.completed()
        plan = replace(plan, notes=(*plan.notes, *late))
        if trial is not None:
            trial.begin(fields, plan.tensors)
            trial.check()
        return replace(plan, files=_write_parts(plan, fields, plan.tensors, progress))
    from ggext.runtime.quantizer import quantize

    with private_folder_beside(plan.out) as folder:
        unquantized = folder / "unquantized.gguf"
        quantized = folder / plan.out.name
        late = _write(plan, unquantized, progress, trial)
        plan = replace(plan, notes=(*plan.notes, *late))
        entries = None if plan.imatrix is None else plan.imatrix.entries
        quantize(
            unquantized,
            quantized,
            quantization,
            tensor_types=plan.types.exact,
            imatrix=entries,
            source_name=str(plan.source.path),
        )
        made = read_gguf(quantized)
        check_made(
            {name: info.type for name, info in made.tensors.items()}, plan.types.exact
        )
        if plan.split is None:
            put_in_place(quantized, plan.out)
            return replace(plan, files=(plan.out,))
        tensors = [
            to_write(
                SourceTensor(info.name, info.shape, info.type, made),
                info.type,
                Rounding(),
            )
            for info in made.tensors.values()
        ]
        return replace(plan, files=_write_parts(plan, made.fields, tensors, silent))


def _write(
    plan: Plan, out: Path, progress: Progress, trial: Trial | None
) -> Sequence[str]:
    """Writes one file; notes on what was read while its data was copied."""
    late: list[str] = []
    if trial is None:
        unchanged = plan.source.inputs.check
        write_gguf(out, plan.fields, plan.tensors, progress, approve=unchanged)
        return late

    def approve() -> None:
        plan.source.inputs.check()
        trial.check()

    def complete() -> Mapping[str, Field]:
        fields, notes = plan.completed()
        late.extend(notes)
        return trial.begin(fields, plan.tensors)

    later = LateFields(complete, plan.source.later_bytes)
    write_gguf(out, plan.fields, plan.tensors, progress, later, approve)
    return late


def _write_parts(
    plan: Plan,
    fields: Mapping[str, Field],
    tensors: Sequence[TensorToWrite],
    progress: Progress,
) -> tuple[Path, ...]:
    """With the factors in the part that holds the metadata, where a later bake finds them."""
    assert plan.split is not None
    in_order = sorted(tensors, key=lambda tensor: tensor.name not in SCALING_TENSORS)
    unchanged = plan.source.inputs.check
    return write_parts(plan.out, fields, in_order, plan.split, progress, unchanged)


def _factors(name: str, values: tuple[float, ...]) -> TensorToWrite:
    data = float32_bytes(values)
    return TensorToWrite(name, (len(values),), F32, len(data), lambda: [data])


def _check_not_input(
    out: Path, source: ModelSource, reasons: Sequence[str], *, named: bool
) -> None:
    """``named``: the user chose the output; the name that is made says what the file has, so it is
    the input's own where nothing about that changes."""
    inputs = (
        set(all_parts(source.path)) if source.is_gguf else set(source.path.glob("*"))
    )
    if not any(
        out.exists() and path.exists() and out.samefile(path) for path in inputs
    ):
        return
    if named:
        raise OutputError(f"{out} is the input itself; name another output")
    usual = "no scaling, type or encoding is asked for"
    reason = next(iter(reasons), usual)
    raise UsageError(
        f"there is nothing to write: {reason}; ask for something, for example "
        "rope=RopeScaling('yarn', factor=4), or name an "
        "output to copy it"
    )
