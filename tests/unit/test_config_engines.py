"""[gpu] and [engines.NAME]: defaults that only observe, what must fit together, reload."""

from __future__ import annotations

import pytest

from agentd.config import ConfigInvalid, EngineSection, diff, effective, engine_config, loads
from gpu.engines import EngineKind

LOCAL = '[engines.local]\nurl = "http://127.0.0.1:8080"\n'


def test_engines_are_only_observed_unless_the_operator_says_otherwise() -> None:
    config = loads(LOCAL)
    assert config.engines["local"].control is False
    assert config.gpu.enabled == "auto"
    assert config.gpu.budget == 0.01
    assert loads("").engines == {}


def test_an_engine_in_the_terms_of_the_adapters() -> None:
    section = loads(
        LOCAL + 'kind = "vllm"\nlayers = 2\nkv_heads = 3\nhead_dim = 64\nevents = "ipc:///run/kv"\n'
    ).engines
    found = engine_config("local", section["local"], api_key="secret")
    assert (found.kind, found.bytes_per_token, found.events) == (EngineKind.VLLM, 2 * 2 * 3 * 64 * 2, "ipc:///run/kv")
    assert "secret" not in repr(found)
    assert engine_config("local", EngineSection(url="http://x:1", bytes_per_token=7, layers=1)).bytes_per_token == 7
    assert engine_config("local", EngineSection(url="http://x:1")).bytes_per_token is None


@pytest.mark.parametrize(
    ("text", "key", "cause"),
    [
        ("[engines.a]\n", "engines.a.url", "missing"),
        ('[engines.a]\nurl = "ftp://x"\n', "engines.a", "ftp://x"),
        ('[engines."a b"]\nurl = "http://x:1"\n', 'engines."a b"', "engine name 'a b'"),
        (LOCAL + "layers = 3\n", "engines.local", "without kv_heads, head_dim"),
        (LOCAL + '[engines.b]\nurl = "http://127.0.0.1:8080/"\n', "engines.b.url", "the same engine as 'local'"),
        (LOCAL + 'kind = "sglang"\nevents = "ipc:///x"\n', "engines.local.events", "publishes no KV events"),
        (LOCAL + 'replay = "ipc:///x"\n', "engines.local", "without an event endpoint"),
        (LOCAL + 'kind = "vllm"\ndeclared_slots = true\n', "engines.local.declared_slots", "has no slots"),
        (LOCAL + 'policy = "best"\n', "engines.local.policy", "best"),
        (LOCAL + "pressure = 1.5\n", "engines.local.pressure", "1.0"),
        ('[gpu]\ninterval = "1ms"\n', "gpu.interval", "0.1"),
    ],
)
def test_what_does_not_fit_is_named(text: str, key: str, cause: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        loads(text)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert cause in str(problem)


def test_a_reload_applies_every_key() -> None:
    old = loads(LOCAL)
    new = loads(LOCAL + 'control = true\n[engines.other]\nurl = "http://x:1"\n[gpu]\nenabled = "off"\n')
    changes = diff(old, new)
    assert changes.live == ("engines.local.control", "engines.other", "gpu.enabled")
    assert changes.restart == ()
    assert effective(old, new) == new
