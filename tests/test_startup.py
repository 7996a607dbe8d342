"""How a script ends when it is stopped, or when nobody reads what it prints."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BEGIN = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
if __name__ in ("__main__", "__mp_main__"):
    from pipeline.startup import start
    start(__name__)
from pipeline import startup
"""
LINE = "stopped; run the same command again to resume\n"


def scripts() -> list[Path]:
    """All files that are run as a script and take a command line."""
    found = []
    for folder in (".", "bench", "pipeline", "pipeline/inference"):
        for path in (ROOT / folder).glob("*.py"):
            if "\n    run_c" in path.read_text():
                found.append(path)
    return found


def write(folder: Path, body: str) -> list[str]:
    script = folder / "script.py"
    script.write_text(BEGIN + body)
    return [sys.executable, str(script)]


def stop(command: list[str], *signals: int) -> tuple[int, str]:
    """Send signals as soon as a line was printed; return the exit code and stderr."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for number in signals:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
    return (process.wait(60), process.communicate()[1])


def test_every_script_starts_before_its_imports():
    assert len(scripts()) == 16
    for path in scripts():
        first = next(
            node
            for node in ast.parse(path.read_text()).body
            if not isinstance(node, ast.Expr)
            and not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
        )
        source = ast.unparse(first)
        assert "'__main__', '__mp_main__'" in source and "start(__name__)" in source, path


def test_what_a_script_imports_first_is_small(tmp_path: Path):
    body = "print({'torch', 'numpy', 'tyro', 'multiprocessing'} & set(sys.modules))"
    assert subprocess.run(write(tmp_path, body), capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_among_the_imports_ends_in_one_line(tmp_path: Path, number: int):
    # whatever is being imported may catch an exception, or turn it into another one
    body = """
import time
while True:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except BaseException:
        raise ImportError("swallowed")
"""
    assert stop(write(tmp_path, body), number) == (130, LINE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_main_function_can_be_caught_and_a_second_one_leaves_no_trace(
    tmp_path: Path, number: int
):
    body = """
import time
startup.interruptible()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    try:
        startup.end_interrupted()
    finally:
        print("ready", flush=True)
        time.sleep(60)
"""
    assert stop(write(tmp_path, body), number, number) == (-number, LINE)


def test_a_worker_process_leaves_ctrl_c_to_its_parent(tmp_path: Path):
    body = """
import multiprocessing, os, signal
def work(_):
    os.kill(os.getpid(), signal.SIGINT)
    return "whole"
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(work, [0]))
"""
    result = subprocess.run(write(tmp_path, body), capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("['whole']\n", "")


def test_a_signal_that_the_shell_ignores_stays_ignored(tmp_path: Path):
    command = write(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    result = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@"', "-", *command], capture_output=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_with_closed_streams_nothing_is_printed_into_files(tmp_path: Path, closed: str):
    body = f"""
import os
with open({str(tmp_path / "made")!r}, "w") as file:
    print("out")
    print("err", file=sys.stderr)
    os.write(1, b"raw")
    os.write(2, b"raw")
    file.write("content")
"""
    script = " ".join(write(tmp_path, body))
    code = subprocess.run(f"{script} {closed}", shell=True, timeout=60, stderr=-1, stdout=-1)
    assert code.returncode == 0 and (tmp_path / "made").read_text() == "content"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_that_nobody_reads_any_more_is_told_from_other_pipes(tmp_path: Path, stream: str):
    body = f"""
import os
receiving, sending = os.pipe()
os.close(receiving)
try:
    os.write(sending, b"x")
except BrokenPipeError:
    assert not startup.output_is_closed()
print("ready", file=sys.{stream}, flush=True)
sys.stdin.read()
try:
    print("x" * 10**6, file=sys.{stream}, flush=True)
except BrokenPipeError:
    assert startup.output_is_closed()
    startup.end_unread()
"""
    process = subprocess.Popen(write(tmp_path, body), stdin=-1, stdout=-1, stderr=-1)
    assert process.stdin and process.stdout and process.stderr
    read, other = process.stdout, process.stderr
    if stream == "stderr":
        read, other = other, read
    assert read.readline() == b"ready\n"
    read.close()
    process.stdin.close()
    assert process.wait(60) == 141 and other.read() == b""
    other.close()


def test_a_name_that_is_no_text_is_printed(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9")
    result = subprocess.run(write(tmp_path, f"print({name!r})"), capture_output=True, timeout=60)
    assert result.stdout == b"caf\\udce9\n" and not result.stderr


def test_without_fcntl_one_line_names_what_runs_it(tmp_path: Path):
    (tmp_path / "fcntl.py").write_text("raise ModuleNotFoundError('no fcntl', name='fcntl')")
    result = subprocess.run(
        write(tmp_path, ""), capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "WSL" in result.stderr
