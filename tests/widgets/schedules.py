"""Every order in which some threads can get at a lock and an event, walked through with the real code."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

Actor = tuple[str, Callable[[], None]]  # a thread's name, and what it does


class Stuck(AssertionError):
    """All threads that are left wait, none can go on."""


class _Ended(BaseException):
    """Ends the threads of a walk that is given up."""


class World:
    """One run of the actors, each of which stops before everything that it does to the lock and the event.

    ``step`` lets one of them go on to its next stop.
    """

    def __init__(self, actors: list[Actor]) -> None:
        self.owner: str | None = None
        self.count = 0
        self.is_set = True
        self._at: dict[str, tuple[str, Callable[[], bool]]] = {}  # where each has stopped, and whether it can go on
        self._steps = {name: 0 for name, _ in actors}
        self._go = {name: threading.Semaphore(0) for name, _ in actors}
        self._stopped = threading.Semaphore(0)
        self._abandoned = False
        self.failed: BaseException | None = None
        self._threads = [threading.Thread(target=self._live, args=actor, name=actor[0]) for actor in actors]
        for thread in self._threads:
            thread.start()
            self._stopped.acquire()

    def _live(self, name: str, act: Callable[[], None]) -> None:
        try:
            self.stop("begin", lambda: True)
            act()
        except _Ended:
            pass
        except BaseException as error:
            self.failed = error
        finally:
            self._at.pop(name, None)
            self._stopped.release()

    def stop(self, what: str, can_go_on: Callable[[], bool]) -> None:
        """Called by an actor: wait for its turn."""
        if self._abandoned:  # what a thread does on its way out
            raise _Ended
        name = threading.current_thread().name
        self._at[name] = what, can_go_on
        self._steps[name] += 1
        self._stopped.release()
        self._go[name].acquire()
        if self._abandoned:
            raise _Ended

    def ready(self) -> list[str]:
        """Who can go on."""
        return sorted(name for name, (_, can_go_on) in self._at.items() if can_go_on())

    def left(self) -> dict[str, str]:
        """Who has not ended, and where each has stopped."""
        return {name: what for name, (what, _) in self._at.items()}

    def state(self) -> Any:
        """What all that follows depends on."""
        return (
            self.owner,
            self.count,
            self.is_set,
            tuple(sorted((n, self._steps[n], w) for n, w in self.left().items())),
        )

    def step(self, name: str) -> None:
        self._go[name].release()
        self._stopped.acquire()

    def end(self) -> None:
        self._abandoned = True
        for name in list(self._at):
            self._go[name].release()
        for thread in self._threads:
            thread.join()


class Lock:
    """In place of a ``threading.RLock``."""

    def __init__(self) -> None:
        self.world: World | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        world, name = self.world, threading.current_thread().name
        assert world is not None
        world.stop("acquire", lambda: not blocking or world.owner in (None, name))
        if world.owner not in (None, name):
            return False
        world.owner, world.count = name, world.count + 1
        return True

    def release(self) -> None:
        world = self.world
        assert world is not None
        world.stop("release", lambda: True)
        assert world.owner == threading.current_thread().name, "released by another thread"
        world.count -= 1
        world.owner = world.owner if world.count else None

    def _is_owned(self) -> bool:
        return self.world is not None and self.world.owner == threading.current_thread().name

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class Event:
    """In place of a ``threading.Event``."""

    def __init__(self) -> None:
        self.world: World | None = None

    def _stop(self, what: str, can_go_on: Callable[[World], bool]) -> World:
        world = self.world
        assert world is not None
        world.stop(what, lambda: can_go_on(world))
        return world

    def set(self) -> None:
        self._stop("set", lambda _: True).is_set = True

    def clear(self) -> None:
        self._stop("clear", lambda _: True).is_set = False

    def is_set(self) -> bool:
        return self._stop("is_set", lambda _: True).is_set

    def wait(self) -> bool:
        return self._stop("wait", lambda world: world.is_set).is_set


def walk(actors: Callable[[], list[Actor]], lock: Lock, event: Event) -> int:
    """Go through every order; gives how many states there are.

    Raises
    ------
    Stuck
        When there is one after which nobody can go on.
    """
    seen: set[Any] = set()
    waiting: list[list[str]] = [[]]
    while waiting:
        path = waiting.pop()
        lock.world = event.world = world = World(actors())
        try:
            for name in path:
                world.step(name)
            while True:
                if world.failed is not None:
                    raise world.failed
                if world.state() in seen:
                    break
                seen.add(world.state())
                ready = world.ready()
                if not ready:
                    if world.left():
                        raise Stuck(f"after {path}: {world.left()}, the lock is {world.owner}'s")
                    break
                waiting += [[*path, name] for name in ready[1:]]
                path = [*path, ready[0]]
                world.step(ready[0])
        finally:
            world.end()
    return len(seen)
