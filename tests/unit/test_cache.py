"""What is kept in memory is bounded, and may be asked for by several threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from perfusion_core.cache import BoundedCache


def test_what_was_not_used_for_longest_makes_room() -> None:
    cache: BoundedCache[str, int] = BoundedCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    assert cache.put("c", 3) == 3
    assert cache.get("b") is None
    assert cache.items() == [("a", 1), ("c", 3)]


def test_a_value_is_replaced_and_takes_no_second_place() -> None:
    cache: BoundedCache[str, int] = BoundedCache(2)
    for value in range(5):
        cache.put("a", value)
    cache.put("b", 0)
    assert cache.items() == [("a", 4), ("b", 0)]


def test_threads_never_see_more_than_fits_nor_a_value_of_another_key() -> None:
    cache: BoundedCache[int, int] = BoundedCache(8)

    def use(first: int) -> bool:
        for step in range(2000):
            key = (first + step) % 20
            if cache.get(key) not in (None, key):
                return False
            cache.put(key, key)
            if len(cache.items()) > 8:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(8)))
    assert len(cache) == 8
