"""[gateway]: off by default, for one engine that exists, on addresses of this host."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentd.config import ConfigInvalid, diff, loads
from agentd.config.gateway import gateway_engine
from agentd.gateway import CannotServe
from agentd.gateway.compose import gateway_settings

ONE = '[engines.local]\nurl = "http://127.0.0.1:8080"\n'
TWO = ONE + '[engines.b]\nurl = "http://127.0.0.1:8081"\n'
ON = '[gateway]\nlisten = "127.0.0.1:8090"\n'


def test_off_unless_it_has_an_address() -> None:
    assert gateway_settings(loads(ONE)) is None
    settings = gateway_settings(loads(ONE + ON))
    assert settings is not None
    assert (settings.listen, settings.begin.engine, settings.user) == (("127.0.0.1", 8090), "local", "nobody")
    assert gateway_engine(loads(TWO + ON + 'engine = "b"\n')) == "b"


@pytest.mark.parametrize(
    ("text", "key", "cause"),
    [
        (ON, "gateway.engine", "no engine is configured"),
        (TWO + ON, "gateway.engine", "there is more than one engine"),
        (TWO + ON + 'engine = "c"\n', "gateway.engine", "no such engine"),
        (ONE + '[gateway]\nlisten = "0.0.0.0:8090"\n', "gateway.listen", "other hosts could reach it"),
        (ONE + '[gateway]\nlisten = "8090"\n', "gateway.listen", "has no port"),
        (ONE + f'[gateway]\nsocket = "/{"s" * 120}"\n', "gateway.socket", "a unix socket's has at most 107"),
        (ONE + ON + "max_body = 1\n", "gateway.max_body", ""),
    ],
)
def test_what_does_not_fit_is_said(text: str, key: str, cause: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        loads(text)
    assert key in str(caught.value)
    assert cause in str(caught.value)


def test_remote_addresses_are_the_operators_decision() -> None:
    text = ONE + '[gateway]\nlisten = "0.0.0.0:8090"\nallow_remote = true\n'
    settings = gateway_settings(loads(text))
    assert settings is not None
    assert settings.listen == ("0.0.0.0", 8090)


def test_the_engines_key_is_read_and_its_absence_said(tmp_path: Path) -> None:
    key = tmp_path / "key"
    text = ONE + f'api_key_file = "{key}"\n' + ON
    with pytest.raises(CannotServe, match=r"engines\.local\.api_key_file .*key cannot be read"):
        gateway_settings(loads(text))
    key.write_text("secret\nrest\n")
    settings = gateway_settings(loads(text))
    assert settings is not None
    assert settings.begin.api_key == "secret"


def test_addresses_wait_for_a_restart() -> None:
    changes = diff(loads(ONE + ON), loads(ONE + ON.replace("8090", "8091")))
    assert changes.restart == ("gateway.listen",)
