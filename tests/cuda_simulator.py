"""Numba's CUDA simulator, with barriers that sleep.

The simulator's own host thread spins while the threads of a block run, and takes the interpreter's
lock from them most of the time: here a step of training takes 20 ms instead of 300. What a kernel
computes is the same, and a block whose threads fail to meet at a barrier still does not end well:
threads that have left are not waited for, as in the original.
"""

import threading

import numpy as np


class Barrier:
    """Where the threads of a block meet; those that have returned do not count."""

    def __init__(self, n_threads):
        self.condition = threading.Condition()
        self.alive = n_threads
        self.waiting = 0
        self.round = 0
        self.broken = False

    def wait(self):
        with self.condition:
            self.waiting += 1
            if self.waiting == self.alive:
                self._open()
            else:
                current = self.round
                self.condition.wait_for(lambda: self.round != current or self.broken)
            if self.broken:
                raise RuntimeError("another thread of the block failed")

    def leave(self, failed):
        with self.condition:
            self.alive -= 1
            if failed:
                self.broken = True
                self.condition.notify_all()
            elif self.alive and self.waiting == self.alive:
                self._open()

    def _open(self):
        self.waiting = 0
        self.round += 1
        self.condition.notify_all()


def install():
    from numba.cuda.simulator import kernel

    plain_run = kernel.BlockThread.run

    def run_thread(self):
        plain_run(self)
        self.barrier.leave(self.exception is not None)

    def run_block(self, grid_point, *args):
        barrier = Barrier(int(np.prod(self._block_dim)))
        threads = []
        for place in np.ndindex(*self._block_dim):
            thread = kernel.BlockThread(
                lambda: self._f(*args), self, grid_point, place, self._debug
            )
            thread.barrier = barrier
            threads.append(thread)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        failed = [t.exception for t in threads if t.exception]
        # Not the ones that only noticed.
        failed.sort(key=lambda pair: "another thread of the block failed" in str(pair[0]))
        for exception, traceback in failed:
            raise exception.with_traceback(traceback)

    kernel.BlockThread.run = run_thread
    kernel.BlockThread.syncthreads = lambda self: self.barrier.wait()
    kernel.BlockManager.run = run_block
