"""Generators of random numbers that imports make: forks of the process that imported would all draw the same from them."""

import gc
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary


class Generators:
    """Those made inside `watched`, beside the one of the module `random`, which starts anew in each fork by itself."""

    def __init__(self) -> None:
        self._is_unseeded: WeakKeyDictionary[random.Random, bool] = WeakKeyDictionary()
        """Whether what a generator was last seeded with came from the system."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notes how generators are seeded."""
        seed, set_state = random.Random.seed, random.Random.setstate

        def noted_seed(generator: random.Random, a: Any = None, version: int = 2) -> None:
            seed(generator, a, version)
            self._note(generator, is_unseeded=a is None)

        def noted_set_state(generator: random.Random, state: tuple[Any, ...]) -> None:
            set_state(generator, state)
            self._note(generator, is_unseeded=False)

        random.Random.seed, random.Random.setstate = noted_seed, noted_set_state  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            random.Random.seed, random.Random.setstate = seed, set_state  # type: ignore[method-assign]

    def can_differ(self) -> bool:
        """Whether `seed_anew` gives each fork numbers of its own, as if each had imported."""
        return "numpy.random" not in sys.modules and all(map(self._can_begin_again, _generators()))

    def seed_anew(self) -> None:
        """In a fork: has every generator that nobody seeded begin again."""
        for generator, is_unseeded in self._is_unseeded.items():
            if is_unseeded:
                generator.seed()

    def _note(self, generator: random.Random, *, is_unseeded: bool) -> None:
        with suppress(TypeError):  # without a hash it stays unknown
            self._is_unseeded[generator] = is_unseeded

    def _can_begin_again(self, generator: random.Random) -> bool:
        try:
            return self._is_unseeded.get(generator, False)
        except TypeError:
            return False


def _generators() -> list[random.Random]:
    """All there are, beside the one of `random`."""
    kinds = _with_narrower(random.Random) - _with_narrower(random.SystemRandom)
    return [thing for thing in gc.get_referrers(*kinds) if type(thing) in kinds and thing is not random._inst]


def _with_narrower(kind: type[random.Random]) -> set[type[random.Random]]:
    return {kind}.union(*(_with_narrower(narrower) for narrower in kind.__subclasses__()))
