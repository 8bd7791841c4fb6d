"""Processes that work for this one."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """For a worker of a pool: one whose parent was killed would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None  # a worker has one
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
