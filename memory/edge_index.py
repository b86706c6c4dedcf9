"""Builds the graph of the keys in a copy of a shard, in a process of its own.

Run by path as `edge_index.py SHARD`. Qdrant Edge holds the interpreter lock for the whole build, which
takes minutes for a large memory: inside the gateway nothing else would run. Imports nothing of the project.
"""

import ctypes
import os
import signal
import sys

import qdrant_edge as edge

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Index what is not, write it, end; last in line for the processors, and gone with the parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(19)
    shard = edge.EdgeShard.load(sys.argv[1])
    shard.optimize()
    shard.flush()
    shard.close()


if __name__ == "__main__":
    main()
