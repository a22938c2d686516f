"""Ending a long run early, such as the reading of a prompt: by Ctrl-C, or by another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from pad_runtime.errors import CancelledError

_LOOK_EVERY_S = 0.1  # on some systems a wait without a timeout cannot be interrupted


class Cancellation:
    """A request to end one run. Any thread may make it at any time; it cannot be taken back."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a stream may be collected, and cancel, at any point of any thread
        self._stops: list[Callable[[], object]] = []
        self._is_wanted = False

    @property
    def is_wanted(self) -> bool:
        """Whether the run is to end."""
        return self._is_wanted

    def want(self) -> None:
        """End the run as soon as it can be ended; returns at once, and may be called again."""
        with self._lock:
            self._is_wanted = True
            stops, self._stops = self._stops, []
        for stop in stops:  # without the lock: they may want other runs to end
            stop()

    def on_want(self, stop: Callable[[], object]) -> None:
        """Call `stop` once when the end is wanted, in the thread that wants it; now, if the end is wanted already."""
        with self._lock:
            if not self._is_wanted:
                self._stops.append(stop)
                return
        stop()

    def forget(self) -> None:
        """Nothing is to be ended any more."""
        with self._lock:
            self._stops = []


def run_interruptibly(run: Callable[[], object], cancellation: Cancellation) -> None:
    """Run to the end, or until Ctrl-C: that wants `cancellation`, and raises KeyboardInterrupt once `run` has ended.

    Python hands a signal to the main thread only between two Python instructions, never inside native code. So a call
    from the main thread runs in a second thread, while the main one waits. A call from another thread runs there.

    Raises:
        Exception: any that `run` raised.
    """
    if threading.current_thread() is not threading.main_thread():
        run()
        return
    worker = _Worker(run, cancellation)
    try:
        try:
            worker.start()
        except RuntimeError:  # the system gives no thread: Ctrl-C waits for the run
            worker.run()
        worker.wait()
    except BaseException:
        while not worker.has_ended:  # the run writes to buffers that the caller is about to free
            with suppress(KeyboardInterrupt):
                worker.end()
        raise
    if worker.failure:
        raise worker.failure


def run_or_cancel(
    run: Callable[[], object], cancellation: Cancellation, doing: str, *, returns_at_once: bool = False
) -> None:
    """Run interruptibly; a run that was ended is one error, whatever its library raises.

    Args:
        run: what is run.
        cancellation: ends it.
        doing: what it does, for the error.
        returns_at_once: the run is only put on a device's stream, so that there is nothing to interrupt.

    Raises:
        CancelledError: the end was wanted.
        Exception: any other that `run` raised.
    """
    try:
        if returns_at_once:
            run()
        else:
            run_interruptibly(run, cancellation)
    except Exception:
        if not cancellation.is_wanted:
            raise
    if cancellation.is_wanted:
        raise CancelledError(f"{doing} was cancelled")


class _Worker(threading.Thread):
    """Runs once, unless the end is wanted before it begins.

    Attributes:
        failure: the exception that the run raised.
        has_ended: whether `end` has ended the run.
    """

    def __init__(self, run: Callable[[], object], cancellation: Cancellation) -> None:
        super().__init__(name="pad-prompt", daemon=True)
        self._run, self._cancellation = run, cancellation
        self._turn, self._has_begun, self._done = threading.Lock(), False, threading.Event()
        self.failure: BaseException | None = None
        self.has_ended = False

    def run(self) -> None:
        with self._turn:
            self._has_begun = not self._cancellation.is_wanted
        try:
            if self._has_begun:
                self._run()
        except BaseException as error:  # raised in the thread that waits
            self.failure = error
        finally:
            self._done.set()

    def wait(self) -> None:
        """Wait until the run is over."""
        while not self._done.wait(_LOOK_EVERY_S):
            pass

    def end(self) -> None:
        """End the run, or keep it from beginning."""
        self._cancellation.want()
        with self._turn:
            under_way = self._has_begun
        if under_way:
            self.wait()
        self.has_ended = True
