"""No document or script puts a secret on a command line, which every process can read, or into a URL."""

from __future__ import annotations

import re

import pytest

from fmnist_tasks.settings import PROJECT

FORBIDDEN = re.compile(
    r"""--conn-(password|uri|extra|json)            # airflow connections add
    |--(password|secret|token)[ =]                  # airflow users create, and others
    |(-e|--env)[ =]"?\w*(PASSWORD|SECRET|KEY|TOKEN)\w*=       # docker run with a value
    |\bPASSWORD\s+'                                 # SQL
    |\bredis-cli\b.*\s-a\s
    |\bcurl\b.*\s(-u|--user)\s
    |\bmc\s+alias\s+set\b
    |://[^\s/@:`"'<>]+:[^\s/@`"'<>]+@               # a URL with a password""",
    re.VERBOSE,
)


@pytest.mark.parametrize(
    "line",
    [
        'docker compose run --rm -e MINIO_ACCESS_KEY=pruner -e MINIO_SECRET_KEY="$(sed -n s/P=//p .env)" \\',
        "airflow connections add fmnist_store --conn-login USER --conn-password SECRET",
        """--conn-extra '{"config": [{"path": "slack://…"}]}'""",
        "run `ALTER ROLE airflow PASSWORD '…'` in it first",
        "airflow users reset-password --username admin --password secret",
        "redis-cli -h redis -a secret ping",
        "curl --user admin:secret http://127.0.0.1:8080/",
        "mc alias set fmnist http://127.0.0.1:9000 USER SECRET",
        "export FMNIST_STORE='s3://USER:SECRET@bucket'",
    ],
)
def test_a_line_that_shows_a_secret_is_detected(line: str) -> None:
    assert FORBIDDEN.search(line)


def test_no_document_or_script_shows_a_secret() -> None:
    files = [PROJECT / name for name in ("README.md", "Makefile", "CONTRIBUTING.md", "SECURITY.md", ".env.example")]
    files += [PROJECT / "docker-compose.yaml", *(PROJECT / "docs").rglob("*.md")]
    files += [file for file in (PROJECT / "include").rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert len(files) > 40
    lines = [
        f"{file.relative_to(PROJECT)}:{number}: {line}"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert lines == []
