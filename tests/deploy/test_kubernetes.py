"""What the manifests promise of a pod, held against the server's own figures."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.check import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    RULES_COPY,
    documents_of,
    prometheus_rule,
    settings_named,
)
from serve.settings import MAX_DEADLINE_MS, Settings, unknown_variables

PLACE = KUBERNETES / "base" / "place_model.py"
REMOTE = ("gpu-vllm", "gpu-tensorrt-llm")


@cache
def rendered(overlay: str) -> tuple[Any, ...]:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed: it renders the overlays")
    folder = KUBERNETES / "overlays" / overlay
    ran = subprocess.run([program, "kustomize", folder], capture_output=True, text=True, check=True)
    return tuple(documents_of(ran.stdout))


def one(overlay: str, kind: str, name: str = "curt") -> Any:
    found = [d for d in rendered(overlay) if d["kind"] == kind and d["metadata"]["name"] == name]
    assert len(found) == 1, (overlay, kind, name)
    return found[0]


def pod(overlay: str) -> Any:
    return one(overlay, "Deployment")["spec"]["template"]["spec"]


def server(overlay: str) -> Any:
    (container,) = pod(overlay)["containers"]
    return container


def engine(overlay: str) -> Any:
    return pod(overlay)["initContainers"][-1]


def every_container(overlay: str) -> list[Any]:
    return [
        container
        for document in rendered(overlay)
        if document["kind"] == "Deployment"
        for part in ("initContainers", "containers")
        for container in document["spec"]["template"]["spec"].get(part, [])
    ]


def environment(overlay: str) -> dict[str, str]:
    """What the server finds in its environment, secrets aside."""
    settings = next(
        document["data"]
        for document in rendered(overlay)
        if document["kind"] == "ConfigMap"
        and document["metadata"]["name"].startswith("curt-settings-")
    )
    return settings | {each["name"]: each["value"] for each in server(overlay)["env"]}


def test_every_variable_that_is_named_is_a_setting() -> None:
    named = settings_named()
    assert {"Dockerfile", "deploy/compose.yaml", "deploy/k8s/base/settings.env"} <= set(named)
    for file, names in named.items():
        assert unknown_variables(dict.fromkeys(names, "")) == [], file


def test_every_component_is_part_of_an_overlay() -> None:
    assert set(OVERLAYS) == {"cpu", *REMOTE}
    used = {
        Path(path).name
        for overlay in OVERLAYS
        for path in yaml.safe_load(
            (KUBERNETES / "overlays" / overlay / "kustomization.yaml").read_text()
        )["components"]
    }
    assert used == {folder.name for folder in (KUBERNETES / "components").iterdir()}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_accepts_its_settings(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CURT_"):
            monkeypatch.delenv(name)
    for name, value in environment(overlay).items():
        monkeypatch.setenv(name, value)
    settings = Settings()  # type: ignore[call-arg]
    mounts = {mount["mountPath"] for mount in server(overlay)["volumeMounts"]}
    assert str(settings.model.parent) in mounts
    assert settings.engine == ("onnxruntime" if overlay == "cpu" else overlay.removeprefix("gpu-"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_service_named_like_the_server_leaves_its_port_alone(overlay: str) -> None:
    """CURT_PORT=tcp://10.0.0.7:80 would come from the service, and the server would refuse it."""
    assert one(overlay, "Service")
    assert pod(overlay)["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_time_to_answer_what_it_took(overlay: str) -> None:
    before_s = server(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = float(environment(overlay)["CURT_DRAIN_S"])
    answer_s = MAX_DEADLINE_MS // 1000 + 5  # timeout_graceful_shutdown in serve/__main__.py
    assert pod(overlay)["terminationGracePeriodSeconds"] >= before_s + drain_s + answer_s + 10
    probe = server(overlay)["readinessProbe"]
    noticed_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert drain_s >= noticed_s, "the pod closes before its readiness is seen to be gone"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_for_what_there_is(overlay: str) -> None:
    probes = {name: server(overlay)[name]["httpGet"] for name in
              ("startupProbe", "readinessProbe", "livenessProbe")}  # fmt: skip
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez",
    }  # fmt: skip
    ports = {port["name"]: port["containerPort"] for port in server(overlay)["ports"]}
    assert {probe["port"] for probe in probes.values()} == set(ports)
    assert one(overlay, "Service")["spec"]["ports"][0]["targetPort"] in ports
    assert ports == {"http": Settings.model_fields["port"].default}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_whole_cores_to_themselves(overlay: str) -> None:
    for container in [*pod(overlay)["initContainers"], server(overlay)]:
        resources = container["resources"]
        # The Guaranteed class needs it of every container, init containers included.
        assert resources["requests"] == resources["limits"], container["name"]
        assert re.fullmatch(r"\d+", resources["requests"]["cpu"]), container["name"]
    if overlay == "cpu":
        cores = int(server(overlay)["resources"]["limits"]["cpu"])
        assert int(environment(overlay)["CURT_WORKERS"]) + 1 == cores


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_meet_the_restricted_standard(overlay: str) -> None:
    containers = every_container(overlay)
    assert len(containers) >= 2
    for container in containers:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, container["name"]
        assert security["readOnlyRootFilesystem"] is True, container["name"]
        assert security["capabilities"] == {"drop": ["ALL"]}, container["name"]
    for document in rendered(overlay):
        if document["kind"] != "Deployment":
            continue
        spec = document["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 10_000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert not any("hostPath" in volume for volume in spec.get("volumes", []))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_volumes_that_are_mounted_are_there(overlay: str) -> None:
    volumes = {volume["name"] for volume in pod(overlay)["volumes"]}
    mounted = {
        mount["name"]
        for container in [*pod(overlay)["initContainers"], server(overlay)]
        for mount in container["volumeMounts"]
    }
    assert mounted == volumes
    # What the server's processes speak over; without it none of its workers starts.
    (tmp,) = [mount for mount in server(overlay)["volumeMounts"] if mount["mountPath"] == "/tmp"]
    assert not tmp.get("readOnly")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_rollout_takes_no_replica_away(overlay: str) -> None:
    strategy = one(overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy["maxUnavailable"] == 0
    assert strategy["maxSurge"] >= 1
    budget = one(overlay, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    labels = one(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        budget["selector"]["matchLabels"],
        one(overlay, "Deployment")["spec"]["selector"]["matchLabels"],
        one(overlay, "Service")["spec"]["selector"],
        one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(s["labelSelector"]["matchLabels"] for s in pod(overlay)["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    assert "replicas" not in one(overlay, "Deployment")["spec"], "the autoscaler's to say"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_autoscaler_goes_by_series_that_are_recorded(overlay: str) -> None:
    recorded = {
        rule["record"]
        for group in prometheus_rule()["spec"]["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    kinds = {d["kind"] for d in rendered(overlay)} & {"HorizontalPodAutoscaler", "ScaledObject"}
    assert len(kinds) == 1
    if kinds == {"ScaledObject"}:
        triggers = one(overlay, "ScaledObject")["spec"]["triggers"]
        asked = {trigger["metadata"]["query"] for trigger in triggers}
        assert {trigger["metricType"] for trigger in triggers} == {"Value"}
    else:
        adapter = yaml.safe_load(
            (KUBERNETES / "components" / "hpa" / "prometheus-adapter.yaml").read_text()
        )["rules"]["external"]
        served = {rule["name"]["as"]: rule["seriesQuery"] for rule in adapter}
        metrics = one(overlay, "HorizontalPodAutoscaler")["spec"]["metrics"]
        asked = {served[metric["external"]["metric"]["name"]] for metric in metrics}
        assert asked == set(served.values())
    assert "curt:queue_wait_seconds:p95_2m" in asked
    assert asked <= recorded


def test_both_autoscalers_want_the_same() -> None:
    hpa = one("cpu", "HorizontalPodAutoscaler")["spec"]
    keda = one("gpu-vllm", "ScaledObject")["spec"]
    advanced = keda["advanced"]["horizontalPodAutoscalerConfig"]
    assert hpa["behavior"] == advanced["behavior"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (
        keda["minReplicaCount"], keda["maxReplicaCount"],
    )  # fmt: skip
    targets = [metric["external"]["target"]["value"] for metric in hpa["metrics"]]
    assert [int(value.removesuffix("m")) / 1000 for value in targets] == [
        float(trigger["metadata"]["threshold"]) for trigger in keda["triggers"]
    ]


@pytest.mark.parametrize("overlay", REMOTE)
def test_the_engine_outlives_the_server(overlay: str) -> None:
    assert [container["name"] for container in pod(overlay)["initContainers"]] == [
        "place-model", "engine",
    ]  # fmt: skip
    assert engine(overlay)["restartPolicy"] == "Always"  # a sidecar: it ends after the server
    assert engine(overlay)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "startupProbe" in engine(overlay)
    assert pod(overlay)["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert [t["key"] for t in pod(overlay)["tolerations"]] == ["nvidia.com/gpu"]
    address = environment(overlay)["CURT_ENGINE_URL"]
    assert address + "/health" in str(engine(overlay)["startupProbe"]["exec"]["command"])


def test_the_names_of_the_model_agree() -> None:
    assert (
        "--served-model-name=" + environment("gpu-vllm")["CURT_ENGINE_MODEL"]
        in (engine("gpu-vllm")["args"])
    )
    assert engine("gpu-vllm")["command"][-1] == environment("gpu-vllm")["CURT_MODEL"]


def test_the_copy_of_the_rules_is_one() -> None:
    (copied,) = documents_of(RULES_COPY.read_text(encoding="utf-8"))
    assert copied == prometheus_rule(), "python -m deploy.check --write_rules true"


def test_no_image_is_latest_and_none_names_a_registry() -> None:
    images = {c["image"] for overlay in OVERLAYS for c in every_container(overlay)}
    assert len(images) == 4
    for image in images:
        name, _, tag = image.partition(":")
        assert tag, image
        assert tag != "latest"
        assert "." not in name.split("/")[0], image


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def model_folder(folder: Path) -> Path:
    """As much of a model folder as the script reads."""
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"weights" * 1000)
    (folder / "launch.sh").write_text("#!/bin/sh\n")
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "weights", folder / "launch.sh")
    }
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    return folder


def place(volume: Path, target: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PLACE, volume, target],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_model_is_placed_with_what_its_manifest_names(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "models" / "a")
    (source / "stray").write_text("no manifest names it")
    target = tmp_path / "local" / "current"
    for _ in range(2):  # a container that is started again finds its own copy
        ran = place(
            tmp_path / "models", target, MODEL_FOLDER="a", MODEL_MANIFEST_SHA256=digest(source)
        )
        assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in target.iterdir()) == [
        "launch.sh", "manifest.json", "weights",
    ]  # fmt: skip
    assert os.access(target / "launch.sh", os.X_OK)


@pytest.mark.parametrize("change", ["weights", "manifest", "missing", "unnamed", "outside"])
def test_another_model_than_the_one_named_is_refused(tmp_path: Path, change: str) -> None:
    source = model_folder(tmp_path / "models" / "a")
    variables = {"MODEL_FOLDER": "a", "MODEL_MANIFEST_SHA256": digest(source)}
    if change == "weights":
        (source / "weights").write_bytes(b"others")
    elif change == "manifest":
        (source / "manifest.json").write_text('{"files": {}}')
    elif change == "missing":
        (source / "weights").unlink()
    elif change == "unnamed":
        variables["MODEL_MANIFEST_SHA256"] = ""
    else:
        (source / "manifest.json").write_text('{"files": {"../b": "' + "0" * 64 + '"}}')
        variables["MODEL_MANIFEST_SHA256"] = digest(source)
    ran = place(tmp_path / "models", tmp_path / "local" / "current", **variables)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: ")
    assert "Traceback" not in ran.stderr
    assert list((tmp_path / "local").glob("*")) == []


def test_a_model_that_its_gate_refused_is_placed_only_when_told(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "models" / "a")
    verdict = {"refused": ["thinking"], "manifest_sha256": digest(source)}
    (source / "gate.json").write_text(json.dumps(verdict))
    variables = {"MODEL_FOLDER": "a", "MODEL_MANIFEST_SHA256": digest(source)}
    target = tmp_path / "local" / "current"
    ran = place(tmp_path / "models", target, **variables)
    assert (ran.returncode, target.exists()) == (1, False)
    assert "refused by its gate for thinking" in ran.stderr
    assert place(tmp_path / "models", target, **variables, CURT_ALLOW_REFUSED="1").returncode == 0


def test_the_demo_model_and_its_classifier_are_placed(tmp_path: Path) -> None:
    demo = ROOT / "artifacts" / "demo"
    if not (demo / "ort-w8a8" / "manifest.json").exists() or not (demo / "fallback").exists():
        pytest.skip("make demo has not been run")
    ran = place(
        demo, tmp_path / "current",
        MODEL_FOLDER="ort-w8a8", MODEL_MANIFEST_SHA256=digest(demo / "ort-w8a8"),
        FALLBACK_FOLDER="fallback", FALLBACK_MANIFEST_SHA256=digest(demo / "fallback"),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    from curt.artifact import load_manifest
    from curt.classifier.model import load_classifier

    assert load_manifest(tmp_path / "current").format == "ort-genai"
    assert load_classifier(tmp_path / "fallback")
