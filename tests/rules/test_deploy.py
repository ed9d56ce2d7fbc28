"""What is deployed says only what the product knows: metrics, outcomes, settings, files, and a stack no one else can reach."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker_edge.errors import CODES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = ROOT / "docker-compose.yaml"
DOCKERFILE = ROOT / "Dockerfile"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "broker-edge.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
ANSWERS = {"hit", "stale", "revalidated", "fetched", "collapsed", "test"}
METRIC = re.compile(r"\bbroker_edge_[a-z_]+")
SETTING = re.compile(r"\bDATA_BROKER_[A-Z_]+")


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=60, check=False)


def tool(name: str) -> Path:
    return Path(sys.executable).parent / name


def stack() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return parsed


def under(tree: Any, name: str) -> Iterator[Any]:
    """Every value of the member `name`, at any depth of `tree`."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if key == name:
            yield value
        yield from under(value, name)


def queries() -> list[str]:
    """Every PromQL expression of the dashboard and of the alerts."""
    trees = json.loads(DASHBOARD.read_text()), yaml.safe_load(ALERTS.read_text())
    return [expr for tree in trees for expr in under(tree, "expr")] + [trees[0]["templating"]["list"][1]["definition"]]


def deployed_files() -> list[Path]:
    return [COMPOSE, DOCKERFILE, *(path for path in DEPLOY.rglob("*") if path.is_file())]


def test_the_compose_file_is_one() -> None:
    seen = run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)
    assert seen.returncode == 0, seen.stdout


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    seen = run(tool("hadolint"), "--no-color", DOCKERFILE)
    assert (seen.returncode, seen.stdout) == (0, "")


@pytest.mark.parametrize("path", [*DEPLOY.rglob("*.y*ml"), *DEPLOY.rglob("*.json")], ids=lambda path: path.name)
def test_every_configuration_parses(path: Path) -> None:
    assert json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())


def test_every_metric_shown_or_alerted_on_is_one_of_the_products() -> None:
    from broker_edge.telemetry.metrics import DOCUMENTED

    used = {name for expr in queries() for name in METRIC.findall(expr)}
    assert used
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} <= set(DOCUMENTED)


def test_every_metric_of_the_product_is_shown() -> None:
    from broker_edge.telemetry.metrics import DOCUMENTED

    shown = " ".join(queries())
    assert [name for name in DOCUMENTED if name not in shown] == []


def test_every_outcome_asked_for_exists() -> None:
    outcomes = ANSWERS | {code.lower() for code in CODES}
    patterns = [p for expr in queries() for p in re.findall(r'requests_total\{[^}]*outcome=~?"([^"]+)"', expr)]
    assert patterns
    unmatched = [part for p in patterns for part in p.split("|") if not any(re.fullmatch(part, name) for name in outcomes)]
    assert unmatched == []


def test_every_upstream_fault_counts_for_the_alert_on_upstreams() -> None:
    rules = {rule["alert"]: rule["expr"] for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]}
    pattern = re.search(r'outcome=~"([^"]+)"', rules["BrokerEdgeUpstreamFailing"])
    assert pattern
    faults = {code.lower() for code, kind in CODES.items() if kind.source == "upstream"}
    assert {name for name in faults if not re.fullmatch(pattern[1], name)} == set()


def test_every_setting_named_exists() -> None:
    from broker_edge.settings import Settings

    fields = {f"DATA_BROKER_{name.upper()}" for name in Settings.model_fields}
    named = {name for path in deployed_files() for name in SETTING.findall(path.read_text())}
    assert named
    assert {name for name in named if name not in fields and name.removesuffix("_FILE") not in fields} == set()


def test_the_edge_starts_with_the_settings_of_the_stack(tmp_path: Path) -> None:
    from broker_edge.settings import load

    secret = tmp_path / "password"
    secret.write_text((DEPLOY / "local-db-password").read_text())
    given = stack()["services"]["edge"]["environment"]
    values = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value)) for name, value in given.items()}
    settings = load({**values, "DATA_BROKER_DB_PASSWORD_FILE": str(secret)})
    assert settings.database == "postgresql+psycopg://data_broker:local-only@postgres:5432/data_broker"
    assert settings.allowed_private_hosts == ("bureau:7001",)


def test_the_keys_of_secrets_are_given_to_the_stack_and_none_is_published() -> None:
    from broker_edge.guard.vault import new_entry
    from broker_edge.settings import load

    given = stack()["services"]["edge"]["environment"]["DATA_BROKER_ENCRYPTION_KEYS"]
    assert given == "${ENCRYPTION_KEYS:-}"
    assert load({"DATA_BROKER_ENCRYPTION_KEYS": ""}).encryption_keys is None
    assert load({"DATA_BROKER_ENCRYPTION_KEYS": new_entry("a")}).encryption_keys is not None


def test_the_stack_listens_on_loopback_only() -> None:
    ports = [port for service in stack()["services"].values() for port in service.get("ports", [])]
    assert len(ports) >= 5
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_every_service_that_stays_has_a_health_check() -> None:
    services = stack()["services"]
    own_image = {name for name, service in services.items() if service.get("build")}
    assert {name for name in services if not services[name].get("healthcheck")} <= own_image
    assert "HEALTHCHECK" in DOCKERFILE.read_text()
    assert services["migrate"]["healthcheck"] == {"disable": True}


def test_the_products_containers_are_read_only_and_without_capabilities() -> None:
    for name in ("edge", "migrate", "bureau"):
        service = stack()["services"][name]
        assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (True, ["/tmp"], ["ALL"])


def test_every_file_mounted_or_copied_exists() -> None:
    mounted = [volume.split(":")[0] for service in stack()["services"].values() for volume in service.get("volumes", [])]
    copied = [word for line in DOCKERFILE.read_text().splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]]
    wanted = [name for name in mounted if name.startswith("./")] + [word for word in copied if not word.startswith(("--", "/"))]
    assert [name for name in wanted if not (ROOT / name).exists()] == []


def test_every_file_the_image_copies_reaches_the_builder() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = {word for line in DOCKERFILE.read_text().splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert {word for word in copied if not word.startswith(("--", "/"))} == set(allowed)


def test_every_named_volume_and_dependency_is_declared() -> None:
    parsed = stack()
    named = {volume.split(":")[0] for service in parsed["services"].values() for volume in service.get("volumes", [])}
    assert {name for name in named if not name.startswith("./")} == set(parsed["volumes"])
    needed = {name for service in parsed["services"].values() for name in service.get("depends_on", {})}
    assert needed <= set(parsed["services"])


def test_the_dashboards_datasources_are_provisioned() -> None:
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/broker-edge.yaml").read_text())["datasources"]
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["templating"]["list"][0]["current"]["value"] in {source["uid"] for source in provisioned}
    assert {source["uid"] for source in under(dashboard, "datasource")} == {"${datasource}"}


def test_the_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for g in (panel["gridPos"] for panel in panels)
        for x in range(g["x"], g["x"] + g["w"])
        for y in range(g["y"], g["y"] + g["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
