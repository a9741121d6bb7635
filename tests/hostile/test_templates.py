"""A stranger's chat template ends within its time and memory, and the process that renders it with its
host. GGEXT_LONGER=100 runs every attack with the real limits, and more random ones."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile.templates import ATTACKS, random_template

pytest.importorskip("jinja2")

from ggext.chat import renderer as renderers
from ggext.chat.renderer import ChildEnded, Renderer
from ggext.chat.template import ChatTemplate, TemplateError
from ggext.chat.transcript import Turn

LONGER = int(os.environ.get("GGEXT_LONGER", "1"))
HELLO = [Turn("user", "hi")]
# What needs its whole time; a few of them stand for the others in the suite.
SLOW = {
    *(
        "in sort eq floordiv slice sum count elif elif3 elif2 not900 concat round split".split()
    ),
    *(
        name
        for name, source in ATTACKS.items()
        if "range(60)" in source or "chain" in name
    ),
    *(
        "constfold slice|fors loop|macro rec2|lists|strings|markup plus|batch".split(
            "|"
        )
    ),
}
QUICK = {"eq", "constfold slice", "nested hash", "nested repr", "fors loop"}


@pytest.fixture
def child() -> Iterator[Renderer]:
    """A renderer of its own, which has started."""
    child = Renderer()
    child.compile("", 5)
    yield child
    child.stop()


def pid_of(child: Renderer) -> int:
    assert child._process is not None
    return child._process.pid


def is_running(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until(condition: object, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in SLOW - QUICK])
def test_an_attack_ends_in_text_or_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggext.chat.template._COMPILE_SECONDS", 0.4)
    monkeypatch.setattr("ggext.chat.template._RENDER_SECONDS", 0.4)
    start = time.monotonic()
    try:
        text = ChatTemplate(ATTACKS[name], {"bos_token": "<s>"}).render(HELLO)
    except TemplateError as refused:
        text = str(refused)
    assert "object at 0x" not in text
    assert "<class" not in text
    assert time.monotonic() - start < 5


MEASURED = """
import json, resource, sys, time
from pathlib import Path
from ggext.chat.renderer import renderer
from ggext.chat.template import ChatTemplate, TemplateError
from ggext.chat.transcript import Turn
source = json.loads(sys.stdin.read())
renderer.compile("", 5)
start = time.monotonic()
try:
    ChatTemplate(source, {"bos_token": "<s>"}).render([Turn("user", "hi")])
except TemplateError:
    pass
seconds = time.monotonic() - start
renderer.stop()
# not ru_maxrss, which a process takes over from the one that it was forked from
own = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
print(seconds, own, child)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="address space is limited on Linux alone"
)
@pytest.mark.parametrize(
    "name", list(ATTACKS) if LONGER > 1 else ["translate2", "int to_bytes"]
)
def test_an_attack_stays_within_5_seconds_and_256_mb(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED],
        input=json.dumps(ATTACKS[name]),
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, own, child = map(float, done.stdout.split())
    assert seconds < 5
    assert max(own, child) < 256


@pytest.mark.parametrize("seed", range(20 * LONGER))
def test_a_random_template_ends_within_its_limits(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggext.chat.template._COMPILE_SECONDS", 0.3)
    monkeypatch.setattr("ggext.chat.template._RENDER_SECONDS", 0.3)
    source = random_template(random.Random(seed))
    began = time.monotonic()
    try:
        ChatTemplate(source, {}).render(HELLO)
        message = ""
    except TemplateError as refused:
        message = str(refused)
    assert time.monotonic() - began < 5
    assert message.isprintable()


# the process ------------------------------------------------------------------------------------


def test_a_child_serves_again_after_it_was_ended(child: Renderer) -> None:
    first = pid_of(child)
    endless = (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    with pytest.raises(ChildEnded) as ended:
        child.render(endless, {}, 10, 0.2)
    assert ended.value.late
    assert child.render("{{ a }}", {"a": 1}, 10, 5) == {"text": "1"}
    assert pid_of(child) != first
    assert not is_running(first)
    with pytest.raises(ChildProcessError):  # it was waited for: no zombie
        os.waitpid(first, 0)


def test_a_child_that_was_killed_meanwhile_is_replaced(child: Renderer) -> None:
    os.kill(pid_of(child), 9)
    assert until(lambda: not is_running(pid_of(child)))
    assert child.render("{{ a }}", {"a": 1}, 10, 5) == {"text": "1"}


def test_a_child_that_ran_out_of_memory_gets_no_other_template(child: Renderer) -> None:
    """It ends a moment after its reply: the next template must not meet it."""
    for _ in range(3):
        refused = child.render(ATTACKS["int to_bytes2"], {}, 99, 5)
        assert "memory" in refused["message"]
        assert child.render("{{ a }}", {"a": 1}, 10, 5) == {"text": "1"}


def test_ctrl_c_in_the_host_leaves_no_answer_behind(
    child: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_frame = renderers.read_frame

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(renderers, "read_frame", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child.render("first", {}, 10, 5)
    monkeypatch.setattr(renderers, "read_frame", read_frame)
    assert child.render("second", {}, 10, 5) == {"text": "second"}


def test_threads_get_their_own_replies(child: Renderer) -> None:
    replies: dict[int, object] = {}

    def ask(number: int) -> None:
        replies[number] = child.render(f"{number} {{{{ a }}}}", {"a": number}, 99, 5)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == {number: {"text": f"{number} {number}"} for number in range(20)}


HOST = """
import os, sys, time
from ggext.chat.renderer import renderer
renderer.compile("", 5)
print(renderer._process.pid, flush=True)
"""


def child_of_a_host(then: str) -> tuple[subprocess.Popen[str], int]:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST + then], stdout=subprocess.PIPE, text=True
    )
    assert host.stdout is not None
    return host, int(host.stdout.readline())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_ends_with_a_host_that_is_killed() -> None:
    host, pid = child_of_a_host("time.sleep(60)")
    with host:
        assert is_running(pid)
        host.kill()
    assert until(lambda: not is_running(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_ends_with_a_host_that_returns_and_does_not_end_its_forked_child() -> (
    None
):
    then = (
        "child = os.fork()\n"
        "if child == 0:\n"
        "    assert renderer.render('{{ 1 }}', {}, 9, 5) == {'text': '1'}\n"
        "    sys.exit(7)\n"
        "assert os.waitpid(child, 0)[1] == 7 << 8\n"
        "assert renderer.render('{{ 2 }}', {}, 9, 5) == {'text': '2'}\n"
        "assert renderer._process.poll() is None\n"
    )
    host, pid = child_of_a_host(then)
    with host:
        assert host.wait(20) == 0
    assert not is_running(pid)


def test_a_frozen_program_serves_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text(
        f"#!{sys.executable}\nfrom ggext.chat.renderer import freeze_support\n"
        "freeze_support()\nraise SystemExit('the program itself')\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("ggext.runtime.child._prepared", True)
    child = Renderer()
    try:
        assert child.render("{{ a }}", {"a": 1}, 9, 5) == {"text": "1"}
    finally:
        child.stop()


def test_a_frozen_program_that_is_not_prepared_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would open its window a second time, and that one a third."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", "/nowhere/program")
    monkeypatch.setattr("ggext.chat.template.renderer", Renderer())
    with pytest.raises(TemplateError, match=r"calls ggext\.freeze_support\(\) first"):
        ChatTemplate("x", {})


def test_what_cannot_be_started_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/nowhere/python")
    monkeypatch.setattr("ggext.chat.template.renderer", Renderer())
    with pytest.raises(TemplateError, match="could not be started"):
        ChatTemplate("x", {})
