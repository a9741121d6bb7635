"""Texts that make a tokenizer's expressions match for long, on every pre-tokenizer of llama.cpp.

    python tests/hostile/texts.py SECONDS SEED

Every two- and three-character pattern of signs, letters, digits, marks, spaces and line ends, drawn
at random and repeated: short ones must give the tokens of the unbroken text, long ones (10^6
characters) must end. Children tokenize, so that a death names the pattern. Exit code 1: there was
one, or tokens differed.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

from ggext.gguf.types import Field  # noqa: E402
from ggext.gguf.writer import TensorToWrite, write_gguf  # noqa: E402
from ggext.llama_cpp_facts.splitters import BY_HAND, BY_REGEX  # noqa: E402

CHARACTERS = "-'/_(.|aAéяǅ你가ก12²\u0301\u200d\ufe0f \t\u00a0\n\r🎉\u0378$"
PRE_TOKENIZERS = sorted((BY_HAND | BY_REGEX) - {"whitespace"})
#: Characters that std::regex takes unbroken on a big stack, and what a long text has.
UNBROKEN, LONG = 6_000, 10**6
_STACK = 512 << 20
_SECONDS = 60  # of CPU that a long text may take


def patterns() -> Iterator[str]:
    """All of two and of three characters."""
    for length in (2, 3):
        for characters in itertools.product(CHARACTERS, repeat=length):
            yield "".join(characters)


def vocabulary(path: Path, pre: str) -> Path:
    """A model of random weights whose tokens are bytes and a few pairs, so that merges cross most
    borders of words."""
    import numpy as np
    from tiny_gguf import base_of

    from ggext.checkpoint.vocabulary.byte_level import SYMBOLS

    fields, arrays = base_of("llama")
    singles = list(SYMBOLS)
    pairs = [
        f"{a} {b}" for a in (SYMBOLS[byte] for byte in b"a- 1\n'") for b in singles
    ]
    pairs = [pair for pair in pairs if pair.count(" ") == 1]
    tokens = list(dict.fromkeys([*singles, *(pair.replace(" ", "") for pair in pairs)]))
    if pre in ("gemma4", "granite-embed-multi-311m", "sarvam-moe"):
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    rows = np.zeros((len(tokens), arrays["token_embd.weight"].shape[1]), "<f4")
    arrays |= {"token_embd.weight": rows, "output.weight": rows}
    fields |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": pairs,
        "llama.vocab_size": len(tokens),
    }
    for name in ("scores", "bos_token_id", "eos_token_id"):
        fields.pop(f"tokenizer.ggml.{name}", None)
    tensors = [
        TensorToWrite(
            name, array.shape[::-1], 0, array.nbytes, lambda a=array: [a.tobytes()]
        )
        for name, array in arrays.items()
    ]
    write_gguf(path, {key: Field.of(value) for key, value in fields.items()}, tensors)
    return path


def differs(path: Path, texts: list[str]) -> list[str]:
    """The texts whose tokens are not those of the unbroken text, though no match was longer than
    a window. Ends the process where llama.cpp does."""
    from ggext.runtime import long_text
    from ggext.runtime.model import Model

    wrong: list[str] = []
    cuts: list[str] = []
    cut = long_text._cut_anywhere

    def counted(
        window: str, tokenize: long_text.Tokenize, most: int
    ) -> tuple[list[int], int]:
        cuts.append(window)
        return cut(window, tokenize, most)

    long_text._cut_anywhere = counted

    def compare() -> None:
        with Model.open(path, 0) as model:
            for text in texts:
                whole = model._tokenize(text, False, False)
                assert len(whole) > len(text) // 8, (
                    "the vocabulary has not these characters"
                )
                cuts.clear()
                if model.tokenize(text, add_special=False) != whole and not cuts:
                    wrong.append(text)

    threading.stack_size(_STACK)
    thread = threading.Thread(target=compare)
    thread.start()
    thread.join()
    return wrong


def in_child(path: Path, texts: list[str], *, compare: bool) -> str:
    """What went wrong in a child, empty for nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        os.environ["GGEXT_FIRST_LOAD"] = "here"
        try:
            if compare:
                os.write(
                    writer,
                    "".join(f"{t[:3]!r} " for t in differs(path, texts)).encode(),
                )
            else:
                from ggext.runtime.model import Model

                with Model.open(path, 0) as model:
                    for text in texts:
                        model.tokenize(text)
        except BaseException as error:  # noqa: BLE001 - the parent reports it
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    return said or ("" if status == 0 else f"ended by signal {status & 127}")


def run(seconds: float, seed: int) -> tuple[int, int, list[str]]:
    """Numbers of short and of long texts, and what was wrong."""
    draw, every = random.Random(seed), list(patterns())
    end, short, long, wrong = time.monotonic() + seconds, 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        for pre in itertools.cycle(draw.sample(PRE_TOKENIZERS, len(PRE_TOKENIZERS))):
            if time.monotonic() > end:
                break
            path = vocabulary(Path(folder, "model.gguf"), pre)
            chosen = [
                pattern * (UNBROKEN // len(pattern))
                for pattern in draw.sample(every, 40)
            ]
            if problem := in_child(path, chosen, compare=True):
                wrong.append(f"{pre}: {problem}")
            pattern = draw.choice(every)
            if problem := in_child(
                path, [pattern * (LONG // len(pattern))], compare=False
            ):
                wrong.append(f"{pre}: {pattern!r}: {problem}")
            short, long = short + len(chosen), long + 1
    return short, long, wrong


def main() -> int:
    short, long, wrong = run(float(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write(
        f"seed {sys.argv[2]}: {short:,} texts compared, {long:,} long ones\n"
    )
    for problem in wrong:
        sys.stdout.write(f"{problem}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
