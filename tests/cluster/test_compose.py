"""docker-compose.yaml, checked without containers: with the parser of `docker compose`, and against other files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmnist_tasks.credentials import read_secret
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
JOBS = {"bucket", "roles", "database"}
UNDOCUMENTED = ("scheduler", "num_stuck_in_queued_retries")  # Airflow reads it but does not document it
STORES = {"postgres", "redis", "minio", "versity"}
CONTAINER_SETTINGS = {  # not used by services without containers
    "AIRFLOW_LISTEN",
    "IMAGE_TAG",
    "WORKERS",
    "WORKER_CPUS",
    "WORKER_MEMORY",
}
AIRFLOW_SERVICES = SERVICES.keys() - STORES
GUIDE = (PROJECT / "docs" / "deploy.md").read_text()
SECRET = re.compile(r"\w+_(PASSWORD|KEY|SECRET)|MINIO_ROOT_USER|FMNIST_HEARTBEAT_URL")  # names of secrets in .env


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings of a new .env, created as in the README."""
    file = tmp_path_factory.mktemp("settings") / ".env"
    shutil.copy(PROJECT / ".env.example", file)
    subprocess.run([INCLUDE / "cluster" / "secrets", file], check=True)
    assert file.stat().st_mode & 0o077 == 0
    return read_settings(file)


@pytest.fixture(scope="session")
def parser(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """A command that prints Compose files as JSON. Tests that use it are `integration`: it may need Go's modules."""
    require(COMPOSE_PARSER)
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose", "config", "--format", "json"]
    program = tmp_path_factory.mktemp("compose") / "compose"
    subprocess.run(["go", "build", "-o", program, "."], cwd=Path(__file__).parent / "compose", check=True)
    return [program]


def parse(parser: list[str | Path], variables: dict[str, str], *overrides: Path) -> subprocess.CompletedProcess[str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    files = {"COMPOSE_FILE": os.pathsep.join(map(str, [COMPOSE, *overrides]))}
    return subprocess.run(parser, env=inherited | files | variables, capture_output=True, text=True)


@pytest.mark.integration
@pytest.mark.parametrize("store", ["minio", "versity"])
def test_make_cluster_reads_the_compose_file_like_docker_compose(
    parser: list[str | Path], settings: dict[str, str], store: str
) -> None:
    settings = settings | {"STORE": store, "COMPOSE_PROFILES": store}
    result = parse(parser, settings)
    assert result.returncode == 0, result.stderr
    expected = json.loads(result.stdout)["services"]
    services = read_services(COMPOSE, settings)
    assert set(expected) == set(services)
    assert {"minio", "versity"}.intersection(services) == {store}
    assert f"http://{store}:9000" in services["worker"].environment["FMNIST_STORE"]
    for name, service in services.items():
        # `config` writes a literal dollar sign as two
        environment = {key: value.replace("$$", "$") for key, value in expected[name]["environment"].items()}
        from_file = read_settings(INCLUDE / "cluster" / "airflow.env") if name in AIRFLOW_SERVICES else {}
        assert from_file | environment == service.environment
        assert set(expected[name].get("depends_on", {})) & set(expected) == set(service.needs)
        if name not in STORES:
            assert [word.replace("$$", "$") for word in expected[name]["command"]] == list(service.command)
        kind, *words = expected[name].get("healthcheck", {}).get("test", [""])
        words = [word.replace("$$", "$") for word in words]
        assert [*(["sh", "-c"] if kind == "CMD-SHELL" else []), *words] == list(service.health)


@pytest.mark.integration
@pytest.mark.parametrize("missing", sorted(read_settings(PROJECT / ".env.example")))
def test_nothing_starts_if_a_required_setting_is_missing(
    parser: list[str | Path], settings: dict[str, str], missing: str
) -> None:
    optional = missing.startswith("FMNIST_") or missing == "AIRFLOW_PATH"
    incomplete = settings | {missing: ""}
    assert (parse(parser, incomplete).returncode == 0) == optional
    if not optional and missing not in CONTAINER_SETTINGS:
        with pytest.raises(DeclarationError, match=missing):
            read_services(COMPOSE, incomplete)


def test_every_variable_is_in_the_example() -> None:
    variables = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    assert variables == set(read_settings(PROJECT / ".env.example"))


def test_no_secret_has_a_default() -> None:
    example = read_settings(PROJECT / ".env.example")
    secrets = {name for name in example if SECRET.fullmatch(name)}
    assert len(secrets) >= 16
    assert {example[name] for name in secrets} == {""}
    for name in secrets:
        operator = ":-" if name.startswith("FMNIST_") else ":?"  # those of the pipeline are optional
        assert set(re.findall(rf"(?<!\$)\$\{{{name}\b(:\W)", COMPOSE.read_text())) == {operator}


def test_make_secrets_keeps_an_existing_secret(settings: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("ADMIN_PASSWORD=mine\nFERNET_KEY=\n# comment\nFMNIST_DATASET=\nFMNIST_SIGNING_KEY=\n")
    subprocess.run([INCLUDE / "cluster" / "secrets", file], check=True)
    lines = file.read_text().splitlines()[:5]
    assert (lines[0], *lines[2:]) == ("ADMIN_PASSWORD=mine", "# comment", "FMNIST_DATASET=", "FMNIST_SIGNING_KEY=")
    assert re.fullmatch(r"FERNET_KEY=[\w-]{43}=", lines[1])
    generated = [value for name, value in settings.items() if SECRET.fullmatch(name) and not name.startswith("FMNIST_")]
    assert len(set(generated)) == len(generated)
    names = [settings["MINIO_ROOT_USER"], *(settings[f"{role.upper()}_ACCESS_KEY"] for role in provision.ROLES)]
    assert all(re.fullmatch(r"[\w-]{20}", name) for name in names)


def test_make_secrets_adds_missing_lines_to_an_env_file_of_an_earlier_version(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """The file has Windows line endings, which must not become part of the values."""
    file = tmp_path / ".env"
    earlier = {name: value for name, value in settings.items() if name not in {"LOG_KEY", "STORE"}}
    file.write_bytes("".join(f"{name}={value}\r\n" for name, value in earlier.items()).encode())
    command = [INCLUDE / "cluster" / "secrets", file]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    assert output == [
        f"{file}: added from .env.example: STORE LOG_KEY",
        f"{file}: generated 1 secret(s); existing values did not change",
    ]
    completed = read_settings(file)
    assert re.fullmatch(r"[\w-]{86}==", completed.pop("LOG_KEY"))
    assert completed == {**earlier, "STORE": "minio"}


def test_make_secrets_follows_a_link_and_replaces_blank_values(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / ".env"
    target.write_text('ADMIN_PASSWORD= \nFERNET_KEY=""\n')
    link.symlink_to(target)
    subprocess.run([INCLUDE / "cluster" / "secrets", link], check=True)
    assert link.is_symlink()
    assert all(len(read_settings(target)[name]) > 40 for name in ("ADMIN_PASSWORD", "FERNET_KEY"))
    assert sorted(tmp_path.iterdir()) == [link, target]


def test_names_of_store_users_are_generated_and_in_no_file() -> None:
    """A known name is half of the credentials."""
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


def test_no_container_runs_as_root() -> None:
    for name in STORES - DOCKERFILES.keys():
        assert SERVICES[name]["user"] == name
    last = {name: re.findall(r"^USER (\w+)", text, re.MULTILINE)[-1] for name, text in DOCKERFILES.items()}
    assert last == {"airflow": "airflow", "minio": "nobody", "versity": "nobody"}


def test_stores_are_reachable_only_from_inside_and_the_ui_only_from_this_machine() -> None:
    assert DECLARED["networks"]["stores"] == {"internal": True}
    assert read_settings(PROJECT / ".env.example")["AIRFLOW_LISTEN"].startswith("127.0.0.1:")


def read_guide() -> dict[str, dict[str, set[str]]]:
    """Secrets, networks and writable paths of each service, from the table in docs/deploy.md."""
    (table,) = re.findall(r"(?:^\| service \| secrets \|.*\n)(?:^\|-.*\n)((?:^\|.*\n)+)", GUIDE, re.MULTILINE)
    rows = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in table.splitlines()]
    return {
        name: {
            "secrets": set(re.findall(r"\w+", secrets)),
            "networks": set(networks.split(", ")),
            "paths": set(re.findall(r"/[\w/]+", paths)),
        }
        for name, secrets, networks, paths, _ in rows
    }


def read_access(service: dict[str, Any]) -> dict[str, set[str]]:
    """Secrets, networks and writable paths of a service, from the Compose file."""
    variables = re.findall(r"\$\{(\w+)", " ".join(map(str, service["environment"].values())))
    mounts = [mount.split(":") for mount in service.get("volumes", []) if not mount.endswith(":ro")]
    return {
        "secrets": {name for name in variables if SECRET.fullmatch(name)},
        "networks": set(service["networks"]),
        "paths": {mount[1] for mount in mounts} | {path.split(":")[0] for path in service.get("tmpfs", [])},
    }


def test_each_service_has_exactly_the_secrets_networks_and_paths_of_the_guide() -> None:
    assert read_guide() == {name: read_access(service) for name, service in SERVICES.items()}


def test_a_worker_has_no_key_of_airflow_and_no_access_to_its_tables() -> None:
    """Independent of the guide: any of these keys makes its holder an administrator of Airflow or of Postgres."""
    secrets = {name: read_access(service)["secrets"] for name, service in SERVICES.items()}
    admin_secrets = {
        "METADATA_PASSWORD",
        "POSTGRES_PASSWORD",
        "JWT_SECRET",
        "FERNET_KEY",
        "SESSION_KEY",
        "ADMIN_PASSWORD",
    }
    assert not secrets["worker"] & admin_secrets
    assert "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" not in SERVICES["worker"]["environment"]
    assert {name for name in secrets if "POSTGRES_PASSWORD" in secrets[name]} == {"postgres", "roles"}
    assert {name for name in secrets if "FMNIST_SIGNING_KEY" in secrets[name]} == {"worker", "api-server"}


def test_no_secret_is_in_an_address_or_on_a_command_line() -> None:
    for service in SERVICES.values():
        words = [*service.get("command", []), *service.get("healthcheck", {}).get("test", [])]
        assert not {name for name in re.findall(r"(?<!\$)\$\{(\w+)", " ".join(words)) if SECRET.fullmatch(name)}
        addresses = re.findall(r"://[^/\s]*", " ".join(map(str, service["environment"].values())))
        assert set(re.findall(r"\$\{(\w+)", " ".join(addresses))) <= {"AIRFLOW_PATH", "STORE"}


def test_memory_file_systems_are_limited_and_no_volume_is_anonymous() -> None:
    for service in SERVICES.values():
        assert [mount for mount in service.get("volumes", []) if ":" not in mount] == []
        assert [path for path in service.get("tmpfs", []) if ":size=" not in path] == []
    volumes = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert volumes == {*DECLARED["volumes"], "./config"}


def test_an_image_is_named_after_its_version() -> None:
    (version,) = re.findall(r'^version = "(\S+)"', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    assert read_settings(PROJECT / ".env.example")["IMAGE_TAG"] == version
    images = {SERVICES[name]["image"] for name in AIRFLOW_SERVICES}
    assert images == {"fmnist-airflow:${IMAGE_TAG:?cp .env.example .env}"}


@pytest.mark.integration
def test_the_example_with_secret_files_in_the_guide_is_valid(
    parser: list[str | Path], settings: dict[str, str], tmp_path: Path
) -> None:
    (example,) = re.findall(r"^```yaml\n(# docker-compose\.override\.yaml\n.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    override = tmp_path / "docker-compose.override.yaml"
    override.write_text(example)
    result = parse(parser, settings, override)
    assert result.returncode == 0, result.stderr
    services = json.loads(result.stdout)["services"]
    (tmp_path / "publisher").write_text("secret of the file\n")
    worker = {
        name: value.replace("/run/secrets", str(tmp_path)) for name, value in services["worker"]["environment"].items()
    }
    assert read_secret("MINIO_SECRET_KEY", worker) == "secret of the file"
    assert "AIRFLOW__CORE__FERNET_KEY" not in services["api-server"]["environment"]
    names = {"publisher": "PUBLISHER_PASSWORD", "fernet": "FERNET_KEY", "metadata": "METADATA_PASSWORD"}
    for secret, name in names.items():
        (holder,) = (
            service
            for service in services.values()
            if secret in {file["source"] for file in service.get("secrets", [])}
        )
        assert settings[name] not in holder["environment"].values()


def test_every_file_in_the_compose_file_exists() -> None:
    words = {word for service in SERVICES.values() for word in service.get("command", [])}
    words |= {service["build"]["dockerfile"] for service in SERVICES.values() if "build" in service}
    words |= {file for service in SERVICES.values() for file in service.get("env_file", [])}
    files = {word for word in words if word.startswith("include/")}
    assert files == {
        f"include/cluster/{name}"
        for name in (
            "airflow.Dockerfile",
            "airflow.env",
            "migrate",
            "minio.Dockerfile",
            "roles.py",
            "versity.Dockerfile",
        )
    }
    assert [file for file in files if not (PROJECT / file).exists()] == []


def test_the_build_context_has_exactly_what_the_image_copies() -> None:
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", DOCKERFILES["airflow"], re.MULTILINE)
    sources = [word for line in copied for word in line.split()]
    included = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) == included
    assert all((PROJECT / source).exists() for source in sources)


def test_every_health_check_is_a_command_of_its_image() -> None:
    installed = {
        command.name for name in ("apache-airflow-core", "celery") for command in distribution(name).entry_points
    }
    assert {"airflow", "celery"} <= installed
    for name in DOCKERFILES:
        assert re.search(r"(install|add) .*\bcurl\b", DOCKERFILES[name])
    store_commands = {"postgres": {"pg_isready"}, "redis": {"redis-cli"}, "minio": {"curl"}, "versity": {"curl"}}
    for name, service in SERVICES.items():
        if name not in JOBS:
            kind, *words = service["healthcheck"]["test"]
            commands = {words[0], *(words[0].split() if kind == "CMD-SHELL" else [])}
            assert commands & store_commands.get(name, {"curl", *installed})


def test_the_version_of_airflow_is_that_of_the_lock_file() -> None:
    lock = (PROJECT / "requirements.txt").read_text()
    (locked,) = re.findall(r"^apache-airflow==(\S+)", lock, re.MULTILINE)
    assert f"FROM apache/airflow:slim-{locked}-python3." in DOCKERFILES["airflow"]


def test_images_of_stores_use_the_same_build_scripts_as_stores_without_containers() -> None:
    """These scripts pin the version, and add the filter to MinIO."""
    for name in ("minio", "versity"):
        (copied,) = re.findall(r"^COPY include/servers (\S+)$", DOCKERFILES[name], re.MULTILINE)
        (target,) = re.findall(rf"^RUN {copied}/build-{name} (\S+)$", DOCKERFILES[name], re.MULTILINE)
        assert re.search(rf"^COPY --from=build {target} /usr/bin/{Path(target).name}$", DOCKERFILES[name], re.MULTILINE)
        assert f"include/servers/build-{name}" in (INCLUDE / name).read_text()
        assert (INCLUDE / "servers" / f"build-{name}").stat().st_mode & 0o111


def test_airflow_knows_every_setting() -> None:
    from airflow.configuration import conf
    from airflow.jobs import scheduler_job_runner

    documented = {section: options["options"].keys() for section, options in conf.configuration_description.items()}
    shared = read_settings(INCLUDE / "cluster" / "airflow.env")
    declared = {key for service in SERVICES.values() for key in service["environment"]}
    for name in {*shared, *(key for key in declared if key.startswith("AIRFLOW__"))}:
        _, section, option = name.lower().split("__")
        assert option in documented[section] or (section, option) == UNDOCUMENTED, name
    assert f'key="{UNDOCUMENTED[1]}"' in Path(scheduler_job_runner.__file__).read_text()
    assert int(shared["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"]) > TASK_LIMIT.total_seconds()
