"""The lab's own parts that need no guest: what apt says, what the lock file says, what goes in and comes out."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.lab.tools import core, guests, host, kernels, machine, packages, payload
from tests.lab.tools.__main__ import main, request
from tests.lab.tools.__main__ import test_command as command_of  # pytest would take it for a test
from tests.lab.tools.errors import BuildFailed, GuestFailed, LabError, MissingProgram

ROOT = Path(__file__).parents[2]


def test_madison_names_the_version_of_each_suite() -> None:
    text = (
        "linux-image-cloud-amd64 | 7.3.4-1~bpo13+1 | http://mirror/debian trixie-backports/main amd64 Packages\n"
        "linux-image-cloud-amd64 | 6.12.117-1 | http://mirror/debian trixie/main amd64 Packages\n"
        "linux-image-cloud-amd64 | 6.12.100-1 | http://mirror/debian trixie/main amd64 Packages\n"
        "linux-signed-amd64 | 6.1.176+1 | http://mirror/debian bookworm/main Sources\n"
    )
    assert kernels.parse_madison(text) == {"trixie-backports": "7.3.4-1~bpo13+1", "trixie": "6.12.117-1"}
    assert kernels.parse_madison("") == {}


@pytest.mark.parametrize(
    ("depends", "release"),
    [
        ("linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)", "6.1.0-50-cloud-amd64"),
        ("linux-image-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1), kmod", "7.3.4+deb13-cloud-amd64"),
    ],
)
def test_the_release_is_that_of_the_image_it_depends_on(depends: str, release: str) -> None:
    assert kernels.parse_release(f"Package: x\nDepends: {depends}\nDescription: y\n") == release


def test_a_package_that_names_no_image_is_told() -> None:
    with pytest.raises(LabError, match="depends on no kernel image"):
        kernels.parse_release("Package: x\nDepends: kmod\n")


def _kernels(tmp_path: Path) -> dict[str, kernels.Kernel]:
    releases = {
        "6.1": "6.1.0-50-cloud-amd64",
        "6.12": "6.12.117+deb13-cloud-amd64",
        "newest": "7.3.4+deb13-cloud-amd64",
    }
    return {
        name: kernels.Kernel(name=name, release=release, directory=str(tmp_path / name))
        for name, release in releases.items()
    }


@pytest.mark.parametrize(
    ("asked", "name"),
    [("6.1", "6.1"), ("6.12", "6.12"), ("newest", "newest"), ("7.3", "newest"), ("6.1.0-50-cloud-amd64", "6.1")],
)
def test_a_kernel_is_chosen_by_name_series_or_release(tmp_path: Path, asked: str, name: str) -> None:
    assert kernels.choose(_kernels(tmp_path), asked).name == name


def test_a_kernel_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"kernel 5\.4: .*6\.12 \(6\.12\.117"):
        kernels.choose(_kernels(tmp_path), "5.4")


def test_the_guest_gets_what_runs_and_tests_corral_and_no_tool_of_the_desk() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    wanted = packages.requirements(lock)
    names = {line.partition("==")[0] for line in wanted.splitlines() if "==" in line}
    assert {"grpcio", "protobuf", "pytest", "pytest-asyncio", "psutil", "setuptools"} - names <= {"setuptools"}
    assert not names & packages.NOT_WANTED
    # whole blocks: every package keeps its hashes
    assert wanted.count("==") * 1 <= wanted.count("--hash=sha256:")
    for name in ("grpcio", "pytest"):
        block = wanted[wanted.index(f"{name}==") :]
        assert block.splitlines()[1].strip().startswith("--hash=sha256:")


def test_names_are_compared_as_the_index_does() -> None:
    assert packages.requirements("Types_PSUtil==7 \\\n    --hash=sha256:a\nmsgspec==1 \\\n    --hash=sha256:b\n") == (
        "msgspec==1 \\\n    --hash=sha256:b\n"
    )


def test_the_tree_is_what_git_would_track_and_what_was_built(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "bpf" / "objects").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", tree], check=True)
    (tree / ".gitignore").write_text("*.o\nignored\n")
    for name in ("tracked", "untracked", "ignored", "removed", "bpf/objects/one.bpf.o"):
        (tree / name).write_text(name)
    subprocess.run(["git", "-C", tree, "add", ".gitignore", "tracked", "removed"], check=True)
    (tree / "removed").unlink()
    assert {str(path) for path in payload.tree_files(tree)} == {
        ".gitignore",
        "tracked",
        "untracked",
        "bpf/objects/one.bpf.o",
    }


def test_pieces_come_at_once_but_marks_come_whole() -> None:
    read, write = os.pipe()
    got: list[bytes] = []
    seen = threading.Condition()

    def follow() -> None:
        for piece in machine.pieces(read):
            with seen:
                got.append(piece)
                seen.notify()

    def until(count: int) -> None:
        with seen:
            assert seen.wait_for(lambda: len(got) >= count, timeout=10), got

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        os.write(write, b"...")
        until(1)  # dots without a line's end
        os.write(write, b".\n@@la")
        until(2)
        os.write(write, b"b-start 1")
        os.write(write, b"2\n@ not ours\n")
        until(4)
        os.write(write, b"@")  # the end comes where a mark might have begun
    finally:
        os.close(write)
        thread.join()
        os.close(read)
    assert got == [b"...", b".\n", b"@@lab-start 12\n", b"@ not ours\n", b"@"]


def test_the_shared_images_are_never_written(tmp_path: Path) -> None:
    guest = machine.Machine(
        kernel=tmp_path / "vmlinuz",
        root=tmp_path / "root.ext4",
        python=tmp_path / "python.ext4",
        payload=tmp_path / "payload.ext4",
        console=tmp_path / "console",
        append="corral.test=1",
    )
    words = guest.command()
    drives = {word.split(",")[0]: word for word in words if word.startswith("file=")}
    assert "snapshot=on" in drives[f"file={tmp_path}/root.ext4"]
    assert "readonly=on" in drives[f"file={tmp_path}/python.ext4"]
    assert words[words.index("-append") + 1].endswith(" corral.test=1")
    assert "-netdev" not in words


def test_a_guest_that_never_starts_is_told_with_its_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for QEMU that writes a console and dies."""
    fake = tmp_path / "bin" / "qemu-system-x86_64"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\necho 'Kernel panic: no root' >{tmp_path}/console\necho 'no such cpu' >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    guest = machine.Machine(
        kernel=tmp_path / "k",
        root=tmp_path / "r",
        python=tmp_path / "p",
        payload=tmp_path / "d",
        console=tmp_path / "console",
    )
    with pytest.raises(GuestFailed, match=r"(?s)ended with status 3 no such cpu.*Kernel panic: no root"):
        machine.run(guest, timeout=20, temporary=tmp_path, output=lambda _: None)


def test_a_step_that_fails_carries_the_end_of_what_it_said(tmp_path: Path) -> None:
    log = host.Log(tmp_path / "build.log")
    with pytest.raises(BuildFailed, match=r"(?s)sh ended with status 4.*the cause"):
        log.run(["sh", "-c", "echo the cause >&2; exit 4"])
    assert "the cause" in (tmp_path / "build.log").read_text()


def test_what_the_command_line_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.lab.tools.__main__ import _parser

    options = _parser().parse_args(["run", "--kernel", "6.1", "--bring", "/etc/hostname=a/b", "--timeout", "5"])
    asked = request(options, ["echo", "a b"])
    assert (asked.command, asked.kernels, asked.timeout) == ("echo 'a b'", ["6.1"], 5.0)
    assert asked.bring == [(Path("/etc/hostname"), "a/b")]
    assert request(options, ["echo $HOME | cat"]).command == "echo $HOME | cat"  # one word is a shell's line
    with pytest.raises(LabError, match="no command"):
        request(options, [])
    options.bring = ["/etc/hostname=../x"]
    with pytest.raises(LabError, match="below /payload"):
        request(options, ["true"])
    monkeypatch.setattr("tests.lab.tools.__main__.release", lambda: Path("/built.tar.gz"))
    every = request(_parser().parse_args(["test", "--kernel", "all"]), [])
    assert every.kernels == list(kernels.SUITES)
    assert every.bring == [(Path("/built.tar.gz"), "release.tar.gz")]


def test_tests_are_those_of_the_lab_unless_others_are_named() -> None:
    assert command_of([]).endswith(" tests/lab")
    assert command_of(["-k", "peak"]).endswith(" tests/lab -k peak")
    assert command_of(["tests/host", "-x"]).endswith("report.xml tests/host -x")


@pytest.mark.skipif(os.geteuid() == 0, reason="only another user is refused")
def test_other_users_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--", "true"]) == guests.CANNOT
    assert "only root" in capsys.readouterr().err


def test_without_a_mirror_it_is_said_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_LAB_MIRROR", "http://mirror.example/debian")
    assert host.mirror() == "http://mirror.example/debian"


def test_tests_of_the_lab_are_skipped_elsewhere() -> None:
    """Each one, counted, with what to run instead."""
    environment = {name: value for name, value in os.environ.items() if name != "CORRAL_LAB"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/lab"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    assert "scripts/test --lab" in done.stdout
    assert " passed" not in done.stdout.splitlines()[-1]


def test_where_no_guest_can_be_made_the_core_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise MissingProgram("the lab needs packages that are not installed here: qemu")

    monkeypatch.setenv("CORRAL_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("tests.lab.tools.core.room", lambda _: None)
    monkeypatch.setattr("tests.lab.tools.guests.build", cannot)
    assert main(["test", "--core"]) == 77
    assert "lab: skipped: the lab needs packages" in capsys.readouterr().err
    assert main(["test", "--", "tests/host/test_bpf_brake.py"]) == 125  # who asks for a guest is not told "skipped"


def test_the_core_is_there_and_installs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[guests.Request] = []

    def run(request: guests.Request, *_: object, **__: object) -> int:
        asked.append(request)
        return 0

    monkeypatch.setenv("CORRAL_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("tests.lab.tools.guests.build", lambda *_, **__: None)
    monkeypatch.setattr("tests.lab.tools.core.room", lambda _: None)
    monkeypatch.setattr("tests.lab.tools.guests.run", run)
    monkeypatch.setattr("tests.lab.tools.core.room", lambda _: None)
    assert main(["test", "--core", "--timeout", "9"]) == 0
    [one] = asked
    assert all((ROOT / path).exists() and path in one.command for path in core.TESTS)
    assert f"timeout={core.PER_TEST} " in one.command
    assert (one.bring, one.timeout, list(one.kernels)) == ([], 9.0, ["newest"])


@pytest.mark.parametrize(
    ("ends", "status", "words"),
    [
        (0, 0, ""),
        (1, 1, ""),  # tests failed
        (4, 4, ""),  # pytest could not begin
        (machine.TIMED_OUT, core.SKIPPED, "this machine is slow"),
        (guests.CANNOT, core.SKIPPED, "the guest died"),
        (GuestFailed("never started the command"), core.SKIPPED, "does not boot here"),
        (OSError(28, "No space left on device"), core.SKIPPED, "No space left"),
    ],
)
def test_the_core_fails_for_what_is_corrals_alone(
    *,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ends: int | Exception,
    status: int,
    words: str,
) -> None:
    def run(*_: object, **__: object) -> int:
        if isinstance(ends, Exception):
            raise ends
        return ends

    monkeypatch.setattr("tests.lab.tools.guests.build", lambda *_, **__: None)
    monkeypatch.setattr("tests.lab.tools.guests.run", run)
    monkeypatch.setattr("tests.lab.tools.core.room", lambda _: None)
    asked = core.asked(guests.Request(command="pytest -o timeout=900", timeout=9.0))
    assert core.run(asked, tmp_path, host.Log(tmp_path / "log")) == status
    said = capsys.readouterr().err
    assert words in said
    assert ("lab: skipped: " in said) == (status == core.SKIPPED)


def test_a_machine_without_the_memory_for_a_guest_is_told(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="512 MiB of memory are available, a guest needs 3584"):
        core.room(tmp_path, available=lambda: 512 << 20)


def test_a_step_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    log = host.Log(tmp_path / "log")
    with pytest.raises(BuildFailed, match=r"did not end within 0\.2 s"):
        log.run(["sh", "-c", "echo begun; sleep 600 & wait"], within=0.2)
    assert "begun" in (tmp_path / "log").read_text()


def test_who_waits_for_a_guest_of_others_gives_up(tmp_path: Path) -> None:
    with (
        host.alone(tmp_path, "guest"),
        pytest.raises(LabError, match=r"another guest was at work for 0\.1 s"),
        host.alone(tmp_path, "guest", within=0.1),
    ):
        pytest.fail("two at once")
