"""What each command line means, and what wrong ones are told."""

from __future__ import annotations

import argparse
import shlex

import pytest

from agentd.cli import _run_arguments, main
from agentd.cli.commands import TABLE, handler
from agentd.cli.control import limits_of, parse_priority
from agentd.cli.errors import UsageError
from agentd.cli.listing import ago
from agentd.cli.parser import build
from agentd.cli.remote import parse_target
from agentd.cli.sessions import parse_labels

# One valid line of every command, and some of the values that it must give.
LINES: dict[str, tuple[str, dict[str, object]]] = {
    "session open": (
        "session open --tenant acme --name n --label a=b --label c=d --shell --socket /s",
        {"tenant": "acme", "name": "n", "label": ["a=b", "c=d"], "shell": True, "socket": "/s"},
    ),
    "session exec": (
        "session exec --session s-1 -- ls -l --json",
        {"session": "s-1", "argv": ["--", "ls", "-l", "--json"]},
    ),
    "session close": ("session close coder --kill", {"session": "coder", "kill": True}),
    "session attach": (
        "session attach --tenant acme --container box --label a=b --label c --follow --rules codex",
        {"tenant": "acme", "container": "box", "label": ["a=b", "c"], "follow": True, "rules": "codex", "pid": None},
    ),
    "session detach": ("session detach box", {"target": "box"}),
    "session list": ("session list --all --tenant acme", {"all": True, "tenant": "acme"}),
    "ps": (
        "ps --all --tenant t --session s --state braked --sort memory -r --json",
        {
            "all": True,
            "tenant": "t",
            "session": "s",
            "state": "braked",
            "sort": "memory",
            "reverse": True,
            "json": True,
        },
    ),
    "top": ("top --once --interval 0.5", {"once": True, "interval": 0.5, "replay": None, "read_only": False}),
    "record": ("record out.corral --for 10m --interval 2", {"file": "out.corral", "duration": "10m", "interval": 2.0}),
    "show": ("show c-1", {"call": "c-1"}),
    "explain": ("explain c-1", {"call": "c-1"}),
    "history": (
        "history --since 1h --until 5m --tenant t --session s --reason oom_call --limit 7",
        {"since": "1h", "until": "5m", "tenant": "t", "session": "s", "reason": "oom_call", "limit": 7},
    ),
    "trace": (
        "trace c-1 --tools offcpu,files --tools blockio --for 10s",
        {"call": "c-1", "tools": ["offcpu,files", "blockio"], "duration": "10s"},
    ),
    "freeze": ("freeze a b -y", {"targets": ["a", "b"], "yes": True}),
    "thaw": ("thaw a", {"targets": ["a"]}),
    "kill": ("kill a --yes", {"targets": ["a"], "yes": True}),
    "limits": (
        "limits c-1 --memory-max 1G --cpu 2 --pids 10 --brake 500M --notify off --weight 50",
        {"target": "c-1", "memory_max": "1G", "cpu": "2", "pids": "10", "brake": "500M", "cpu_weight": "50"},
    ),
    "budget": (
        "budget set acme cpu_seconds 10h --hard --per 1d",
        {"words": ["set", "acme", "cpu_seconds", "10h"], "hard": True, "end": False, "soft": False, "per": "1d"},
    ),
    "priority": ("priority c-1 80", {"target": "c-1", "value": "80"}),
    "tenant set": ("tenant set acme --memory-high 2G --priority 10", {"name": "acme", "memory_high": "2G"}),
    "tenant list": ("tenant list --api unix:/x", {"api": "unix:/x"}),
    "tier": ("tier --switches 5", {"switches": 5}),
    "doctor": ("doctor --json", {"json": True}),
    "config check": ("config check f.toml", {"file": "f.toml"}),
    "config show": ("config show", {"file": None}),
    "config schema": ("config schema", {}),
    "replay": (
        "replay a.json b.json --speed 10 --only-tools --scale 0.5 --tenant x --declare peak --bare --keep d",
        {"traces": ["a.json", "b.json"], "speed": "10", "only_tools": True, "scale": "0.5", "tenant": ["x"]},
    ),
    "simulate": (
        "simulate a.json b.json --memory 8G --policy corral --policy none --agents 34 --for 60",
        {"traces": ["a.json", "b.json"], "memory": "8G", "policy": ["corral", "none"], "agents": 34, "seconds": "60"},
    ),
}


def test_every_command_has_a_line_here() -> None:
    assert LINES.keys() == TABLE.keys()


@pytest.mark.parametrize("name", LINES)
def test_a_line_is_understood_and_served(name: str) -> None:
    line, expected = LINES[name]
    args = build().parse_args(shlex.split(line))
    assert {key: getattr(args, key) for key in expected} == expected
    assert callable(handler(args))


@pytest.mark.parametrize("line", ["--json --api unix:/x ps", "ps --json --api unix:/x", "--api unix:/x ps --json"])
def test_common_options_stand_before_or_after_the_command(line: str) -> None:
    args = build().parse_args(line.split())
    assert args.json is True
    assert args.api == "unix:/x"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "invalid choice"),
        ("ps --state dead", "invalid choice"),
        ("ps --tena x", "unrecognized arguments"),
        ("history --limit 0", "not a number from 1 to 10000"),
        ("history --limit 99999", "not a number from 1 to 10000"),
        ("top --interval nan", "seconds from 0.1 to 3600"),
        ("show", "required: TARGET"),
        ("kill", "required: TARGET"),
        ("session", "required: WHAT"),
        ("limits", "required: TARGET"),
    ],
)
def test_wrong_usage_is_one_line_with_the_remedy_and_status_2(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "--help" in err
    assert err.count("\n") == 1


def test_nothing_asked_for_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "exit status: 0 done" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("corral ")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("run -- true", ["--", "true"]),
        ("run --memory 1G --json -- ls --api x", ["--memory", "1G", "--json", "--", "ls", "--api", "x"]),
        ("--json run x", ["x"]),
        ("ps run", None),
        ("", None),
    ],
)
def test_run_passes_its_arguments_on_untouched(line: str, expected: list[str] | None) -> None:
    assert _run_arguments(line.split()) == expected


def _limits(**given: str) -> argparse.Namespace:
    options = (
        "memory_max",
        "memory_high",
        "memory_low",
        "cpu",
        "cpu_weight",
        "pids",
        "io_weight",
        "io_max",
        "egress_max",
    )
    empty = dict.fromkeys(options)
    return argparse.Namespace(**(empty | given))


def test_limits_are_in_the_units_of_the_api() -> None:
    wanted = limits_of(
        _limits(memory_max="1G", memory_high="max", cpu="1.5", pids="unlimited", cpu_weight="50", egress_max="10M")
    )
    assert wanted is not None
    assert wanted.egress_bytes_per_second == 10 << 20
    assert not wanted.HasField("io_bytes_per_second")
    assert wanted.memory_max_bytes == 1 << 30
    assert wanted.memory_high_bytes == -1
    assert wanted.cpu_cores == 1.5
    assert wanted.pids == -1
    assert wanted.cpu_weight == 50
    assert not wanted.HasField("memory_low_bytes")
    assert limits_of(_limits()) is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("memory_max", "1Q"),
        ("memory_low", "-5"),
        ("cpu", "0"),
        ("cpu", "nan"),
        ("cpu", "many"),
        ("cpu_weight", "0"),
        ("cpu_weight", "10001"),
        ("cpu_weight", "max"),
        ("pids", "1e3"),
        ("io_weight", "٣"),
    ],
)
def test_a_limit_out_of_range_names_its_option(option: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')}") as error:
        limits_of(_limits(**{option: value}))
    assert error.value.remedy or "write" in error.value.message


@pytest.mark.parametrize("text", ["-1", "101", "x", "1.5", ""])
def test_a_priority_out_of_range(text: str) -> None:
    with pytest.raises(UsageError, match="out of range; 0"):
        parse_priority(text)


def test_times() -> None:
    assert ago("--since", None, 1e9) is None
    assert ago("--since", "1h", 1e9) == 1e9 - 3600
    assert ago("--since", "1800000000.5", 1e9) == 1_800_000_000.5
    assert ago("--since", "2026-11-24T00:00:00+00:00", 0) == 1_795_478_400
    with pytest.raises(UsageError, match="--since 'yesterday'"):
        ago("--since", "yesterday", 0)


def test_targets() -> None:
    assert str(parse_target("unix:/run/x.sock")) == "/run/x.sock"
    assert parse_target("/run/x.sock").uri == "unix:/run/x.sock"
    assert parse_target("unix:///run/x.sock").uri == "unix:/run/x.sock"
    assert parse_target("host.example:7000").uri == "host.example:7000"
    for wrong in ("", "host", "host:0", "host:99999", "unix:", "unix:/" + "x" * 200):
        with pytest.raises(UsageError, match=r"no target|no socket's path|no port"):
            parse_target(wrong)


def test_labels() -> None:
    assert parse_labels(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    for wrong in (["a"], ["=b"], ["a=1", "a=2"], [f"k{n}=v" for n in range(40)]):
        with pytest.raises(UsageError, match="label"):
            parse_labels(wrong)
