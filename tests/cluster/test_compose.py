"""docker-compose.yaml, proven without containers: by the parser of `docker compose`, and by what it names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml

from fmnist_tasks.registry import provision
from fmnist_tasks.settings import INCLUDE, PROJECT, TASK_LIMIT
from tests.support.cluster.declaration import DeclarationError, read_services, read_settings
from tests.support.requirements import COMPOSE_PARSER, require

COMPOSE = PROJECT / "docker-compose.yaml"
DOCKERFILES = {
    name: (INCLUDE / "cluster" / f"{name}.Dockerfile").read_text() for name in ("airflow", "minio", "versity")
}
DECLARED = yaml.safe_load(COMPOSE.read_text())
SERVICES = DECLARED["services"]
JOBS = {"bucket", "database"}
UNDOCUMENTED = ("scheduler", "num_stuck_in_queued_retries")  # which Airflow reads all the same
STORES = {"postgres", "redis", "minio", "versity"}
OF_CONTAINERS = {"AIRFLOW_LISTEN", "WORKER_CPUS", "WORKER_MEMORY"}  # settings that processes ignore
OURS = SERVICES.keys() - STORES


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A .env as the README has people make it."""
    file = tmp_path_factory.mktemp("settings") / ".env"
    shutil.copy(PROJECT / ".env.example", file)
    subprocess.run([INCLUDE / "cluster" / "secrets", file], check=True)
    assert file.stat().st_mode & 0o077 == 0
    return read_settings(file)


@pytest.fixture(scope="session")
def parser(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """A command that prints what a compose file declares. To build it needs Go's modules, hence `integration`."""
    require(COMPOSE_PARSER)
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose", "--file", COMPOSE, "config", "--format", "json"]
    built = tmp_path_factory.mktemp("compose") / "compose"
    subprocess.run(["go", "build", "-o", built, "."], cwd=Path(__file__).parent / "compose", check=True)
    return [built, COMPOSE]


def parsed(parser: list[str | Path], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    needed = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(parser, env=needed | variables, capture_output=True, text=True)


@pytest.mark.integration
@pytest.mark.parametrize("store", ["minio", "versity"])
def test_the_parser_of_docker_compose_reads_what_make_cluster_reads(
    parser: list[str | Path], settings: dict[str, str], store: str
) -> None:
    settings = settings | {"STORE": store, "COMPOSE_PROFILES": store}
    answer = parsed(parser, settings)
    assert answer.returncode == 0, answer.stderr
    theirs = json.loads(answer.stdout)["services"]
    ours = read_services(COMPOSE, settings)
    assert set(theirs) == set(ours)
    assert {"minio", "versity"}.intersection(ours) == {store}
    assert f"http://{store}:9000" in ours["worker"].environment["FMNIST_STORE"]
    for name, service in ours.items():
        # `config` writes a dollar that stays one as two
        environment = {key: value.replace("$$", "$") for key, value in theirs[name]["environment"].items()}
        declared = read_settings(INCLUDE / "cluster" / "airflow.env") if name in OURS else {}
        assert declared | environment == service.environment
        assert set(theirs[name].get("depends_on", {})) & set(theirs) == set(service.needs)
        if name not in STORES:
            assert [word.replace("$$", "$") for word in theirs[name]["command"]] == list(service.command)
        kind, *words = theirs[name].get("healthcheck", {}).get("test", [""])
        words = [word.replace("$$", "$") for word in words]
        assert [*(["sh", "-c"] if kind == "CMD-SHELL" else []), *words] == list(service.health)


@pytest.mark.integration
@pytest.mark.parametrize("missing", sorted(read_settings(PROJECT / ".env.example")))
def test_without_a_setting_that_it_needs_nothing_starts(
    parser: list[str | Path], settings: dict[str, str], missing: str
) -> None:
    optional = missing.startswith("FMNIST_")
    without = settings | {missing: ""}
    assert (parsed(parser, without).returncode == 0) == optional
    if not optional and missing not in OF_CONTAINERS:
        with pytest.raises(DeclarationError, match=missing):
            read_services(COMPOSE, without)


def test_every_variable_has_its_place_in_the_example() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    assert used == set(read_settings(PROJECT / ".env.example"))


def test_no_secret_has_a_default() -> None:
    example = read_settings(PROJECT / ".env.example")
    secrets = {name for name in example if re.search("PASSWORD|SECRET|KEY|USER", name)}
    assert len(secrets) >= 16
    assert {example[name] for name in secrets} == {""}
    for name in secrets:
        assert set(re.findall(rf"\$\{{{name}\W+", COMPOSE.read_text())) == {f"${{{name}:?"}


def test_a_secret_that_is_there_stays(settings: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("ADMIN_PASSWORD=mine\nFERNET_KEY=\n# a word\nFMNIST_DATASET=\n")
    subprocess.run([INCLUDE / "cluster" / "secrets", file], check=True)
    lines = file.read_text().splitlines()
    assert (lines[0], *lines[2:]) == ("ADMIN_PASSWORD=mine", "# a word", "FMNIST_DATASET=")
    assert re.fullmatch(r"FERNET_KEY=[\w-]{43}=", lines[1])
    made = [value for name, value in settings.items() if re.search("PASSWORD|SECRET|KEY|USER", name)]
    assert len(set(made)) == len(made)  # no two are alike
    names = [settings["MINIO_ROOT_USER"], *(settings[f"{role.upper()}_ACCESS_KEY"] for role in provision.ROLES)]
    assert all(re.fullmatch(r"[\w-]{20}", name) for name in names)


def test_no_file_names_a_user_of_the_store() -> None:
    """Whoever knows the name of a user knows half of what is needed to be that user."""
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if re.search("ACCESS_KEY|ROOT_USER", name):
                assert re.fullmatch(r"\$\{\w+:\?make secrets\}", value), name
        logs = service["environment"].get("AIRFLOW_CONN_FMNIST_LOGS", '"login": "${LOGS_ACCESS_KEY:?make secrets}"')
        assert '"login": "${LOGS_ACCESS_KEY:?make secrets}"' in logs


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert service["restart"] == ("no" if name in JOBS else "unless-stopped")
    assert ("healthcheck" in service) == (name not in JOBS)
    assert all("condition" in need for need in service.get("depends_on", {}).values())
    assert service.get("ports", []) == (
        ["${AIRFLOW_LISTEN:?cp .env.example .env}:8080"] if name == "api-server" else []
    )


def test_nobody_is_root() -> None:
    for name in STORES - DOCKERFILES.keys():
        assert SERVICES[name]["user"] == name
    last = {name: re.findall(r"^USER (\w+)", text, re.MULTILINE)[-1] for name, text in DOCKERFILES.items()}
    assert last == {"airflow": "airflow", "minio": "nobody", "versity": "nobody"}


def test_the_stores_are_reached_from_inside_only_and_the_ui_from_this_machine() -> None:
    assert DECLARED["networks"]["stores"] == {"internal": True}
    for name in STORES | JOBS:
        assert SERVICES[name]["networks"] == ["stores"]
    assert read_settings(PROJECT / ".env.example")["AIRFLOW_LISTEN"].startswith("127.0.0.1:")


def test_what_it_names_is_there() -> None:
    named = {word for service in SERVICES.values() for word in service.get("command", [])}
    named |= {service["build"]["dockerfile"] for service in SERVICES.values() if "build" in service}
    named |= {file for service in SERVICES.values() for file in service.get("env_file", [])}
    files = {word for word in named if word.startswith("include/")}
    assert files == {
        f"include/cluster/{name}"
        for name in ("airflow.Dockerfile", "airflow.env", "migrate", "minio.Dockerfile", "versity.Dockerfile")
    }
    assert [file for file in files if not (PROJECT / file).exists()] == []


def test_the_image_gets_what_it_copies() -> None:
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", DOCKERFILES["airflow"], re.MULTILINE)
    sources = [word for line in copied for word in line.split()]
    kept = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) == kept
    assert all((PROJECT / source).exists() for source in sources)


def test_every_health_check_is_a_command_of_its_image() -> None:
    installed = {
        command.name for name in ("apache-airflow-core", "celery") for command in distribution(name).entry_points
    }
    assert {"airflow", "celery"} <= installed
    for name in DOCKERFILES:
        assert re.search(r"(install|add) .*\bcurl\b", DOCKERFILES[name])
    known = {"postgres": {"pg_isready"}, "redis": {"redis-cli"}, "minio": {"curl"}, "versity": {"curl"}}
    for name, service in SERVICES.items():
        if name not in JOBS:
            kind, *words = service["healthcheck"]["test"]
            command = words[0].split()[0] if kind == "CMD-SHELL" else words[0]
            assert command in known.get(name, {"curl", *installed})


def test_versions_are_those_of_the_lock() -> None:
    lock = (PROJECT / "requirements.txt").read_text()
    (locked,) = re.findall(r"^apache-airflow==(\S+)", lock, re.MULTILINE)
    assert f"FROM apache/airflow:slim-{locked}-python3." in DOCKERFILES["airflow"]


def test_the_images_of_stores_are_built_as_processes_are() -> None:
    """By the same script, which has the version, and for MinIO the filter."""
    for name in ("minio", "versity"):
        (copied,) = re.findall(r"^COPY include/servers (\S+)$", DOCKERFILES[name], re.MULTILINE)
        (target,) = re.findall(rf"^RUN {copied}/build-{name} (\S+)$", DOCKERFILES[name], re.MULTILINE)
        assert re.search(rf"^COPY --from=build {target} /usr/bin/{Path(target).name}$", DOCKERFILES[name], re.MULTILINE)
        assert f"include/servers/build-{name}" in (INCLUDE / name).read_text()
        assert (INCLUDE / "servers" / f"build-{name}").stat().st_mode & 0o111


def test_every_setting_of_airflow_is_one_that_airflow_has() -> None:
    from airflow.configuration import conf
    from airflow.jobs import scheduler_job_runner

    known = {section: options["options"].keys() for section, options in conf.configuration_description.items()}
    shared = read_settings(INCLUDE / "cluster" / "airflow.env")
    declared = {key for service in SERVICES.values() for key in service["environment"]}
    for name in {*shared, *(key for key in declared if key.startswith("AIRFLOW__"))}:
        _, section, option = name.lower().split("__")
        assert option in known[section] or (section, option) == UNDOCUMENTED, name
    assert f'key="{UNDOCUMENTED[1]}"' in Path(scheduler_job_runner.__file__).read_text()
    assert int(shared["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"]) > TASK_LIMIT.total_seconds()
