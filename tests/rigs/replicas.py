"""A learner alone, and two replicas of one in this process."""

import threading


class Alone:
    size, index = 1, 0

    def sum_(self, tensor):
        pass


class Pair:
    """Two replicas as two threads that meet at every sum."""

    def __init__(self):
        self.barrier, self.given = threading.Barrier(2, timeout=20), [None, None]

    def member(self, place):
        outer = self

        class Member:
            size, index = 2, place

            def sum_(self, tensor):
                outer.given[place] = tensor.clone()
                outer.barrier.wait()
                total = outer.given[0] + outer.given[1]
                outer.barrier.wait()
                tensor.copy_(total)

        return Member()

    def run(self, task):
        """[task(exchange, place) for both places], each in its thread."""
        results, errors = [None, None], []

        def work(place):
            try:
                results[place] = task(self.member(place), place)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results
