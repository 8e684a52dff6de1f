"""Run a server: listen, load the model, serve until a signal or the engine's end, let replies finish."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

import uvicorn
import uvloop

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.server.app import Application
from kvfold.runtime.server.guard.admission_limits import AdmissionLimits
from kvfold.runtime.server.guard.connection import GuardedProtocol
from kvfold.runtime.server.served_llm import ServedLLM
from kvfold.runtime.server.start.reload_certificate import reload_certificate
from kvfold.runtime.server.start.server_settings import ServerSettings
from kvfold.runtime.server.start.systemd import notify, watchdog_seconds
from kvfold.runtime.server.state import ServerState

LOG = logging.getLogger("kvfold.server")
LOOK_SECONDS = 0.25
# For answers that are written, and for streams that carry an error, after the last reply has ended.
FLUSH_SECONDS = 5
EXIT_HUNG = 3
# For the pages that wait to be written, where replies took all the time of the drain.
LEAST_FLUSH_SECONDS = 1.0
# Longer than a proxy keeps idle connections, which would else be closed under its next request.
KEEP_ALIVE_SECONDS = 75

Loaded = tuple[ServedLLM, Any, AdmissionLimits]
Load = Callable[[], Loaded]


def run_server(app: Application, state: ServerState, settings: ServerSettings, load: Load) -> None:
    """Serve until SIGTERM or SIGINT; it answers, with 503, while the model loads.

    Args:
        app: what answers.
        state: of the app.
        settings: where to listen, how to end.
        load: reads the model, in a thread: an AsyncLLM, its GrammarCompiler, what may be inside at once.

    Raises:
        RequestError: the address or a TLS file cannot be used.
        EngineError: the engine failed; running replies were told.
        KvfoldError: whatever `load` raises.
    """
    _log_to_stderr()
    sock = _listen(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Run(app, state, settings, load).serve(sock))


class Run:
    """One server's life."""

    def __init__(self, app: Application, state: ServerState, settings: ServerSettings, load: Load) -> None:
        """Nothing happens before `serve`."""
        self._state = state
        self._settings = settings
        self._load = load
        self._ending = asyncio.Event()
        self._server = make_http_server(app, settings.tls_cert, settings.tls_key)

    async def serve(self, sock: socket.socket) -> None:
        """From listening to the last answer; raises as `run_server`."""
        self._handle_signals()
        address = "{}:{}".format(*sock.getsockname()[:2])
        LOG.info("listening on %s", address)
        serving = asyncio.create_task(self._server.serve(sockets=[sock]))
        serving.add_done_callback(lambda _: self._ending.set())
        try:
            await self._until_the_end()
        finally:
            self._state.draining = True
            notify("STOPPING=1")
            end = monotonic() + self._settings.drain_seconds
            llm = self._state.loaded_llm
            if llm is not None and llm.failure is None:
                await self._drain(llm)
            self._server.should_exit = True
            await serving
            if llm is not None:
                await self._close(llm, max(LEAST_FLUSH_SECONDS, end - monotonic()))
        if llm is not None and llm.failure is not None:
            raise llm.failure

    async def _until_the_end(self) -> None:
        loading = _in_thread(self._load)
        ending = asyncio.create_task(self._ending.wait())
        await asyncio.wait((loading, ending), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            return
        self._state.loaded(*loading.result())
        notify("READY=1")
        LOG.info("serving %s", self._state.model_name)
        watchdog = watchdog_seconds()
        next_sign = 0.0
        while not self._ending.is_set() and self._state.llm.failure is None:
            self._state.look()
            now = asyncio.get_running_loop().time()
            if watchdog is not None and now >= next_sign and self._state.why_not_ready() is None:
                notify("WATCHDOG=1")
                next_sign = now + watchdog
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), LOOK_SECONDS)

    async def _drain(self, llm: ServedLLM) -> None:
        """Let replies finish; a hung engine lets none, nor itself be closed."""
        seconds = self._settings.drain_seconds
        try:
            async with asyncio.timeout(seconds + FLUSH_SECONDS):
                await llm.drain(seconds)
        except TimeoutError:
            LOG.error("the engine hangs: running replies are lost")
            os._exit(EXIT_HUNG)

    async def _close(self, llm: ServedLLM, seconds: float) -> None:
        """End the engine; its tier has so long to write what waits: another server may go on from it."""
        if not await llm.close(seconds):
            LOG.warning("pages that were not written within %.0f s are computed again", seconds)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _reload(self) -> None:
        """Keys and certificate may have changed."""
        self._state.gate.reload()
        cert, key, context = self._settings.tls_cert, self._settings.tls_key, self._server.config.ssl
        if cert is not None and key is not None and context is not None:
            reload_certificate(context, cert, key)

    def _end(self, number: int) -> None:
        """The first signal lets replies finish, the second does not."""
        if self._ending.is_set():
            LOG.warning("a second signal: running replies are lost")
            os._exit(128 + number)
        LOG.info("%s: running replies have %g s", signal.Signals(number).name, self._settings.drain_seconds)
        self._state.draining = True
        self._ending.set()


class _Server(uvicorn.Server):
    """uvicorn's server without its signals: ours let replies finish first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def make_http_server(app: Any, tls_cert: Path | None = None, tls_key: Path | None = None) -> uvicorn.Server:
    """uvicorn over guarded connections, without signals; `serve` it, and set `should_exit` to end it.

    Raises:
        RequestError: a TLS file cannot be used.
    """
    server = _Server(
        uvicorn.Config(
            app,
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=GuardedProtocol.max_connections,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FLUSH_SECONDS,
            ssl_certfile=tls_cert,
            ssl_keyfile=tls_key,
        )
    )
    try:
        server.config.load()
    except (OSError, ssl.SSLError) as error:
        raise RequestError(
            f"TLS with {tls_cert} and {tls_key} cannot be set up: {error}; give PEM files"
        ) from error
    return server


def _listen(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host.strip("[]"), settings.port), family=family)
    except OSError as error:
        raise RequestError(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}; "
            "choose another --port or --host"
        ) from error


def _in_thread(load: Load) -> asyncio.Future[Loaded]:
    """Run it in a thread that does not keep the process: reading a model cannot be stopped."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Loaded] = loop.create_future()

    def run() -> None:
        with suppress(RuntimeError):  # the loop has ended meanwhile
            try:
                loop.call_soon_threadsafe(future.set_result, load())
            except Exception as error:
                loop.call_soon_threadsafe(future.set_exception, error)

    Thread(target=run, name="kvfold load", daemon=True).start()
    return future


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("kvfold.server", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        logger.handlers = [handler]
