"""Alerts and dashboard, judged by Prometheus' own tool. tests/faults/test_metrics.py compares them with an agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import monitoring
from tests.support.tools import run

CASES: dict[str, tuple[dict[str, str], str]] = {
    "FusevolAgentDown": ({'up{job="fusevol-system/fusevol",node="a"}': "1x4 0x40"}, "12m"),
    "FusevolAgentNotReady": ({'fusevol_ready{node="a"}': "1x60", 'fusevol_keeper_up{node="a"}': "0x60"}, "12m"),
    "FusevolPoolHangs": ({'fusevol_pool_answers{pool="p"}': "0x60"}, "4m"),
    "FusevolPoolNearlyFull": (
        {'fusevol_pool_available_bytes{pool="p"}': "9x60", 'fusevol_pool_capacity_bytes{pool="p"}': "100x60"},
        "12m",
    ),
    "FusevolVolumeNearlyFull": (
        {'fusevol_volume_used_bytes{volume="v"}': "95x60", 'fusevol_volume_limit_bytes{volume="v"}': "100x60"},
        "12m",
    ),
    "FusevolVolumeNearlyOutOfInodes": (
        {'fusevol_volume_used_inodes{volume="v"}': "95x60", 'fusevol_volume_limit_inodes{volume="v"}': "100x60"},
        "12m",
    ),
    "FusevolTakeoversRising": ({'fusevol_server_takeovers_total{volume="v"}': "0+1x60"}, "20m"),
    "FusevolServerFailed": ({'fusevol_server_answers{volume="v"}': "0x60"}, "4m"),
    "FusevolRequestsHang": ({'fusevol_server_requests_hanging{volume="v"}': "2x60"}, "4m"),
}
"""For each alert what makes it fire, and when it does; before, and for numbers that are well, it does not."""
WELL = {
    'up{job="fusevol-system/fusevol",node="a"}': "1x60",
    "fusevol_ready": "1x60",
    "fusevol_keeper_up": "1x60",
    "fusevol_pool_answers": "1x60",
    "fusevol_pool_available_bytes": "50x60",
    "fusevol_pool_capacity_bytes": "100x60",
    "fusevol_volume_used_bytes": "50x60",
    "fusevol_volume_limit_bytes": "100x60",
    "fusevol_server_takeovers_total": "0x20 1x40",
    "fusevol_server_answers": "1x60",
    "fusevol_server_requests_hanging": "0x60",
}


def rules(directory: Path) -> Path:
    """The rules as a file of Prometheus' own."""
    path = directory / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": monitoring.groups()}))
    return path


def test_each_alert_fires_for_what_it_is_for(tmp_path: Path) -> None:
    """By Prometheus' own unit tests: each alert is silent at first, fires for its case, and for nothing else."""
    tests: list[dict[str, Any]] = []
    for alert, (series, when) in CASES.items():
        given = [{"series": name, "values": values} for name, values in series.items()]
        ask = [f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)']
        checks = [
            {"expr": expr, "eval_time": at, "exp_samples": [{"labels": "{}", "value": value}]}
            for expr in ask
            for at, value in (("0m", 0), (when, 1))
        ]
        tests.append({"interval": "1m", "input_series": given, "promql_expr_test": checks})
    quiet = [{"series": name, "values": values} for name, values in WELL.items()]
    nothing = {"expr": "count(ALERTS) or vector(0)", "eval_time": "50m", "exp_samples": [{"labels": "{}", "value": 0}]}
    tests.append({"interval": "1m", "input_series": quiet, "promql_expr_test": [nothing]})
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules(tmp_path))], "evaluation_interval": "1m", "tests": tests}))
    run("promtool", "test", "rules", file)

    assert {r["alert"] for g in monitoring.groups() for r in g["rules"]} == CASES.keys()


@pytest.mark.parametrize("what", ["alerts", "dashboard"])
def test_prometheus_understands_every_expression(tmp_path: Path, what: str) -> None:
    """Rules and queries are PromQL."""
    path = rules(tmp_path)
    if what == "dashboard":
        asked = [{"record": f"panel:{n}", "expr": e} for n, e in enumerate(monitoring.queries())]
        path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": asked}]}))
        assert len(asked) > 15
    said = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", path)

    assert "SUCCESS" in said
