"""Nobody reads any more what a command says: it goes on, and what it was to do is done."""

import errno
import io
import os
import subprocess
import sys
import traceback

import pytest

from sft.config.streams import steady_streams


def in_a_child(tmp_path, spoil, act, **options):
    """Run `act` in a fork with Python's own streams on 1 and 2, spoilt; returns (exit code, what is in 1, in 2)."""
    paths = [tmp_path / "out", tmp_path / "err"]
    if (child := os.fork()) == 0:
        code = 1
        try:
            for number, path in enumerate(paths, start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            for name, number in (("stdout", 1), ("stderr", 2)):
                stream = io.TextIOWrapper(io.BufferedWriter(io.FileIO(number, "wb", closefd=False)), "ascii")
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)
            spoil()
            steady_streams(**options)
            act()
            sys.stdout.flush()
            sys.stderr.flush()
            code = 0
        except BaseException:
            (tmp_path / "traceback").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, *(path.read_text() if path.exists() else "" for path in (*paths, tmp_path / "traceback"))


def say():
    print("out é" * 50_000)
    print("err é", file=sys.stderr)


def close(number, name):
    """As `>&-` does."""
    os.close(number)
    setattr(sys, name, None)
    setattr(sys, f"__{name}__", None)


def nobody_reads(number):
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, number)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda: None, (True, True)),
        (lambda: close(1, "stdout"), (False, True)),
        (lambda: close(2, "stderr"), (True, False)),
        (lambda: (close(1, "stdout"), close(2, "stderr"), os.close(0)), (False, False)),
        (lambda: nobody_reads(1), (False, True)),
        (lambda: nobody_reads(2), (True, False)),
        (lambda: (nobody_reads(1), nobody_reads(2)), (False, False)),
        (lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 2), (True, False)),
    ],
    ids=["fine", "1 closed", "2 closed", "all closed", "1 unread", "2 unread", "both unread", "2 full"],
)
def test_what_nobody_reads_ends_nothing(tmp_path, spoil, says):
    code, out, err, wrong = in_a_child(tmp_path, spoil, say)
    assert code == 0, wrong
    assert out == r"out \xe9" * 50_000 + "\n" if says[0] else out == ""
    assert err == "err \\xe9\n" if says[1] else err == ""


def test_a_file_that_is_opened_later_does_not_become_the_place_where_prints_go(tmp_path):
    def act():
        with (tmp_path / "file").open("w") as file:
            os.write(1, b"a library in C says something")
            file.write("content")

    assert in_a_child(tmp_path, lambda: close(1, "stdout"), act)[0] == 0
    assert (tmp_path / "file").read_text() == "content"


def test_output_that_a_full_disk_cuts_short_is_an_error(tmp_path):
    """`python -m sft.inspect > file` must not end well with half of a file; a training run must not end for a log."""

    def full():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    code, *_, wrong = in_a_child(tmp_path, full, say)
    assert code == 1 and os.strerror(errno.ENOSPC) in wrong
    assert in_a_child(tmp_path, full, say, out_is_a_log=True)[0] == 0


def test_a_traceback_is_shown_and_not_obeyed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    steady_streams()
    try:
        raise RuntimeError("row \x1b]52;c;eA==\x07 of hf_0123456789abcdef")
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):\n  File ")
    assert shown.endswith("RuntimeError: row ␛]52;c;eA==␇ of ***\n")


def test_what_is_the_machines_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    steady_streams()
    error = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/runs/a")
    sys.excepthook(type(error), error, None)
    told = capsys.readouterr().err
    assert told == f"error: {error}. It is a disk, a mount or a limit: df, quota and ulimit -a show which.\n"


def test_a_capture_stays_in_place(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = sys.stdout, sys.stderr
    steady_streams()
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize(
    ("locale", "mode"),
    [
        ({"LC_ALL": "C.UTF-8"}, "0"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "1"),  # stands for ISO-8859-1 and its like
    ],
)
def test_files_and_names_are_utf_8_whatever_the_locale(tmp_path, locale, mode):
    (tmp_path / "行.txt").write_text("é", encoding="utf-8")
    (tmp_path / "command.py").write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from sft.config.streams import steady_streams\n"
        "print('begun')\n"
        "steady_streams()\n"
        "print(sys.flags.utf8_mode, ascii(Path(sys.argv[1]).read_text()), '日')\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    done = subprocess.run(
        [sys.executable, "-m", "command", "行.txt"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": path} | locale,
        capture_output=True,
        check=True,
    )
    shown = {"0": "日", "1": "\\u65e5"}[mode]  # as the terminal can
    assert done.stdout.decode().splitlines()[-1] == f"{mode} '\\xe9' {shown}"
