from __future__ import annotations

from pathlib import Path

import pytest

from nodes.agent.config import AgentConfig, ConfigError, from_environment

URL = {"RGRID_GATEWAY_URL": "https://gateway.example/"}


def test_everything_is_read_from_the_environment() -> None:
    config = from_environment(
        URL
        | {
            "RGRID_JOIN_TOKEN": "t" * 43,
            "RGRID_NODE_DIR": "/srv/node",
            "RGRID_SLOTS": "4",
            "RGRID_NODE_NAME": "n1",
            "RGRID_CALLBACK_ALLOW": "127.0.0.0/8, localhost",
            "RGRID_DRAIN_S": "0",
            "RGRID_LEAVE_ON_EXIT": "1",
            "RGRID_ENFORCE_FLOORS": "true",
            "RGRID_JOB_DNS": "10.0.0.53",
            "RGRID_JOB_DENY": "203.0.113.7, 198.51.100.0/24",
            "RGRID_JOB_ALLOW": "172.17.0.1/32",
            "DOCKER_HOST": "unix:///run/other.sock",
        }
    )
    assert config == AgentConfig(
        gateway_url="https://gateway.example",
        node_dir=Path("/srv/node"),
        slots=4,
        join_token="t" * 43,
        name="n1",
        input_allow=("127.0.0.0/8", "localhost"),
        drain_s=0,
        leave_on_exit=True,
        enforce_floors=True,
        job_dns=("10.0.0.53",),
        job_deny=("203.0.113.7", "198.51.100.0/24"),
        job_allow=("172.17.0.1/32",),
        docker_host="unix:///run/other.sock",
    )
    assert "t" * 43 not in repr(config)


def test_defaults_are_those_of_a_node_that_comes_back() -> None:
    config = from_environment(URL)
    assert (config.drain_s, config.leave_on_exit, config.join_token, config.input_allow) == (
        30,
        False,
        None,
        (),
    )
    assert config.slots >= 1
    assert config.name


@pytest.mark.parametrize(("own", "allow"), [("10.0.0.0/8", ("10.0.0.0/8",)), ("", ())])
def test_inputs_may_be_allowed_apart_from_callbacks(own: str, allow: tuple[str, ...]) -> None:
    env = URL | {"RGRID_CALLBACK_ALLOW": "localhost", "RGRID_INPUT_ALLOW": own}
    assert from_environment(env).input_allow == allow


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RGRID_GATEWAY_URL", ""),
        ("RGRID_GATEWAY_URL", "gateway.example"),
        ("RGRID_GATEWAY_URL", "ftp://gateway.example"),
        ("RGRID_GATEWAY_URL", "https://"),
        ("RGRID_GATEWAY_URL", "https://user:pw@gateway.example"),
        ("RGRID_GATEWAY_URL", "https://gateway.example/?x=1"),
        ("RGRID_GATEWAY_URL", "https://gateway.example:99999"),
        ("RGRID_GATEWAY_URL", "https://[::1"),
        ("RGRID_SLOTS", "0"),
        ("RGRID_SLOTS", "1025"),
        ("RGRID_SLOTS", "two"),
        ("RGRID_SLOTS", "1.5"),
        ("RGRID_DRAIN_S", "-1"),
        ("RGRID_DRAIN_S", "nan"),
        ("RGRID_DRAIN_S", "inf"),
        ("RGRID_DRAIN_S", "soon"),
        ("RGRID_IMAGES_GIB", "-1"),
        ("RGRID_IMAGES_GIB", "much"),
        ("RGRID_IMAGES_GIB", "nan"),
        ("RGRID_LEAVE_ON_EXIT", "maybe"),
        ("RGRID_ENFORCE_FLOORS", "2"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        from_environment(URL | {name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "in_clear"),
    [
        ("https://gateway.example", False),
        ("http://127.0.0.1:8080", False),
        ("http://[::1]:8080", False),
        ("http://localhost", False),
        ("http://10.0.0.2:8080", True),
        ("http://gateway.example", True),
    ],
)
def test_an_unencrypted_way_to_the_gateway_is_noticed(url: str, in_clear: bool) -> None:
    assert AgentConfig(gateway_url=url, node_dir=Path("/x"), slots=1).in_clear is in_clear
