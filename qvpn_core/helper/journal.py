"""The write-ahead journal: what would undo the session's changes, on disk before they are made.

It is read by the helper that made it, and after a SIGKILL by the next one. A journal that cannot be
read breaks nothing: what can be read of it is undone, then what carries our names, and the rest is
the log's. Whoever uses it holds the lock of the namespace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from qvpn_core.errors import NetworkSetupFailed
from qvpn_core.helper.log import Log
from qvpn_core.helper.rundir import RunDirectory
from qvpn_core.net.dns.records import DnsRecord
from qvpn_core.net.records import LEFTOVERS, NetworkRecord, Record

_MAX_BYTES: Final = 1 << 20
_MAX_RECORDS: Final = 64


class _Stored(msgspec.Struct, frozen=True):
    """Record by record, so that one of another version does not hide the others."""

    records: tuple[msgspec.Raw, ...]


class Journal:
    """In parts that change apart from each other: the network's records and the resolver's."""

    def __init__(self, directory: RunDirectory, log: Log) -> None:
        self._directory = directory
        self._log = log
        self._failed: tuple[Record, ...] = ()
        self._dns: tuple[DnsRecord, ...] = ()
        self._network: tuple[NetworkRecord, ...] = ()

    @property
    def failed(self) -> tuple[Record, ...]:
        """What could not be undone, oldest first; to be tried again at every end."""
        return self._failed

    @property
    def network(self) -> tuple[NetworkRecord, ...]:
        """The network's records, oldest first."""
        return self._network

    def hold_network(self, records: Sequence[NetworkRecord]) -> None:
        """Keep `records` instead of those before. Raises NetworkSetupFailed; then none changed."""
        self._write(self._failed, self._dns, tuple(records))

    def hold_dns(self, records: Sequence[DnsRecord]) -> None:
        """The same for the resolver's."""
        self._write(self._failed, tuple(records), self._network)

    def undone(self, failed: Sequence[Record]) -> None:
        """The network's and the failed ones were undone but for `failed`, oldest first.

        Never raises: a full disk costs the news that something is undone, which is harmless.
        """
        try:
            self._write(tuple(failed)[-_MAX_RECORDS:], self._dns, ())
        except NetworkSetupFailed as error:
            self._log.warning(str(error))

    def left_behind(self) -> tuple[Record, ...]:
        """What an earlier helper has not undone, and beside it whatever carries our names."""
        try:
            data = self._directory.read("journal", _MAX_BYTES)
            if data is None:
                return ()
            stored = msgspec.json.decode(data, type=_Stored).records[:_MAX_RECORDS]
        except (ValueError, RecursionError) as error:
            self._log.warning(f"the journal cannot be read: {error}")
            return LEFTOVERS
        records: list[Record] = []
        for raw in stored:
            try:
                records.append(msgspec.json.decode(raw, type=Record))
            except (ValueError, RecursionError) as error:
                self._log.warning(f"a record of the journal cannot be read: {error}")
        return (*records, *(record for record in LEFTOVERS if record not in records))

    def _write(
        self,
        failed: tuple[Record, ...],
        dns: tuple[DnsRecord, ...],
        network: tuple[NetworkRecord, ...],
    ) -> None:
        records = (*failed, *dns, *network)
        if records:
            # Names first, so that they are undone last: they may have to wait for others.
            self._directory.write("journal", msgspec.json.encode({"records": records}))
        else:
            self._directory.remove("journal")
        self._failed, self._dns, self._network = failed, dns, network
