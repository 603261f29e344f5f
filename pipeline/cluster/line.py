"""The line to the scheduler of a cluster: what is asked of it, and that it is lost, whenever that shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from store.errors import StorageError

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
RESOURCE = "frostgrid"  # of which a worker that was made ready has one, and each task takes it
Outcome = tuple[BaseException | None, Any]  # what a task raised, or its result
_PREFIX = "frostgrid-"  # of keys, on a scheduler that others use, too


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
        self, key: str, call: Callable[..., Any], *args: Any, worker: str | None = None, priority: int = 0
    ) -> Future[Any]:
        """Have ``call(*args)`` done, once for all who ask by the same ``key``.

        By ``worker``, which has to be one that was made ready, or by any that there is; where somebody else has asked
        before, by the worker that was named then.
        """
        where = {} if worker is None else {"workers": [worker], "resources": {RESOURCE: 1}}
        future: Future[Any] = self.asked(
            lambda client: client.submit(
                call, *args, key=_PREFIX + key, priority=priority, pure=False, **where
            )
        )
        return future

    def cancel(self, futures: Sequence[Future[Any]]) -> None:
        """Give up what was submitted, unless somebody else has asked for the same; a lost scheduler has done so."""
        with suppress(StorageError):
            self.asked(lambda client: client.cancel(futures))

    def under_way(self) -> dict[str, str]:
        """Return the keys of what workers have been given now, by whoever uses frostgrid, and which worker has it."""
        found = self.asked(lambda client: client.processing())
        given = ((str(key), str(worker)) for worker, keys in found.items() for key in keys)
        return {key.removeprefix(_PREFIX): worker for key, worker in given if key.startswith(_PREFIX)}

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

    def outcome(self, future: Future[Any]) -> Outcome:
        """Return what a task raised that has ended, or None and its result, however long that takes to come.

        Where it was lost with its worker that is for ever, unless the task is given up.
        """
        try:
            return None, future.result()
        except Exception as error:
            if future.status == "error":
                return error, None
            if future.cancelled() or self._is_lost() or isinstance(error, OSError):
                self._refuse()
            raise

    def _is_lost(self) -> bool:
        return self._client.scheduler is None or self._client.status != "running"

    def _refuse(self) -> NoReturn:
        raise StorageError(
            "The scheduler of the cluster is gone",
            where=self._address,
            remedy="What is finished is kept. Start it again, with workers where they have ended, and run the same "
            "command again to go on.",
        ) from None


def _identity_of(client: Client) -> Any:
    """Return what the scheduler says of itself and of its workers.

    dask's ``scheduler_info`` would do, but answers with what it knew before, or with nothing, where it hears none.
    """
    if client.scheduler is None:
        raise ConnectionError("closed")
    return client.sync(client.scheduler.identity)
