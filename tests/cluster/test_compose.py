"""docker-compose.yaml, proven without containers: by the parser of `docker compose`, and by what it names."""

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
UNDOCUMENTED = ("scheduler", "num_stuck_in_queued_retries")  # which Airflow reads all the same
STORES = {"postgres", "redis", "minio", "versity"}
OF_CONTAINERS = {
    "AIRFLOW_LISTEN",
    "IMAGE_TAG",
    "WORKERS",
    "WORKER_CPUS",
    "WORKER_MEMORY",
}  # settings that processes ignore
OURS = SERVICES.keys() - STORES
GUIDE = (PROJECT / "docs" / "operations.md").read_text()
SECRET = re.compile(r"\w+_(PASSWORD|KEY|SECRET)|MINIO_ROOT_USER|FMNIST_HEARTBEAT_URL")  # the names of secrets in .env


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
    """A command that prints what compose files declare. To build it needs Go's modules, hence `integration`."""
    require(COMPOSE_PARSER)
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose", "config", "--format", "json"]
    built = tmp_path_factory.mktemp("compose") / "compose"
    subprocess.run(["go", "build", "-o", built, "."], cwd=Path(__file__).parent / "compose", check=True)
    return [built]


def parsed(parser: list[str | Path], variables: dict[str, str], *more: Path) -> subprocess.CompletedProcess[str]:
    needed = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    files = {"COMPOSE_FILE": os.pathsep.join(map(str, [COMPOSE, *more]))}
    return subprocess.run(parser, env=needed | files | variables, capture_output=True, text=True)


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
    optional = missing.startswith("FMNIST_") or missing == "AIRFLOW_PATH"
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
    secrets = {name for name in example if SECRET.fullmatch(name)}
    assert len(secrets) >= 16
    assert {example[name] for name in secrets} == {""}
    for name in secrets:
        operator = ":-" if name.startswith("FMNIST_") else ":?"  # the line's own are optional
        assert set(re.findall(rf"(?<!\$)\$\{{{name}\b(:\W)", COMPOSE.read_text())) == {operator}


def test_a_secret_that_is_there_stays(settings: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("ADMIN_PASSWORD=mine\nFERNET_KEY=\n# a word\nFMNIST_DATASET=\nFMNIST_SIGNING_KEY=\n")
    subprocess.run([INCLUDE / "cluster" / "secrets", file], check=True)
    lines = file.read_text().splitlines()[:5]
    assert (lines[0], *lines[2:]) == ("ADMIN_PASSWORD=mine", "# a word", "FMNIST_DATASET=", "FMNIST_SIGNING_KEY=")
    assert re.fullmatch(r"FERNET_KEY=[\w-]{43}=", lines[1])
    made = [value for name, value in settings.items() if SECRET.fullmatch(name) and not name.startswith("FMNIST_")]
    assert len(set(made)) == len(made)  # no two are alike
    names = [settings["MINIO_ROOT_USER"], *(settings[f"{role.upper()}_ACCESS_KEY"] for role in provision.ROLES)]
    assert all(re.fullmatch(r"[\w-]{20}", name) for name in names)


def test_a_file_of_an_earlier_version_gets_the_lines_that_it_lacks(settings: dict[str, str], tmp_path: Path) -> None:
    """Even from an editor of Windows, whose line ends would become part of each value."""
    file = tmp_path / ".env"
    earlier = {name: value for name, value in settings.items() if name not in {"LOG_KEY", "STORE"}}
    file.write_bytes("".join(f"{name}={value}\r\n" for name, value in earlier.items()).encode())
    secrets = [INCLUDE / "cluster" / "secrets", file]
    said = subprocess.run(secrets, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    assert said == [
        f"{file}: added, as in .env.example: STORE LOG_KEY",
        f"{file}: generated 1 secret(s), kept the others",
    ]
    completed = read_settings(file)
    assert re.fullmatch(r"[\w-]{86}==", completed.pop("LOG_KEY"))
    assert completed == {**earlier, "STORE": "minio"}


def test_a_link_stays_a_link_and_a_blank_is_no_secret(tmp_path: Path) -> None:
    kept, file = tmp_path / "kept", tmp_path / ".env"
    kept.write_text('ADMIN_PASSWORD= \nFERNET_KEY=""\n')
    file.symlink_to(kept)
    subprocess.run([INCLUDE / "cluster" / "secrets", file], check=True)
    assert file.is_symlink()
    assert all(len(read_settings(kept)[name]) > 40 for name in ("ADMIN_PASSWORD", "FERNET_KEY"))
    assert sorted(tmp_path.iterdir()) == [file, kept]


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
    assert read_settings(PROJECT / ".env.example")["AIRFLOW_LISTEN"].startswith("127.0.0.1:")


def read_guide() -> dict[str, dict[str, set[str]]]:
    """What docs/operations.md says of each service, by the table's columns."""
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


def read_declared(service: dict[str, Any]) -> dict[str, set[str]]:
    """The same as the Compose file has it."""
    variables = re.findall(r"\$\{(\w+)", " ".join(map(str, service["environment"].values())))
    mounts = [mount.split(":") for mount in service.get("volumes", []) if not mount.endswith(":ro")]
    return {
        "secrets": {name for name in variables if SECRET.fullmatch(name)},
        "networks": set(service["networks"]),
        "paths": {mount[1] for mount in mounts} | {path.split(":")[0] for path in service.get("tmpfs", [])},
    }


def test_each_service_has_the_secrets_networks_and_paths_of_the_guide_and_no_other() -> None:
    assert read_guide() == {name: read_declared(service) for name, service in SERVICES.items()}


def test_a_worker_has_no_key_of_airflow_and_no_way_to_its_tables() -> None:
    """Whatever the guide says: who holds one of these is administrator of Airflow, or of Postgres."""
    holders = {name: read_declared(service)["secrets"] for name, service in SERVICES.items()}
    own = {"METADATA_PASSWORD", "POSTGRES_PASSWORD", "JWT_SECRET", "FERNET_KEY", "SESSION_KEY", "ADMIN_PASSWORD"}
    assert not holders["worker"] & own
    assert "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" not in SERVICES["worker"]["environment"]
    assert {name for name, secrets in holders.items() if "POSTGRES_PASSWORD" in secrets} == {"postgres", "roles"}
    signing = {name for name, secrets in holders.items() if "FMNIST_SIGNING_KEY" in secrets}
    assert signing == {"worker", "api-server"}


def test_no_secret_is_in_an_address_or_on_a_command_line() -> None:
    for service in SERVICES.values():
        words = [*service.get("command", []), *service.get("healthcheck", {}).get("test", [])]
        assert not {name for name in re.findall(r"(?<!\$)\$\{(\w+)", " ".join(words)) if SECRET.fullmatch(name)}
        addresses = re.findall(r"://[^/\s]*", " ".join(map(str, service["environment"].values())))
        assert set(re.findall(r"\$\{(\w+)", " ".join(addresses))) <= {"AIRFLOW_PATH", "STORE"}


def test_what_lies_in_memory_is_limited_and_no_volume_is_anonymous() -> None:
    for service in SERVICES.values():
        assert [mount for mount in service.get("volumes", []) if ":" not in mount] == []
        assert [path for path in service.get("tmpfs", []) if ":size=" not in path] == []
    named = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert named == {*DECLARED["volumes"], "./config"}


def test_an_image_is_named_after_its_version() -> None:
    (version,) = re.findall(r'^version = "(\S+)"', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    assert read_settings(PROJECT / ".env.example")["IMAGE_TAG"] == version
    images = {SERVICES[name]["image"] for name in OURS}
    assert images == {"fmnist-airflow:${IMAGE_TAG:?cp .env.example .env}"}


@pytest.mark.integration
def test_secrets_of_the_guide_are_parsed_and_read_from_files(
    parser: list[str | Path], settings: dict[str, str], tmp_path: Path
) -> None:
    (example,) = re.findall(r"^```yaml\n(# docker-compose\.override\.yaml\n.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    override = tmp_path / "docker-compose.override.yaml"
    override.write_text(example)
    answer = parsed(parser, settings, override)
    assert answer.returncode == 0, answer.stderr
    services = json.loads(answer.stdout)["services"]
    (tmp_path / "publisher").write_text("secret of the file\n")
    worker = {
        name: value.replace("/run/secrets", str(tmp_path)) for name, value in services["worker"]["environment"].items()
    }
    assert read_secret("MINIO_SECRET_KEY", worker) == "secret of the file"
    assert "AIRFLOW__CORE__FERNET_KEY" not in services["api-server"]["environment"]
    names = {"publisher": "PUBLISHER_PASSWORD", "fernet": "FERNET_KEY", "metadata": "METADATA_PASSWORD"}
    for secret, name in names.items():
        (holder,) = (one for one in services.values() if secret in {file["source"] for file in one.get("secrets", [])})
        assert settings[name] not in holder["environment"].values()


def test_what_it_names_is_there() -> None:
    named = {word for service in SERVICES.values() for word in service.get("command", [])}
    named |= {service["build"]["dockerfile"] for service in SERVICES.values() if "build" in service}
    named |= {file for service in SERVICES.values() for file in service.get("env_file", [])}
    files = {word for word in named if word.startswith("include/")}
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
            commands = {words[0], *(words[0].split() if kind == "CMD-SHELL" else [])}
            assert commands & known.get(name, {"curl", *installed})


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
