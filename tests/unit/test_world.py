"""A role process's deadlines while it waits for others."""

import os
import threading
import time

from marl_hpc.comm.store import Store
from marl_hpc.comm.world import World
from marl_hpc.comm.zygote import Stamp


def world(store, index):
    descriptor = os.memfd_create("stamp")
    os.ftruncate(descriptor, Stamp.SIZE)
    roles = ["learner/0", "learner/1"]
    return World(index, 0, roles, store, Stamp(descriptor), step_s=5.0, patience_s=20.0)


def test_waiting_for_other_learners_keeps_a_longer_deadline():
    store = Store()
    waiting, late = world(store, 0), world(store, 1)
    left = []

    def save():
        with waiting.allowing(600.0):
            waiting.gather("checkpoint", "a")
            left.append(-waiting.deadline.overdue_s)
        left.append(-waiting.deadline.overdue_s)

    thread = threading.Thread(target=save)
    thread.start()
    time.sleep(1.5)  # it has asked again, and stamped, at least once
    assert late.gather("checkpoint", "b") == ["a", "b"]
    thread.join(10)
    assert left[0] > 500
    assert left[1] <= 5
