"""The gateway's key over time: prepared, announced, switched; and what is not ours to replace."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from qvpn_core.errors import UsageError
from qvpn_server import cli
from qvpn_server.certificate import check_pair, pin_of
from qvpn_server.config import GatewayConfig, load_config
from qvpn_server.identity import announced_pins, prepare_next, switch_to_next
from qvpn_server.statedir import StateDir

NOW = datetime(2027, 1, 15, tzinfo=UTC)


def gateway(directory: Path, *options: str) -> tuple[GatewayConfig, StateDir]:
    state = StateDir(directory / "state")
    assert cli.main(["init", "--state", str(state.path), "--host", "gw.example", *options]) == 0
    return load_config(state.config), state


def test_the_next_key_is_announced_beside_the_current_one_until_it_takes_its_place(
    tmp_path: Path,
) -> None:
    config, state = gateway(tmp_path)
    current = pin_of(config.certificate)
    assert announced_pins(config, state) == (current,)
    following = prepare_next(config, state, NOW)
    assert announced_pins(config, state) == (current, following)
    assert prepare_next(config, state, NOW) == following, "announced once, it stays the next one"
    assert state.next_private_key.stat().st_mode & 0o777 == 0o600
    assert switch_to_next(config, state) == following
    check_pair(config.certificate, config.private_key)
    assert announced_pins(config, state) == (following,)
    assert not state.next_certificate.exists()
    assert not state.next_private_key.exists()


def test_a_switch_that_was_interrupted_is_finished_by_another(tmp_path: Path) -> None:
    config, state = gateway(tmp_path)
    following = prepare_next(config, state, NOW)
    state.next_private_key.replace(state.private_key)  # and then the power failed
    assert switch_to_next(config, state) == following
    check_pair(config.certificate, config.private_key)


def test_nothing_is_switched_to_that_was_not_announced(tmp_path: Path) -> None:
    config, state = gateway(tmp_path)
    before = pin_of(config.certificate)
    with pytest.raises(UsageError, match="run: qvpn-server rotate first"):
        switch_to_next(config, state)
    assert pin_of(config.certificate) == before


def from_an_authority(directory: Path) -> tuple[Path, Path]:
    """A certificate that is not self-signed, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in ("gw", "authority")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW.replace(year=2028))
        .sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
    )
    paths = directory / "chain.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    return paths


def test_a_certificate_of_an_authority_is_pinned_by_nobody_and_not_ours_to_replace(
    tmp_path: Path,
) -> None:
    certificate, key = from_an_authority(tmp_path)
    config, state = gateway(tmp_path, "--cert", str(certificate), "--key", str(key))
    assert announced_pins(config, state) == ()
    with pytest.raises(UsageError, match="qvpn-server reload"):
        prepare_next(config, state, NOW)
    with pytest.raises(UsageError, match="qvpn-server reload"):
        switch_to_next(config, state)


def test_the_commands_say_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _config, state = gateway(tmp_path)
    capsys.readouterr()
    where = ["--state", str(state.path)]
    assert cli.main(["rotate", *where]) == 0
    assert "announced" in capsys.readouterr().out
    assert cli.main(["rotate", *where, "--switch"]) == 0
    assert "in use" in capsys.readouterr().out
    assert cli.main(["reload", *where]) == 3
    assert "no gateway runs" in capsys.readouterr().out


def test_a_site_that_cannot_be_served_makes_no_gateway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    arguments = ["init", "--state", str(state), "--host", "gw", "--site", str(tmp_path / "none")]
    assert cli.main(arguments) == 2
    assert "is no directory" in capsys.readouterr().err
    assert not state.exists()
