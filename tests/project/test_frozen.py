"""Programs frozen by PyInstaller without an option: moved, run without Python, they answer.

Slow (a minute a program), and only where PyInstaller is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from paths import ROOT

pytest.importorskip("PyInstaller", reason="PyInstaller is not installed")
pytest.importorskip("llama_cpp")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform == "win32", reason="the program's environment is POSIX's"
    ),
]

QUESTION = "Tom hides the map below. Where is the map?"
ANSWER = "Look for the map below."

CONSOLE = f"""\
import sys

from ggext import Model, Sampling

if __name__ == "__main__":
    with Model(sys.argv[1]) as model:
        question = [{{"role": "user", "content": {QUESTION!r}}}]
        print(model.chat(question, sampling=Sampling(temperature=0)).text())
"""

# The example's window, typed into as a user does.
WINDOW = f"""\
import sys
from pathlib import Path

import desktop_chat
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication

from ggext import Sampling

def work():
    if window.busy:
        return
    if window.messages:
        print(window.messages[-1]["content"])
        window.close()
        application.quit()
    else:
        window.input.setText({QUESTION!r})
        window.send_button.click()

if __name__ == "__main__":
    application = QApplication(sys.argv[:1])
    window = desktop_chat.ChatWindow(Path(sys.argv[1]), Sampling(temperature=0))
    window.show()
    timer = QTimer(interval=20)
    timer.timeout.connect(work)
    timer.start()
    application.exec()
"""

Freeze = Callable[[str, str], Path]


@pytest.fixture
def freeze(tmp_path: Path) -> Freeze:
    """Freezes a program, moves its folder, and gives the path of the executable there."""
    environment = dict(os.environ)
    origin = json.loads(
        metadata.distribution("ggext").read_text("direct_url.json") or "{}"
    )
    if origin.get("dir_info", {}).get("editable"):
        # An editable installation imports through a hook of its own, into which PyInstaller does
        # not see: then from a folder that looks as the installed package does.
        installed = tmp_path / "installed"
        shutil.copytree(ROOT / "ggext", installed / "ggext")
        shutil.copytree(ROOT / "converters", installed / "ggext" / "converters")
        native = importlib.util.find_spec("ggext._native")
        assert native is not None
        assert native.origin is not None
        shutil.copy(native.origin, installed / "ggext")
        environment["PYTHONPATH"] = str(installed)

    def run(name: str, code: str) -> Path:
        source = tmp_path / f"{name}.py"
        source.write_text(code)
        command = [sys.executable, "-m", "PyInstaller", "--noconfirm", source.name]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        moved = tmp_path / "elsewhere" / name
        moved.parent.mkdir()
        shutil.move(tmp_path / "dist" / name, moved)
        shutil.rmtree(tmp_path / "build")
        source.unlink()
        return moved / name

    return run


def answer_of(program: Path, model: Path, home: Path) -> str:
    """What the program prints in an environment without Python."""
    done = subprocess.run(
        [program, model],
        env={"HOME": str(home), "PATH": "/nonexistent", "QT_QPA_PLATFORM": "offscreen"},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_console_program(freeze: Freeze, demo_gguf: Path, tmp_path: Path) -> None:
    program = freeze("console", CONSOLE)
    home = tmp_path / "user"
    home.mkdir()
    assert answer_of(program, demo_gguf, home) == f"{ANSWER}\n"
    # It was its own child: the kernels were tried.
    (verdict,) = (home / ".cache" / "ggext" / "kernels").iterdir()
    assert '"untested": ""' in verdict.read_text()
    frozen = [path for path in program.parent.rglob("*") if path.is_file()]
    assert any(path.name.startswith("libllama") for path in frozen)
    assert not any(
        "torch" in path.parts or "transformers" in path.parts for path in frozen
    )


def test_the_example_window(freeze: Freeze, demo_gguf: Path, tmp_path: Path) -> None:
    pytest.importorskip("PySide6", reason='the extra "examples" is not installed')
    shutil.copy(ROOT / "examples" / "desktop_chat.py", tmp_path)
    program = freeze("window", WINDOW)
    home = tmp_path / "user"
    home.mkdir()
    assert answer_of(program, demo_gguf, home) == f"{ANSWER}\n"
