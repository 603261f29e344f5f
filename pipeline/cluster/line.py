"""The line to the scheduler of a cluster: what is asked of it, and that it is lost, whenever that shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from store.errors import StorageError

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
FETCH_S = 60.0  # for a result to come from its worker; then it may have been lost, and be made again
_PREFIX = "frostgrid-"  # of keys, on a scheduler that others use, too


class NotThere(Exception):
    """The result of a task that was done cannot be had; it may have been lost with its worker."""


class Line:
    """The connection of this process to the scheduler at ``address``, by a client of dask's.

    Everything here raises :class:`StorageError` once the scheduler is lost, and it stays lost: dask's client looks for
    it for a while and may even find it, or another one at its address, but our tasks are gone all the same.
    """

    def __init__(self, client: Client, address: str) -> None:
        self._client, self._address = client, address
        self._cluster = str(self.asked(_identity_of)["id"])

    @property
    def cluster(self) -> str:
        """Which cluster this is: a scheduler that is started anew, at the same address, makes another one."""
        return self._cluster

    def workers(self) -> dict[str, Any]:
        """Return what the scheduler says of each worker there is now, by address."""
        said = self.asked(_identity_of)
        if said["id"] != self._cluster:
            self._refuse()
        found: dict[str, Any] = said["workers"]
        return found

    def submit(
        self, key: str, resources: Mapping[str, int], call: Callable[..., Any], *args: Any, priority: int = 0
    ) -> Future[Any]:
        """Have ``call(*args)`` done by a worker that offers ``resources``, once for all who ask by the same ``key``."""
        future: Future[Any] = self.asked(
            lambda client: client.submit(
                call, *args, key=_PREFIX + key, resources=resources, priority=priority, pure=False
            )
        )
        return future

    def cancel(self, futures: Sequence[Future[Any]]) -> None:
        """Give up what was submitted, unless somebody else has asked for the same; a lost scheduler has done so."""
        with suppress(StorageError):
            self.asked(lambda client: client.cancel(futures))

    def under_way(self) -> set[str]:
        """Return the keys of what workers have been given now, by whoever uses frostgrid."""
        found = self.asked(lambda client: client.processing())
        ours = (str(key) for keys in found.values() for key in keys if str(key).startswith(_PREFIX))
        return {key.removeprefix(_PREFIX) for key in ours}

    def asked(self, question: Callable[[Client], T]) -> T:
        """Return what comes of something that is asked of the scheduler."""
        if self._is_lost():
            self._refuse()
        try:
            return question(self._client)
        except (OSError, CancelledError):
            self._refuse()
        except Exception:
            if self._is_lost():  # meanwhile: what dask then raises is of any kind
                self._refuse()
            raise

    def outcome(self, future: Future[Any]) -> tuple[BaseException | None, Any]:
        """Return what a task raised that has ended, or None and its result.

        Raises :class:`NotThere` where that was lost, or is out of reach, meanwhile.
        """
        try:
            return None, future.result(timeout=FETCH_S)
        except Exception as error:
            if future.status == "error":
                return error, None
            if future.cancelled() or self._is_lost():
                self._refuse()
            if isinstance(error, TimeoutError):
                raise NotThere from None
            if isinstance(error, OSError):
                self._refuse()
            raise

    def _is_lost(self) -> bool:
        return self._client.scheduler is None or self._client.status != "running"

    def _refuse(self) -> NoReturn:
        raise StorageError(
            "The scheduler of the cluster is gone",
            where=self._address,
            remedy="What is finished is kept. Start it again, and run the same command again to go on.",
        ) from None


def _identity_of(client: Client) -> Any:
    """Return what the scheduler says of itself and of its workers.

    dask's ``scheduler_info`` would do, but answers with what it knew before, or with nothing, where it hears none.
    """
    if client.scheduler is None:
        raise ConnectionError("closed")
    return client.sync(client.scheduler.identity)
