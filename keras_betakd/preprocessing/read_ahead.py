"""`ReadAhead`: makes batches in threads, in front of the steps that train on them."""

import concurrent.futures
import os


def default_workers():
    """How many threads make batches: one less than there are cores, 1 to 4."""
    return max(1, min(4, (os.cpu_count() or 1) - 1))


class ReadAhead:
    """Makes items in threads before they are asked for, and hands them out in order.

    Data is read by one thread, in the order in which it is asked for, as some data can
    only be read so; what was read is made into items by several. An error is raised
    where its item is taken.

    Args:
        read: function of a place, called by one thread, one place after the other.
        make: function of what was read and its place; may run in several threads.
        workers: the number of threads that make items.
        size: the most items that are held or being made beside the one asked for.

    Example:

    >>> ahead = ReadAhead(lambda i: i, lambda x, i: 10 * x, workers=1, size=2)
    >>> [ahead.take(i, range(i + 1, 4)) for i in range(4)]
    [0, 10, 20, 30]
    """

    def __init__(self, read, make, workers, size):
        pool = concurrent.futures.ThreadPoolExecutor
        self._read, self._make, self._size = read, make, size
        self._reader = pool(1, "keras_betakd_reader")
        self._makers = pool(workers, "keras_betakd_maker")
        self._items = {}

    def take(self, place, following=()):
        """The item of a place; those of the next places are begun.

        Args:
            place: a hashable value.
            following: the places that will probably be asked for next, in order.
        """
        self._begin(place)
        for _, other in zip(range(self._size), following, strict=False):
            self._begin(other)
        return self._items.pop(place).result()

    def _begin(self, place):
        if place in self._items:
            return
        found = self._reader.submit(self._read, place)
        self._items[place] = self._makers.submit(self._made, found, place)

    def _made(self, found, place):
        return self._make(found.result(), place)

    def clear(self):
        """Drops what was not taken, and waits until nothing is being read."""
        for item in self._items.values():
            item.cancel()
        running = [item for item in self._items.values() if not item.cancelled()]
        concurrent.futures.wait(running)
        # What was cancelled may still be read: nobody waits for it but the reader.
        self._reader.submit(lambda: None).result()
        self._items = {}

    def close(self):
        """Drops what was not taken, and ends the threads."""
        self.clear()
        self._reader.shutdown()
        self._makers.shutdown()
