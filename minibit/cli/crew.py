"""Workers for ``minibit train``: processes of a local Dask cluster, or of one that runs already."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

from minibit.base import parse_object
from minibit.cli.common import BadUse, check_choice
from minibit.cluster import CUTS, local_cluster

__all__ = ["check_crew", "crew"]

CONNECT = 10.0  # seconds in which a scheduler must answer
START = 60.0  # seconds in which local workers must be there
DASHBOARD = "127.0.0.1:0"  # for this machine alone, on a port that is free
# A process that takes the place of a lost one runs this as it begins.
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


def check_crew(
    workers: int | None,
    scheduler: str | None,
    threads: int | None,
    check: float | None,
    cut: str | None,
) -> bool:
    """Return whether steps are taken on workers; refuse options that do not go together."""
    if workers is not None and scheduler is not None:
        raise BadUse("--workers starts a cluster and --scheduler uses one that runs: choose one")
    remote = workers is not None or scheduler is not None
    if remote and threads is not None:
        raise BadUse(
            "--threads are those of one process; a worker has one thread, --workers says how many"
        )
    if check is not None and not remote:
        raise BadUse("--check is for --workers or --scheduler: there is nobody to check")
    if cut is not None and not remote:
        raise BadUse("--cut is for --workers or --scheduler: there is nobody to share a step with")
    check_choice("--cut", cut, CUTS)
    if remote:
        import distributed  # noqa: F401  # a missing extra is told before any work
    return remote


@contextmanager
def crew(say: Callable[[str], None], workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """Yield a Dask client of `workers` local processes, or of the scheduler at an address.

    An address may also be the path of a scheduler file. Certificates are those of Dask's own
    configuration. `say` gets the link of the dashboard, if there is one.

    Raises
    ------
    BadUse
        If `scheduler` is no address.
    RuntimeError
        If the scheduler, or a local worker, does not answer in time.
    """
    from distributed import Client

    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # the run itself reports a lost worker
    try:
        if scheduler is not None:
            with _connected(scheduler) as client:
                _announce(say, client)
                yield client
            return
        assert workers is not None
        options = {
            "dashboard_address": DASHBOARD,
            "silence_logs": logging.CRITICAL,
            "preload": DEAF,
        }
        with _deaf_to_ctrl_c():
            local = local_cluster(workers, **options)
        with local, Client(local, set_as_default=False) as client:
            try:
                client.wait_for_workers(workers, timeout=START)
            except TimeoutError:
                there = len(client.scheduler_info(n_workers=-1)["workers"])
                raise RuntimeError(
                    f"of {workers} workers only {there} were there after {START:.0f} s"
                ) from None
            _announce(say, client)
            yield client
    finally:
        logger.setLevel(level)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Start processes that ignore SIGINT, which a terminal sends to all; here it waits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a process that begins inherits that
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _connected(scheduler: str) -> Any:
    """Return a client of a scheduler, once that has answered: a client of none is hard to end."""
    from distributed import Client

    address = scheduler
    example = "an address such as tcp://10.0.0.5:8786, or a scheduler file"
    try:
        if Path(scheduler).is_file():
            address = parse_object(Path(scheduler).read_bytes())["address"]
        identity = asyncio.run(_identity(address))
    except (ValueError, KeyError) as error:
        raise BadUse(f"--scheduler must be {example}, got {scheduler!r}: {error}") from error
    except TypeError as error:
        raise BadUse(
            f"--scheduler {address}: Dask has no certificates; its configuration names them in "
            "distributed.comm.tls: ca-file, client.cert and client.key"
        ) from error
    except Exception as error:  # a process that is no scheduler may answer anything
        why = re.sub("^in <.*?>: ", "", str(error.__cause__ or error)) or _refusal(address)
        raise RuntimeError(
            f"the scheduler {address} cannot be reached within {CONNECT:.0f} s: {why}"
        ) from error
    if identity.get("type") != "Scheduler":
        raise BadUse(f"--scheduler {address} is a {identity.get('type')}, not a scheduler")
    return Client(address, timeout=CONNECT, set_as_default=False)


def _refusal(address: str) -> str:
    """Say why nobody answered: Dask's last try may have ended by the clock and tell nothing."""
    host, _, port = address.partition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()
    except (OSError, ValueError, OverflowError) as error:
        return str(error) or "no answer"
    return "no answer"


async def _identity(address: str) -> dict[str, Any]:
    """Ask the process that listens at an address for its type and version."""
    from distributed import rpc
    from distributed.security import Security

    certificates = Security().get_connection_args("client")
    async with rpc(address, timeout=CONNECT, connection_args=certificates) as peer:
        # Who refuses is asked again for that long; the error then says why, so it comes first.
        identity: dict[str, Any] = await asyncio.wait_for(peer.identity(), CONNECT + 1)
        return identity


def _announce(say: Callable[[str], None], client: Any) -> None:
    """Tell the link of the dashboard, if there is one: a scheduler without bokeh has no pages."""
    direct = build_opener(ProxyHandler({}))
    with suppress(OSError, ValueError), direct.open(client.dashboard_link, timeout=2) as page:
        if b"Dask needs bokeh" not in page.read(100):
            say(f"dashboard: {client.dashboard_link}")
