"""A SentencePiece vocabulary is read while the data is copied: there is room for it, and what goes
wrong is found."""

from __future__ import annotations

import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny import VOCABULARY, make_llama

from ggext.checkpoint.vocabulary.read import read_vocabulary
from ggext.checkpoint.vocabulary.room import vocabulary_room
from ggext.cli import main
from ggext.convert import ConvertOptions, convert
from ggext.errors import CheckpointError
from ggext.gguf import writer
from ggext.gguf.header import BLOCK, SLACK, packed_length
from ggext.gguf.open import read_gguf
from ggext.gguf.types import Field

BYTES = [(f"<0x{byte:02X}>", 6) for byte in range(256)]
FIRST = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *BYTES]
USUAL = [*FIRST, *((f"piece{i}", 1) for i in range(VOCABULARY - len(FIRST)))]


def sentencepiece(pieces: Iterable[tuple[str, int]]) -> bytes:
    """A tokenizer.model of the pieces and their types, as SentencePiece writes it, and its
    trainer's type, BPE."""
    data = b""
    for i, (text, kind) in enumerate(pieces):
        raw = text.encode()
        body = b"\x0a" + varint(len(raw)) + raw + b"\x15" + struct.pack("<f", -i)
        body += b"" if kind == 1 else bytes((0x18, kind))
        data += b"\x0a" + varint(len(body)) + body
    return data + b"\x12\x02\x18\x02"


def varint(value: int) -> bytes:
    return (
        bytes((value,))
        if value < 0x80
        else bytes((value & 0x7F | 0x80,)) + varint(value >> 7)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_llama(
        tmp_path_factory.mktemp("models") / "spm", bos_token_id=1, eos_token_id=2
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "tokenizer.model").write_bytes(sentencepiece(USUAL))
    return folder


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Each time that a file's data is written."""
    paths: list[Path] = []
    write = writer.write_arranged

    def counted(path: Path, arranged: writer.Arranged, *rest: object) -> None:
        paths.append(path)
        write(path, arranged, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "write_arranged", counted)
    return paths


def written(checkpoint: Path) -> tuple[int, Path]:
    """Bytes of padding in the file that is made of a checkpoint, whose vocabulary is found in it;
    and the file."""
    out = checkpoint.parent / "out.gguf"
    convert(ConvertOptions(checkpoint, out))
    gguf = read_gguf(out)
    for key, value in read_vocabulary(checkpoint, VOCABULARY).metadata().items():
        assert gguf.fields[key] == Field.of(value)
    assert gguf.get("general.name") == "Model"
    return gguf.data_offset - packed_length(
        gguf.fields, list(gguf.tensors.values())
    ), out


def test_there_is_room_and_little_more(checkpoint: Path, writes: list[Path]) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}" * 5000)
    padding, _ = written(checkpoint)
    assert len(writes) == 1
    assert padding < 2 * SLACK + BLOCK + VOCABULARY * 2


def test_the_room_is_enough_for_any_pieces(tmp_path: Path) -> None:
    draw = random.Random(7)
    for count in (259, 300, 5000):
        texts = dict.fromkeys(
            "".join(draw.choices("ab\u2581é漢", k=draw.randint(1, 40)))
            for _ in range(count)
        )
        pieces = [*FIRST, *((text, 1) for text in texts)]
        (tmp_path / "tokenizer.model").write_bytes(sentencepiece(pieces))
        room = vocabulary_room(tmp_path, len(pieces))
        assert room is not None
        fields = read_vocabulary(tmp_path, len(pieces)).metadata()
        assert (
            sum(len(Field.of(value).packed()) for value in fields.values())
            <= room + 1000
        )


def test_a_header_that_does_not_fit_is_written_again(
    checkpoint: Path, writes: list[Path]
) -> None:
    (checkpoint / "chat_templates").mkdir()
    (checkpoint / "chat_templates" / "tools.jinja").write_text("x" * 50_000)
    _, out = written(checkpoint)
    assert len(writes) == 2
    assert read_gguf(out).get("tokenizer.chat_template.tools") == "x" * 50_000


def test_room_that_is_not_needed_is_padding(
    checkpoint: Path, writes: list[Path]
) -> None:
    (checkpoint / "tokenizer_config.json").write_text("{" + " " * 10_000 + "}")
    assert written(checkpoint)[0] > 10_000
    assert len(writes) == 1


@pytest.mark.parametrize(
    "data",
    [b"IQ== 0\n", sentencepiece(USUAL) + b"\x32\xff\xff\x03" + bytes(0xFFFF), None],
)
def test_where_no_size_tells_the_room(
    checkpoint: Path, writes: list[Path], data: bytes | None
) -> None:
    """Ranks, a file that is mostly something else, and none: the vocabulary is read first."""
    assert vocabulary_room(checkpoint, VOCABULARY) is not None
    (checkpoint / "tokenizer.model").unlink()
    if data is not None:
        (checkpoint / "tokenizer.model").write_bytes(data)
    assert vocabulary_room(checkpoint, VOCABULARY) is None
    if data is not None and data.startswith(b"\n"):
        assert written(checkpoint)[0] < SLACK + 2 * BLOCK
        assert len(writes) == 1


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([(USUAL[0][0], 7), *USUAL[1:]], "is not a SentencePiece model"),
        ([*USUAL, ("more", 1)], "321 tokens .* is 320"),
    ],
)
def test_an_error_that_is_found_late_leaves_the_old_file(
    checkpoint: Path, pieces: list[tuple[str, int]], message: str
) -> None:
    (checkpoint / "tokenizer.model").write_bytes(sentencepiece(pieces))
    out = checkpoint.parent / "out.gguf"
    out.write_bytes(b"the old file")
    with pytest.raises(CheckpointError, match=message):
        convert(ConvertOptions(checkpoint, out, force=True))
    assert out.read_bytes() == b"the old file"
    assert not list(out.parent.glob(".out*"))
    done = CliRunner().invoke(main, ["convert", str(checkpoint), "--dry-run"])
    assert done.exit_code == 1
    assert "nothing was written" not in done.output


def test_kill_9_while_the_vocabulary_is_read(checkpoint: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ggext.convert import sources\n"
        "from ggext.convert import ConvertOptions, convert\n"
        "def slow(*_): print('reading', flush=True); time.sleep(60)\n"
        "sources._vocabulary = slow\n"
        "convert(ConvertOptions(Path(sys.argv[1]), Path(sys.argv[2]), force=True))\n"
    )
    out = checkpoint.parent / "out.gguf"
    out.write_bytes(b"the old file")
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(checkpoint), str(out)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "reading\n"
    child.kill()
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    assert out.read_bytes() == b"the old file"
