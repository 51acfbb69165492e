"""The small parts of the command line: naming objects, tables, ages, sizes, usage errors."""

from __future__ import annotations

import datetime as dt

import pytest

from agent.cli import output
from agent.cli.main import main
from agent.cli.resources import Selection, selections
from fusevol.errors import UsageError

NOW = dt.datetime(2026, 1, 10, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("what", "chosen"),
    [
        (["pvc"], [Selection("pvc", ())]),
        (["pvc", "a", "b"], [Selection("pvc", ("a", "b"))]),
        (["pvc,pv"], [Selection("pvc", ()), Selection("pv", ())]),
        (["pvc/a", "pv/b"], [Selection("pvc", ("a",)), Selection("pv", ("b",))]),
    ],
)
def test_selections(what: list[str], chosen: list[Selection]) -> None:
    """Objects are named in kubectl's two ways."""
    assert selections(what) == chosen


@pytest.mark.parametrize("what", [["pvc/a", "b"], ["pvc/"], ["/a"], ["a/b/c"], [","], ["pvc,pv", "a"]])
def test_bad_selections(what: list[str]) -> None:
    """Anything else is a usage error."""
    with pytest.raises(UsageError):
        selections(what)


def test_table() -> None:
    """Columns are as wide as their widest cell, three blanks apart, without trailing blanks."""
    assert output.table(["NAME", "AGE"], [["data", "3m20s"], ["longer-name", "1s"]]) == (
        "NAME          AGE\ndata          3m20s\nlonger-name   1s"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (200, "3m20s"), (3600, "60m"), (5 * 3600, "5h"), (8 * 86400, "8d")],
)
def test_age(seconds: int, text: str) -> None:
    """Ages are in kubectl's short form."""
    since = (NOW - dt.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")

    assert output.age(since, NOW) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (1023, "1023"), (1536, "1.5Ki"), (2**30, "1Gi"), (None, "<none>"), (10**30, "867361737988.4Ei")],
)
def test_size(count: int | None, text: str) -> None:
    """Sizes are in powers of 1024 with at most one decimal."""
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "required: COMMAND"),
        (["frob"], "invalid choice: 'frob'"),
        (["get"], "see `fusevol get --help`"),
        (["get", "pvc", "-o", "xml"], "invalid choice: 'xml'"),
        (["apply"], "-f/--filename"),
        (["delete"], "Say what to delete"),
        (["delete", "pvc"], "names, --all or -l SEL"),
        (["delete", "pvc", "a", "--timeout", "soon"], "not a time"),
        (["run"], "-f/--filename"),
        (["run", "-f", "x", "--prepare", "-d"], "starts no containers"),
        (["run", "-f", "x", "--rm", "-d"], "leave out -d"),
        (["get", "pvc", "a", "-l", "x=y"], "leave out one"),
        (["get", "pools", "-w"], "without --watch"),
        (["mount", "data"], "TARGET"),
        (["apply", "-f", "-", "-f", "-"], "only once"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    """What is not understood is one sentence on stderr and exit code 2."""
    code = main(argv)
    out, err = capsys.readouterr()

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("Error: ")
    assert says in err


@pytest.mark.parametrize("argv", [["--help"], ["get", "--help"], ["flexvolume", "--help"], ["run", "-h"]])
def test_help(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    """Every command explains itself with examples."""
    with pytest.raises(SystemExit) as ended:
        main(argv)

    assert ended.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_bug_is_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours is one sentence and exit code 1; the traceback is there for those who ask with --debug."""
    monkeypatch.setattr("agent.cli.version.Client", None)
    plain = main(["version"]), capsys.readouterr().err
    shown = main(["version", "--debug"]), capsys.readouterr().err

    assert plain[0] == shown[0] == 1
    assert plain[1].startswith("Error: fusevol has a bug here (TypeError: ")
    assert "Traceback" not in plain[1]
    assert "Traceback" in shown[1]
