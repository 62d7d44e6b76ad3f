"""Loading: defaults, units, every kind of mistake with its file, line and key, overrides, reload, schema, example."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import config as configuration
from agentd.config import (
    Config,
    ConfigError,
    ConfigInvalid,
    ConfigSyntaxError,
    ConfigUnreadable,
    diff,
    effective,
    host_config,
    load,
    loads,
    parse_override,
    schema,
    split_address,
    uids_of_tenants,
)
from agentd.config.__main__ import schema_text, with_reference
from agentd.config.fields import description, fields_of, is_section
from agentd.config.schema import kinds

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "agentd" / "systemd" / "corral.toml"


def problems(text: str, **options: Any) -> list[str]:
    with pytest.raises(ConfigInvalid) as err:
        loads(text, source="c.toml", **options)
    return [str(problem) for problem in err.value.problems]


def test_no_file_gives_the_defaults() -> None:
    assert load(None) == Config()
    assert loads("") == Config()


def test_derived_paths_follow_the_directories() -> None:
    config = loads('[daemon]\nruntime_dir = "/run/x"\nstate_dir = "/srv/x"\n')
    assert config.operator_socket == Path("/run/x/operator.sock")
    assert config.broker_socket == Path("/run/x/broker.sock")
    assert config.tenant_socket("ci") == Path("/run/x/tenants/ci.sock")
    assert config.ledger_path == Path("/srv/x/ledger.db")
    moved = loads('[broker]\nsocket = "/run/b.sock"\n[ledger]\npath = "/srv/l.db"\n[api]\noperator_socket = "/run/o"\n')
    assert moved.broker_socket == Path("/run/b.sock")
    assert moved.ledger_path == Path("/srv/l.db")
    assert moved.operator_socket == Path("/run/o")


def test_values_with_units_are_understood() -> None:
    config = loads(
        '[tenants.ci]\nmemory_max = "1.5G"\ncpu_max = 2\nuids = [7]\n[call]\nhold_max = "1m30s"\npids_max = "none"\n'
        'hard_limit_factor = "none"\n[host]\nmemory_reserve = "7.5%"\nsample_interval = 2\n'
        "[ledger]\nmax_size = 33554432\n"
    )
    assert config.tenants["ci"].limits().memory_max == 3 * 1024**3 // 2
    assert config.tenants["ci"].cpu_max == 2.0
    assert config.tenants["ci"].uids == (7,)
    assert config.call.hold_max == 90.0
    assert config.call.pids_max is None
    assert config.call.hard_limit_factor is None
    assert config.host.memory_reserve == pytest.approx(0.075)
    assert config.host.sample_interval == 2.0
    assert config.ledger.max_size == 32 * 1024**2


@pytest.mark.parametrize(
    ("text", "place", "cause", "remedy"),
    [
        ('[daemon]\n\nmod = "x"', "c.toml:3: daemon.mod", "unknown key", "did you mean 'mode'?"),
        ("[deamon]", "c.toml:1: deamon", "unknown key", "did you mean 'daemon'?"),
        ("[bpf]\nzzzz = 1", "c.toml:2: bpf.zzzz", "unknown key", "known here: enabled, pin_dir"),
        ('[daemon]\nmode = "foo"', "c.toml:2: daemon.mode = 'foo'", "invalid enum value", '"enforce"'),
        ("[bpf]\nenabled = 1", "c.toml:2: bpf.enabled = 1", "expected bool, got int", "true or false"),
        ("[bpf]\nenabled = 'yes'", "c.toml:2: bpf.enabled", "expected bool, got str", "true or false"),
        ("bpf = 3", "c.toml:1: bpf = 3", "expected a table, got a whole number", "[bpf]"),
        ("tenants = 3", "c.toml:1: tenants = 3", "expected a table", "[tenants]"),
        ("[tenants]\nci = 3", "c.toml:2: tenants.ci = 3", "expected a table", "[tenants.ci]"),
        ("[[tenants]]\nx = 1", "c.toml:1: tenants", "expected a table, got a list", "[tenants]"),
        ("[call]\nhold_max = '3q'", "c.toml:2: call.hold_max", "not a duration", "30s"),
        ("[call]\nhold_max = inf", "c.toml:2: call.hold_max = inf", "expected float <=", "30d"),
        ("[call]\nhold_max = nan", "c.toml:2: call.hold_max = nan", "expected float", "30d"),
        ("[call]\nhold_max = true", "c.toml:2: call.hold_max = True", "got bool", "30s"),
        ("[call]\nhold_max = 'none'", "c.toml:2: call.hold_max = 'none'", "not a duration", "30s"),
        ("[call]\nmemory_max = 3", "c.toml:2: call.memory_max = 3", ">= 1048576", "1M to 64T"),
        ("[call]\nmemory_max = '1Q'", "c.toml:2: call.memory_max = '1Q'", "not a size", "300M"),
        ("[host]\nmemory_reserve = '120%'", "c.toml:2: host.memory_reserve", "<= 1", "5%"),
        ("[host]\nmemory_reserve = '5'", "c.toml:2: host.memory_reserve = '5'", "not a share", "5%"),
        ("[tenants.ci]\nuids = [1,\n\n-2]", "c.toml:4: tenants.ci.uids[1]", ">= 0", "a list"),
        ("[tenants.ci]\npriority = 101", "c.toml:2: tenants.ci.priority = 101", "<= 100", "0 to 100"),
        ("[tenants.ci]\ncpu_max = nan", "c.toml:2: tenants.ci.cpu_max", "expected float > 0", "4096"),
        ('[tenants."A b"]', 'c.toml:1: tenants."A b"', "not a name", "a-z"),
        ("[tenants.refuse]", "c.toml:1: tenants.refuse", "not a name", "'refuse'"),
        (
            "[tenants.ci]\nmemory_max = '1G'\nmemory_high = '2G'",
            "c.toml:3: tenants.ci.memory_high",
            "above memory_max",
            "at most",
        ),
        ("[daemon]\nstate_dir = 'x'", "c.toml:2: daemon.state_dir = 'x'", "not an absolute path", "absolute"),
        ("[daemon]\nstate_dir = '/a/../b'", "c.toml:2: daemon.state_dir", "'..'", "absolute"),
        ("[daemon]\nstate_dir = 2024-01-01", "c.toml:2: daemon.state_dir", "got a date", "absolute"),
        ("[daemon]\ninstance = 'A'", "c.toml:2: daemon.instance", "not a name", "a-z"),
        ("[cgroup]\nroot = '../x'", "c.toml:2: cgroup.root = '../x'", "not a path below", "corral"),
        ("[cgroup]\nroot = '/x'", "c.toml:2: cgroup.root", "not a path below", "corral"),
        ("[api]\noperator_mode = 0o666", "c.toml:2: api.operator_mode = '0o666'", "every user", "0o660"),
        ("[api]\noperator_mode = 660", "c.toml:2: api.operator_mode = 660", "<= 511", "octal"),
        (f"[daemon]\nruntime_dir = '/{'x' * 120}'", "c.toml: broker.socket", "107", "shorter"),
        ("[broker]\nsocket = '/run/corral/operator.sock'", "c.toml:2: broker.socket", "the same socket", "its own"),
        ("[api.tcp]\nlisten = 'localhost'", "c.toml:2: api.tcp.listen", "no port", "IP address"),
        ("[api.tcp]\nlisten = '0.0.0.0:7443'", "c.toml:1: api.tcp.key", "mutual TLS", "PEM"),
        ("[api.tcp.clients]\nx = 'root'", "c.toml:2: api.tcp.clients.x = 'root'", "not a role", "tenant:NAME"),
        ("[api.tcp.clients]\nx = 'tenant:cy'\n[tenants.ci]", "c.toml:2: api.tcp.clients.x", "no tenant", "ci, default"),
        ("[metrics]\nlisten = '0.0.0.0:9464'", "c.toml:2: metrics.listen", "other hosts", "allow_remote"),
        ("[metrics]\nlisten = 'example.org:9464'", "c.toml:2: metrics.listen", "example.org", "IP address"),
        ("[call]\nbrake_factor = 3.0", "c.toml:1: call.hard_limit_factor = 2.0", "below brake_factor", "at least"),
        (
            "[default_tenant]\npolicy = 'cj'\n[tenants.ci]",
            "c.toml:2: default_tenant.policy = 'cj'",
            "no such tenant",
            "ci, refuse",
        ),
        ("[tenants.ci]\nusers = ['no-such-user-here']", "c.toml:2: tenants.ci.users[0]", "no such user", "create it"),
        ("[tenants.ci]\ngroup = 'no-such-group-here'", "c.toml:2: tenants.ci.group", "no such group", "groupadd"),
        ("[api]\noperator_group = 'no-such-group-here'", "c.toml:2: api.operator_group", "no such group", "groupadd"),
        (
            "[tenants.a]\nuids = [5]\n[tenants.b]\nuids = [5]",
            "c.toml:4: tenants.b.uids[0]",
            "belongs to tenant 'a'",
            "one tenant",
        ),
        (
            "[tenants.a]\nuids = [0]\n[tenants.b]\nusers = ['root']",
            "c.toml:4: tenants.b.users[0]",
            "uid 0",
            "one tenant",
        ),
    ],
)
def test_each_mistake_names_file_line_key_cause_and_remedy(text: str, place: str, cause: str, remedy: str) -> None:
    found = [problem for problem in problems(text) if problem.startswith(place)]
    assert found, f"no problem at {place}"
    assert cause in found[0]
    assert remedy in found[0]


def test_all_problems_are_reported_in_the_order_of_lines() -> None:
    found = problems("[call]\nhold_max = 'x'\nnew = 1\n[bpf]\nenabled = 3\n")
    assert [problem.split(": ")[0] for problem in found] == ["c.toml:2", "c.toml:3", "c.toml:5"]


def test_a_huge_value_is_not_echoed_whole() -> None:
    (found,) = problems(f'[daemon]\nmode = "{"x" * 100_000}"\n')
    assert len(found) < 600
    (found,) = problems(f"[tenants.ci]\nuids = [{'1,' * 50_000} -1]\n")
    assert len(found) < 400


@pytest.mark.parametrize(
    ("text", "place"),
    [("a = 1\nx = = 1", "c.toml:2:5: not valid TOML"), ("a = 1\na = 2", "c.toml:2:"), ("x = [\n1\n", "c.toml:2: not")],
)
def test_a_syntax_error_names_the_line(text: str, place: str) -> None:
    with pytest.raises(ConfigSyntaxError) as err:
        loads(text, source="c.toml")
    assert str(err.value).startswith(place)


def test_nesting_without_end_is_an_error_not_a_crash() -> None:
    with pytest.raises(ConfigSyntaxError, match=r"nested too deeply|not valid TOML"):
        loads("x = " + "[" * 100_000)


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    try:
        loads(text, accounts=False)
    except ConfigError as err:
        message = str(err)
    else:
        return
    assert message.startswith("<text>")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnreadable, match=r"none\.toml: no such file; create it"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigUnreadable, match="not a regular file"):
        load(Path("/dev/null"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigUnreadable, match="not a regular file"):
        load(tmp_path / "fifo")
    with pytest.raises(ConfigUnreadable, match=r"cannot be read|not a regular file"):
        load(tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# ok\n# caf\xe9\n")
    with pytest.raises(ConfigUnreadable, match=r"not UTF-8 \(line 2\)"):
        load(latin)
    large = tmp_path / "large.toml"
    with large.open("wb") as file:
        file.truncate(4 * 1024 * 1024 + 1)
    with pytest.raises(ConfigUnreadable, match="larger than"):
        load(large)


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "corral.toml"
    file.write_text("[bpf]\nenabled = false\n")
    assert load(file).bpf.enabled is False


def test_overrides_win_and_are_checked_and_blamed() -> None:
    config = loads("[bpf]\nenabled = true\n", overrides={"bpf.enabled": False, "tenants.ci.memory_max": "2M"})
    assert config.bpf.enabled is False
    assert config.tenants["ci"].memory_max == 2 * 1024**2
    (found,) = problems("[call]\nhold_max = '5s'\n", overrides={"call.hold_max": "x"})
    assert found.startswith("command line: call.hold_max = 'x'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("daemon.mode=observe", ("daemon.mode", "observe")),
        ("daemon.state_dir=/tmp/a=b", ("daemon.state_dir", "/tmp/a=b")),
        ("call.hold_max = 45s", ("call.hold_max", "45s")),
        ("bpf.enabled=false", ("bpf.enabled", False)),
        ("tenants.ci.uids=[1, 2]", ("tenants.ci.uids", [1, 2])),
        ("call.pids_max=10", ("call.pids_max", 10)),
        ("a.b=1\nc=2", ("a.b", "1\nc=2")),
    ],
)
def test_overrides_of_the_command_line(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["", "x", "=1", "a..b=1", "a b=1", ".a=1"])
def test_wrong_overrides_of_the_command_line(text: str) -> None:
    with pytest.raises(ConfigInvalid, match="not KEY=VALUE; write"):
        parse_override(text)


def test_the_default_tenant_is_made_only_where_it_is_wanted() -> None:
    assert set(Config().all_tenants) == {"default"}
    declared = loads("[tenants.default]\npriority = 7\n")
    assert declared.all_tenants["default"].priority == 7
    assert set(loads("[tenants.ci]\n[default_tenant]\npolicy = 'ci'\n").all_tenants) == {"ci"}
    assert loads("[default_tenant]\npolicy = 'refuse'\n").all_tenants == {}


def test_the_controller_gets_every_setting_of_its_own() -> None:
    config = loads(
        "[tenants.ci]\nuids = [1]\nusers = ['root']\nmemory_max = '2G'\npriority = 9\nmax_calls = 3\n"
        "[default_tenant]\npolicy = 'refuse'\n[daemon]\nleftovers = 'kill'\n[broker]\ntoken_ttl = '1h'\n"
    )
    assert uids_of_tenants(config) == {1: "ci", 0: "ci"}
    host = host_config(config)
    (tenant,) = host.tenants
    assert (tenant.name, tenant.uids, tenant.priority, tenant.max_calls) == ("ci", frozenset({0, 1}), 9, 3)
    assert tenant.limits.memory_max == 2 * 1024**3
    assert host.default_tenant is None
    assert host.leftovers == "kill"
    assert host.token_ttl == 3600.0
    assert host_config(Config()).default_tenant == "default"


def test_changes_are_told_apart_by_what_they_need() -> None:
    old = loads("[tenants.a]\npriority = 1\n[tenants.gone]\n[tenants.same]\n")
    new = loads(
        "[daemon]\nlog_level = 'debug'\nmode = 'observe'\n[tenants.a]\npriority = 2\ngroup = 'root'\n[tenants.came]\n"
        "[tenants.same]\n[api.tcp.clients]\nx = 'operator'\n"
    )
    changes = diff(old, new)
    assert changes.live == ("daemon.log_level", "tenants.a.priority", "tenants.came", "tenants.gone")
    assert changes.restart == ("api.tcp.clients.x", "daemon.mode", "tenants.a.group")
    assert changes
    assert not diff(old, old)


def test_the_effective_configuration_keeps_what_needs_a_restart() -> None:
    old = loads("[tenants.a]\npriority = 1\n[tenants.gone]\n[api.tcp.clients]\ny = 'operator'\n")
    new = loads(
        "[daemon]\nlog_level = 'debug'\nmode = 'observe'\n[tenants.a]\npriority = 2\ngroup = 'root'\n[tenants.came]\n"
    )
    now = effective(old, new)
    assert diff(old, now).restart == ()
    assert diff(old, now).live == diff(old, new).live
    assert diff(now, new).restart == diff(old, new).restart
    assert diff(now, new).live == ()


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("localhost:9", ("127.0.0.1", 9))],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address


@pytest.mark.parametrize("text", ["", ":80", "1.2.3.4", "1.2.3.4:99999", "::1:80", "[1.2.3.4]:1", "a:1", "1.2.3.4:٣"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        split_address(text)


def test_the_published_schema_is_fresh() -> None:
    assert (ROOT / "docs" / "corral.schema.json").read_text(encoding="utf-8") == schema_text(), (
        "run python -m agentd.config"
    )


def test_the_documented_reference_is_fresh() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert with_reference(page) == page, "run python -m agentd.config"


def test_every_key_has_a_description() -> None:
    for kind in kinds(Config):
        assert kind.__doc__
        for name, hint in fields_of(kind).items():
            assert is_section(hint) or description(hint), f"{kind.__name__}.{name}"


def test_the_example_loads_and_fits_the_schema() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    config = loads(text, accounts=False)
    assert config.tenants["rollouts"].max_calls == 400
    jsonschema.validate(tomllib.loads(text), schema())


def test_what_the_example_comments_out_are_the_defaults() -> None:
    lines = []
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        bare = line.removeprefix("# ")
        if line.startswith("[") or (line.startswith("# ") and " = " in bare and bare[0].isalpha()):
            lines.append(bare)
    text = "\n".join(lines).replace("[tenants.", "[tenants.x")
    tcp = ("listen = ", "certificate = ", "key = ", "client_ca = ")
    config = loads("\n".join(line for line in text.split("\n") if not line.startswith(tcp)), accounts=False)
    assert msgspec.structs.replace(config, tenants={}) == msgspec.structs.replace(Config(), tenants={})


@pytest.mark.parametrize(
    "text",
    [
        "[daemon]\nmod = 1",
        "[call]\nhold_max = '3q'",
        "[call]\nmemory_max = 3",
        "[bpf]\nenabled = 1",
        "[tenants.UP]",
        "[tenants.ci]\npriority = 101",
        "[daemon]\nstate_dir = 'x'",
        "[host]\nmemory_reserve = '5'",
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(text: str) -> None:
    problems(text)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(text), schema())


def test_the_schema_is_a_schema_and_its_defaults_fit_it() -> None:
    whole = schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    for definition in whole["$defs"].values():
        for part in definition["properties"].values():
            if "default" in part:
                jsonschema.validate(part["default"], {**part, "$defs": whole["$defs"]})
    assert json.loads(schema_text()) == whole


def test_the_public_names_are_those_that_the_package_imports() -> None:
    imported = {n for n, v in vars(configuration).items() if not n.startswith("_") and not isinstance(v, ModuleType)}
    assert set(configuration.__all__) == imported


def test_budgets_and_prices_reach_the_controller() -> None:
    config = loads(
        """
        [tenants.ci]
        budgets = { cpu_seconds = "10h per 1d hard", tokens = "2M" }
        session_budgets = { calls_begun = "500 hard" }
        [prices]
        cpu_hour = 0.04
        prompt_tokens = 3.0
        [prices.engines.local]
        generated_tokens = 0.5
        """,
        accounts=False,
    )
    host = host_config(config)
    (ci,) = (tenant for tenant in host.tenants if tenant.name == "ci")
    assert [(r.resource.value, r.limit, r.hard, r.period) for r in ci.budgets] == [
        ("cpu_seconds", 36_000.0, True, 86_400.0),
        ("tokens", 2e6, False, None),
    ]
    assert [(r.resource.value, r.limit, r.hard) for r in ci.session_budgets] == [("calls_begun", 500.0, True)]
    assert (host.prices.cpu_hour, host.prices.tokens.prompt) == (0.04, 3.0)
    assert host.prices.engines["local"].generated == 0.5
    changes = diff(config, loads('[tenants.ci]\nbudgets = { tokens = "3M" }\n', accounts=False))
    assert changes.restart == (), "a reload applies all of it"


def test_budgets_that_are_none_are_named() -> None:
    found = problems('[tenants.ci]\nbudgets = { cpu_secs = "1h", tokens = "10 apples per 1d" }\n', accounts=False)
    assert any(
        "tenants.ci.budgets.cpu_secs: nothing that can be used up; did you mean 'cpu_seconds'?" in f for f in found
    )
    assert any("'10 apples' is no amount of tokens" in f and "50000 or 2M" in f for f in found)
