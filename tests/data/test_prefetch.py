import threading
import time

import pytest

from bertorch.data.prefetch import prefetched


def names_of_threads():
    return [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("ahead", [1, 3, 20])
@pytest.mark.parametrize("size", [0, 1, 10])
def test_gives_what_map_gives(size, ahead):
    assert list(prefetched(lambda item: item * 2, range(size), ahead)) == [item * 2 for item in range(size)]


def test_works_ahead_but_only_so_far():
    made = []
    results = prefetched(lambda item: made.append(item) or item, range(100), ahead=3)
    assert next(results) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2, 3]
    results.close()


def test_an_error_comes_in_the_place_of_its_result():
    results = prefetched(lambda item: 1 // item, [1, 1, 0, 1])
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_thread_ends_with_the_reader():
    results = prefetched(lambda item: item, range(100))
    next(results)
    assert any(name.startswith("prefetch") for name in names_of_threads())
    results.close()
    assert not any(name.startswith("prefetch") for name in names_of_threads())
