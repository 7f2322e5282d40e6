"""What docker-compose.yml says, done with the real parts, on a PostgreSQL of the test's own."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import httpx
import pytest
import yaml

from tests.support.database import query, value
from tests.support.http_entries import accepted, checkpoint, flush, json_entry, post
from tests.support.own_postgres import OwnPostgres
from tests.support.service import Service

ROOT: Final = Path(__file__).parents[2]
SERVICES: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())[
    "services"
]
OWNER, SERVICE = "POSTGRES_PASSWORD", "POSTGRES_SERVICE_PASSWORD"
# The service's, one after the other.
PASSWORDS: Final = ('it\'s $1, "all" of \\it: 100 % @/', "another")
# `${NAME:?what to say when it is missing or empty}`
_REQUIRED: Final = re.compile(r"\$\{(\w+):\?[^}]+\}")
_OF_THE_IMAGE: Final = re.compile(r"^ +(JOURNAL_\w+)=(\S+)", re.MULTILINE)


class Project:
    """The compose project: its services' commands and environments, with the passwords in them."""

    def __init__(self, postgres: OwnPostgres, data_dir: Path, passwords: Mapping[str, str]) -> None:
        self.passwords = dict(passwords)
        self._postgres = postgres
        self._data_dir = data_dir
        environ = self.environ("postgres")
        self._owner, self._database = environ["POSTGRES_USER"], environ["POSTGRES_DB"]
        query(
            postgres.url,
            f"CREATE ROLE {self._owner} SUPERUSER LOGIN PASSWORD '{environ['POSTGRES_PASSWORD']}'",
        )
        query(postgres.url, f"CREATE DATABASE {self._database} OWNER {self._owner}")

    def environ(self, name: str) -> dict[str, str]:
        """What the container of a service has beyond its image's environment."""
        return {
            variable: _REQUIRED.sub(lambda match: self.passwords[match[1]], text)
            for variable, text in SERVICES[name]["environment"].items()
        }

    def service(self, name: str) -> Service:
        """A container of the journal's image, with the database where the test has it."""
        environ = dict(_OF_THE_IMAGE.findall((ROOT / "Dockerfile").read_text()))
        environ |= self.environ(name)
        variables = {key: environ.pop(key) for key in [*environ] if not key.startswith("JOURNAL_")}
        settings: dict[str, object] = {
            key.removeprefix("JOURNAL_"): text for key, text in environ.items()
        }
        assert settings.pop("DATA_DIR") == "/data"
        url = self._reachable(str(settings.pop("DATABASE_URL")))
        service = Service(self._data_dir, url, **settings)
        service.variables = variables
        return service

    def url_of(self, name: str) -> str:
        """How a service connects to its database, with its password."""
        environ = self.environ(name)
        url = self._reachable(environ["JOURNAL_DATABASE_URL"])
        return url.replace("@", f":{quote(environ['PGPASSWORD'], safe='')}@", 1)

    def _reachable(self, url: str) -> str:
        parts = urlsplit(url)
        assert (parts.hostname, parts.port) == ("postgres", 5432)
        query_of_socket = urlsplit(self._postgres.url).query
        return urlunsplit(parts._replace(netloc=f"{parts.username}@", query=query_of_socket))


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with OwnPostgres() as postgres:
        postgres.ask_for_passwords()
        passwords = {OWNER: "owner", SERVICE: PASSWORDS[0]}
        yield Project(postgres, tmp_path / "data", passwords)


def test_compose_migrates_as_the_owner_and_serves_as_a_role_that_adds_and_reads(
    project: Project,
) -> None:
    """`up`, and again beside the running service, with another password for it."""
    migrate(project)
    first = project.url_of("journal")
    with project.service("journal") as service, service.start(HOST="127.0.0.1").client() as client:
        journal_an_entry(client)
        project.passwords[SERVICE] = PASSWORDS[1]
        migrate(project)
        journal_an_entry(client)
    assert value(project.url_of("journal"), "SELECT count(*) FROM engine_commands") == 2
    with pytest.raises(asyncpg.InvalidPasswordError):
        query(first, "SELECT")
    owner = SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    for statement in (
        "DELETE FROM engine_commands",
        "UPDATE engine_commands SET command_data = ''",
        "TRUNCATE engine_commands",
        "DROP TABLE engine_commands",
        "CREATE TABLE mine ()",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        f"SET ROLE {owner}",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            query(project.url_of("journal"), statement)


def migrate(project: Project) -> None:
    """Run the service `migrate` to its end."""
    done = project.service("migrate").command(*SERVICES["migrate"]["command"])
    assert (done.returncode, done.stderr) == (0, "")


def journal_an_entry(client: httpx.Client) -> None:
    accepted(post(client, json_entry()))
    flush(client)
    assert checkpoint(client)["replication"] == "streaming"


def test_the_service_is_started_after_migrate_which_ends_and_is_run_by_every_up() -> None:
    assert SERVICES["journal"]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"}
    }
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES["migrate"]["build"] == SERVICES["journal"]["build"]
    assert SERVICES["journal"]["environment"]["JOURNAL_AUTO_MIGRATE"] == "false"


def test_each_container_has_the_passwords_that_it_needs_and_none_has_a_default() -> None:
    texts = {name: str(service.get("environment", {})) for name, service in SERVICES.items()}
    asked = {name: set(_REQUIRED.findall(text)) for name, text in texts.items()}
    assert asked == {
        "postgres": {OWNER},
        "migrate": {OWNER, SERVICE},
        "journal": {SERVICE},
        "prometheus": set(),
    }
    for name, text in texts.items():
        assert text.count("$") == len(_REQUIRED.findall(text)), name
    readme = (ROOT / "README.md").read_text()
    assert all(password in readme for password in (OWNER, SERVICE))
