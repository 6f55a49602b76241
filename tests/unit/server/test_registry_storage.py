"""The registry as a database: migrations, modes, and all that can be wrong with the storage."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from qvpn_core.auth.device_key import key_id
from qvpn_core.errors import QvpnError, UsageError
from qvpn_server.credentials import token_hash
from qvpn_server.pool import Pool
from qvpn_server.registry import Registry, RegistryUnavailable
from qvpn_server.registry.database import REVISIONS, Database
from qvpn_server.registry.migrations.run import HERE
from qvpn_server.registry.schema import metadata

NOW = 1_800_000_000
OLD = Path(__file__).parent / "data" / "registry-before-0002.sql"
POOL4 = Pool(ip_network("10.86.0.0/16"))
POOL6 = Pool(ip_network("fd00:86::/64"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite3"


@pytest.fixture
def made(path: Path, migrated_file: bytes) -> Path:
    """A registry that exists."""
    path.write_bytes(migrated_file)
    return path


def old_registry(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(OLD.read_text())


class TestMigrations:
    def test_an_old_registry_keeps_devices_tokens_and_leases(self, path: Path) -> None:
        old_registry(path)
        with Registry.open(path) as registry:
            alice, bob, carol = registry.devices()
            assert (alice.name, alice.created, alice.revoked) == ("alice", 1700000000, None)
            assert [str(address) for address in alice.addresses] == ["10.86.0.2", "fd00:86::2"]
            assert [str(address) for address in carol.addresses] == ["10.86.0.4"]
            assert bob.revoked == 1700000009
            assert registry.device_by_token(b"a" * 32) == alice
            assert registry.device_by_token(b"b" * 32) is None
            assert {device.groups for device in (alice, bob, carol)} == {("everyone",)}
            assert registry.lease(alice, [POOL4, POOL6]) == alice.addresses
            dave = registry.add_device("dave", token_hash("d"), NOW)
            assert dave.id not in (alice.id, bob.id, carol.id)

    def test_the_old_program_refuses_the_new_registry(self, path: Path) -> None:
        old_registry(path)
        Registry.open(path).close()
        with closing(sqlite3.connect(path)) as database:
            # That is what it compares with the number of schema changes it knows: 1.
            assert database.execute("PRAGMA user_version").fetchone() == (2,)

    def test_a_registry_from_before_services_keeps_its_groups(self, made: Path) -> None:
        with closing(sqlite3.connect(made)) as database:
            database.executescript(
                "ALTER TABLE groups DROP COLUMN services;"
                "UPDATE alembic_version SET version_num = '0002';"
                "INSERT INTO groups (name, dns) VALUES ('staff', '[\"10.1.0.53\"]');"
            )
        with Registry.open(made) as registry:
            everyone, staff = registry.groups()
        assert (everyone.name, everyone.policy.services) == ("everyone", None)
        assert [str(server) for server in staff.policy.dns or ()] == ["10.1.0.53"]
        assert staff.policy.services is None

    def test_the_tables_are_those_that_the_program_works_with(self, where: Path | str) -> None:
        database = Database.open(where)
        with closing(database), database.transaction() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, metadata) == []

    def test_the_migrations_are_those_that_the_program_names(self) -> None:
        scripts = ScriptDirectory(str(HERE))
        walked = [script.revision for script in scripts.walk_revisions()]
        assert tuple(reversed(walked)) == REVISIONS

    def test_an_empty_postgresql_database_becomes_a_registry(self, empty_postgres: str) -> None:
        with Registry.open(empty_postgres) as registry:
            assert registry.shared
            assert [group.name for group in registry.groups()] == ["everyone"]

    def test_a_registry_of_a_newer_version_is_refused(self, made: Path) -> None:
        with closing(sqlite3.connect(made)) as database:
            database.execute("UPDATE alembic_version SET version_num = '9999'")
            database.commit()
        with pytest.raises(RegistryUnavailable, match="newer qvpn-server"):
            Registry.open(made)

    def test_two_that_open_an_old_registry_at_once(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "qvpn_server.registry.database._BUSY_TIMEOUT", 30.0
        )  # for a disk that is slow
        old_registry(path)
        failures: list[Exception] = []

        def work() -> None:
            try:
                with Registry.open(path) as registry:
                    assert len(registry.devices()) == 3
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []

    def test_alembic_is_only_imported_when_a_migration_is_due(self, made: Path) -> None:
        program = (
            "import sys, pathlib\n"
            "from qvpn_server.registry import Registry\n"
            "Registry.open(pathlib.Path(sys.argv[1])).close()\n"
            "print('alembic' in sys.modules, 'psycopg' in sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", program, made], capture_output=True, text=True)
        assert done.stdout == "False False\n", done.stderr


class TestFile:
    def test_only_the_owner_reads_it(self, path: Path) -> None:
        with Registry.open(path) as registry:
            registry.add_device("alice", b"1" * 32, NOW)
            for file in path.parent.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file

    def test_the_token_is_not_in_it(self, path: Path) -> None:
        token = "0123456789abcdef" * 4
        with Registry.open(path) as registry:
            registry.add_device("alice", token_hash(token), NOW)
        assert token.encode() not in path.read_bytes()

    def test_after_a_change_of_pools_only_the_leases_outside_move(self, made: Path) -> None:
        with Registry.open(made) as registry:
            alice = registry.add_device("alice", b"a" * 32, NOW)
            bob = registry.add_device("bob", b"b" * 32, NOW)
            for device in (alice, bob):
                registry.lease(device, [POOL4, POOL6])
            other4 = Pool(ip_network("10.99.0.0/24"))
            assert [str(a) for a in registry.lease(bob, [other4, POOL6])] == [
                "10.99.0.2",
                "fd00:86::3",
            ]
            assert [str(a) for a in registry.devices()[1].addresses] == ["10.99.0.2", "fd00:86::3"]

    def test_a_file_that_is_no_registry_is_not_touched(self, path: Path) -> None:
        path.write_bytes(b"something else entirely, " * 50)
        with pytest.raises(RegistryUnavailable, match="not a database") as refused:
            Registry.open(path)
        assert_one_line(refused.value, str(path))
        assert path.read_bytes().startswith(b"something else")

    def test_a_registry_that_is_damaged_inside(self, made: Path) -> None:
        with made.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (made.stat().st_size - 4096))
        with pytest.raises(RegistryUnavailable, match="cannot use the registry") as refused:
            with Registry.open(made) as registry:
                registry.devices()
        assert_one_line(refused.value, str(made))

    def test_a_missing_directory(self, tmp_path: Path) -> None:
        with pytest.raises(RegistryUnavailable, match="check the state directory") as refused:
            Registry.open(tmp_path / "none" / "registry.sqlite3")
        assert_one_line(refused.value)

    def test_another_program_that_holds_it(self, made: Path) -> None:
        with Registry.open(made) as registry, closing(sqlite3.connect(made)) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            with pytest.raises(RegistryUnavailable, match="locked") as refused:
                registry.add_device("alice", b"a" * 32, NOW)
            assert time.monotonic() - began < 10, "the gateway's packets wait meanwhile"
            assert_one_line(refused.value, "try again")
            assert registry.devices() == [], "readers do not wait"
            other.rollback()
            registry.add_device("alice", b"a" * 32, NOW)

    def test_no_room_for_another_page(self, made: Path) -> None:
        with Registry.open(made) as registry:
            alice = registry.add_device("alice", b"a" * 32, NOW)
            fill_up(registry)
            with pytest.raises(RegistryUnavailable, match="full") as refused:
                add_many(registry)
            assert_one_line(refused.value, "free space")
            assert registry.device_by_token(b"a" * 32) == alice

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
    def test_somebody_who_may_only_read(self, made: Path) -> None:
        made.chmod(0o444)
        for parent in made.parents[:-2]:
            parent.chmod(0o755)
        program = (
            "import os, sys, pathlib, sqlite3, sqlalchemy.dialects.sqlite\n"
            "from qvpn_server.registry import Registry\n"
            "os.setgroups([]); os.setresgid(65534, 65534, 65534)\n"
            "os.setresuid(65534, 65534, 65534)\n"
            "try:\n"
            "    with Registry.open(pathlib.Path(sys.argv[1])) as r:\n"
            "        r.add_device('a', b'a' * 32, 1)\n"
            "except Exception as error:\n"
            "    print(type(error).__name__, error)\n"
        )
        done = subprocess.run([sys.executable, "-c", program, made], capture_output=True, text=True)
        assert done.stdout.startswith("RegistryUnavailable cannot use the registry"), done.stderr
        assert "readonly" in done.stdout or "unable to open" in done.stdout
        assert "owner and permissions" in done.stdout


class TestServer:
    def test_a_password_is_not_shown(self, tmp_path: Path) -> None:
        url = f"postgresql+psycopg://user:geheim@/registry?host={tmp_path}"
        with pytest.raises(RegistryUnavailable, match="cannot use the registry") as refused:
            Registry.open(url)
        assert_one_line(refused.value, "PostgreSQL runs")
        assert "geheim" not in str(refused.value)

    @pytest.mark.parametrize("url", ["", "nonsense", "mysql://x/y", "postgresql+psycopg://h:x/y"])
    def test_a_url_that_is_none(self, url: str) -> None:
        with pytest.raises(UsageError, match="not the URL of a registry"):
            Registry.open(url)

    def test_a_database_that_does_not_exist(self, postgres_server: str) -> None:
        with pytest.raises(RegistryUnavailable, match="does not exist") as refused:
            Registry.open(postgres_server.format("nowhere"))
        assert_one_line(refused.value)

    def test_another_writer_is_waited_for_and_no_longer_than_bearable(
        self, postgres_url: str
    ) -> None:
        holder = Database.open(postgres_url)
        with Registry.open(postgres_url) as registry, closing(holder):
            with holder.transaction(write=True):
                with pytest.raises(RegistryUnavailable, match="timeout") as refused:
                    registry.add_device("alice", b"a" * 32, NOW)
                assert_one_line(refused.value)
            registry.add_device("alice", b"a" * 32, NOW)

    def test_gateways_with_blocks_of_their_own_each_lease_one(self, postgres_url: str) -> None:
        here, there = Pool(ip_network("10.1.0.0/24")), Pool(ip_network("10.2.0.0/24"))
        with Registry.open(postgres_url) as registry:
            alice = registry.add_device("alice", b"a" * 32, NOW)
            for _ in range(2):
                assert [str(a) for a in registry.lease(alice, [here])] == ["10.1.0.2"]
                assert [str(a) for a in registry.lease(alice, [there])] == ["10.2.0.2"]

    def test_a_server_that_was_restarted_is_found_again(self, postgres_url: str) -> None:
        with Registry.open(postgres_url) as registry:
            registry.add_device("alice", b"a" * 32, NOW)
            other = Database.open(postgres_url)
            with closing(other), other.transaction() as connection:
                # What a restart does to a connection.
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            assert [device.name for device in registry.devices()] == ["alice"]

    def test_a_server_that_is_down_is_asked_again_after_a_while(
        self, postgres_url: str, postgres_server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("qvpn_server.registry.database._PAUSE", 50.0)
        with Registry.open(postgres_url) as registry:
            allow_connections(postgres_server, postgres_url, "false")
            with pytest.raises(RegistryUnavailable, match="not currently accepting") as refused:
                registry.devices()
            assert_one_line(refused.value)
            allow_connections(postgres_server, postgres_url, "true")
            with pytest.raises(RegistryUnavailable, match="not currently accepting"):
                registry.devices()
            later = time.monotonic() + 60
            monkeypatch.setattr(time, "monotonic", lambda: later)
            assert registry.devices() == []


def allow_connections(server: str, url: str, allowed: str) -> None:
    """Open or close a database, and end the connections to it."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    name = url.partition("?")[0].rpartition("/")[2]
    address = server.format("postgres").replace("+psycopg", "", 1)
    with psycopg.connect(address, autocommit=True) as connection:
        command = SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        connection.execute(command.format(Identifier(name), SQL(allowed)))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )


def test_ten_thousand_devices_are_no_trouble(where: Path | str) -> None:
    database = Database.open(where)
    fill(database, 10_000)
    database.close()
    with Registry.open(where) as registry:
        assert quickest(lambda: len(registry.devices()), 10_000) < 1.0
        assert quickest(lambda: registry.device_by_token((5000).to_bytes(32)), None) < 0.05
        assert quickest(lambda: registry.device_by_key_id(key_id(b"?" * 32)), None) < 0.05
        late = registry.add_device("late", b"l" * 32, NOW)
        began = time.process_time()
        (address,) = registry.lease(late, [POOL4])
        assert str(address) == "10.86.39.18", "behind ten thousand leases"
        assert time.process_time() - began < 0.5


def quickest(function: Callable[[], object], expected: object) -> float:
    """Seconds of this process that the best of a few calls takes."""
    times = []
    for _ in range(3):
        began = time.process_time()
        result = function()
        times.append(time.process_time() - began)
        assert expected is None or result == expected
    return min(times)


def fill(database: Database, count: int) -> None:
    """Insert devices with leases, as enrolments would have, but at once."""
    tables = metadata.tables
    numbers = range(1, count + 1)
    first = int(POOL4.network.network_address) + 1
    with database.transaction(write=True) as connection:
        connection.execute(
            tables["devices"].insert(),
            [
                {"id": n, "name": f"d{n}", "created": NOW, "token_hash": n.to_bytes(32)}
                for n in numbers
            ],
        )
        connection.execute(
            tables["memberships"].insert(), [{"device": n, "group": 1} for n in numbers]
        )
        connection.execute(
            tables["leases"].insert(),
            [{"family": 4, "address": (first + n).to_bytes(4), "device": n} for n in numbers],
        )
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT setval('devices_id_seq', {count})")


def add_many(registry: Registry) -> None:
    for number in range(1000):
        registry.add_device(f"d{number}", number.to_bytes(32), NOW)


def fill_up(registry: Registry) -> None:
    """Let the database grow no more, as a full disk would."""
    with registry._database.transaction() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")


def assert_one_line(error: QvpnError, *words: str) -> None:
    assert "\n" not in str(error)
    assert error.hint
    for word in words:
        assert word in str(error)
