"""Configuration: defaults, file, environment, flags; and the socket that two agents want."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from agent.api.listener import listen
from agent.config import Config, PoolSettings
from fusevol.errors import FusevolError, UnavailableError, UsageError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FUSEVOL_STATE_DIR", "FUSEVOL_RUN_DIR", "FUSEVOL_SOCKET", "FUSEVOL_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_flags_go_over_the_environment_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source overrides the one before it."""
    file = tmp_path / "agent.yaml"
    file.write_text("stateDir: /a\nrunDir: /b\nlogLevel: debug\nprovisioners: [ceph.com/cephfs]\n")
    monkeypatch.setenv("FUSEVOL_RUN_DIR", "/c")
    config = Config.load(file, {"state_dir": "/d", "pool": "x=/p,y=/q"})

    assert (config.state_dir, config.run_dir, config.socket) == (Path("/d"), Path("/c"), Path("/c/agent.sock"))
    assert config.pools == {"x": PoolSettings(path=Path("/p")), "y": PoolSettings(path=Path("/q"))}
    assert (config.log_level, config.provisioners) == ("debug", ("fusevol.io/fusevol", "ceph.com/cephfs"))


def test_the_default_pool_is_below_the_state_directory(tmp_path: Path) -> None:
    """Nothing configured: one pool that is called default."""
    (tmp_path / "empty.yaml").touch()

    pools = Config.load(tmp_path / "empty.yaml", {"state-dir": "/s"}).pools

    assert pools == {"default": PoolSettings(path=Path("/s/pools/default"))}


def test_pools_with_settings(tmp_path: Path) -> None:
    """A pool is a directory, or a mapping that says more."""
    file = tmp_path / "agent.yaml"
    file.write_text("pools:\n  a: /a\n  b: {path: /b, driver: plain, overcommit: 2}\n")

    assert Config.load(file).pools == {
        "a": PoolSettings(path=Path("/a")),
        "b": PoolSettings(path=Path("/b"), driver="plain", overcommit=2.0),
    }


@pytest.mark.parametrize(
    "pool", ["{driver: plain}", "3", "{path: /b, driver: zfs}", "{path: /b, over: 1}", "{path: /b, overcommit: much}"]
)
def test_bad_pool_settings(tmp_path: Path, pool: str) -> None:
    """What cannot be understood of a pool is refused in a sentence that names it."""
    file = tmp_path / "agent.yaml"
    file.write_text(f"pools:\n  b: {pool}\n")

    with pytest.raises(UsageError, match=r"the pool b .*\.$"):
        Config.load(file)


@pytest.mark.parametrize(
    ("text", "flags", "found"),
    [
        ("", {}, ("auto", "auto")),
        ("transport: pyfuse3\nioUring: auto\n", {}, ("pyfuse3", "auto")),
        ("ioUring: on\n", {}, ("auto", "on")),
        ('ioUring: "off"\n', {}, ("auto", "off")),
        ("transport: kernel\nioUring: off\n", {"transport": "auto", "io_uring": "on"}, ("auto", "on")),
    ],
)
def test_how_volumes_are_served(tmp_path: Path, text: str, flags: dict[str, str], found: tuple[str, str]) -> None:
    """on and off are words, though YAML 1.1 has them for truth values; a flag goes over the file."""
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    config = Config.load(file, flags)

    assert (config.transport, config.io_uring) == found


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("a: [", {}, "is not YAML in line"),
        ("- a", {}, "must be a mapping"),
        ("nope: 1", {}, "unknown keys: nope"),
        ("pools: [a]", {}, "must map names"),
        ("", {"pool": "x"}, "write NAME=DIR"),
        ("", {"pool": "X=/p"}, "cannot be the name of a pool"),
        ("", {"log-level": "loud"}, "is no log level"),
        ("transport: fast", {}, '"fast" is no transport: choose one of auto, kernel, pyfuse3.'),
        ("", {"io-uring": "yes"}, '"yes" is no setting of ioUring: choose one of auto, on, off.'),
        ("ioUring: [on]", {}, "is no setting of ioUring"),
        ("provisioners: a", {}, "must be a list"),
    ],
)
def test_a_bad_configuration_is_one_sentence(tmp_path: Path, text: str, flags: dict[str, str], message: str) -> None:
    """What is wrong, where, and what to do."""
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    with pytest.raises(FusevolError) as caught:
        Config.load(file, flags)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_was_named_must_exist() -> None:
    """Only the default file may be missing."""
    with pytest.raises(UsageError, match="cannot be read"):
        Config.load(Path("/nonexistent/agent.yaml"), {})


def test_a_stale_socket_is_replaced_a_living_one_is_not(workdir: Path) -> None:
    """Nobody answers: taken over, mode 0600. Somebody answers: one sentence, and that one goes on."""
    path = workdir / "agent.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with listen(path):
        mode = stat.S_IMODE(path.stat().st_mode)
        with pytest.raises(UnavailableError, match="Another agent answers"):
            listen(path)
        assert path.exists()

    assert mode == 0o600


@pytest.mark.parametrize("name", ["x" * 108, "file"])
def test_a_path_that_cannot_be_a_socket_is_refused(workdir: Path, name: str) -> None:
    """Too long, or something else is there."""
    (workdir / "file").touch()

    with pytest.raises(UsageError):
        listen(workdir / name)
