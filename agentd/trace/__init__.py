"""``corral trace CALL``: one running call under bcc's eye (Debian's python3-bpfcc), compiled on the spot.

worker.py   a program of its own, for the system's Python (bcc is not on PyPI): compiles, attaches, prints JSON lines
tracer.py   starts it, reads it, ends it
"""

from agentd.trace.tracer import Event, Notice, Table, TraceError, Tracer

__all__ = ["Event", "Notice", "Table", "TraceError", "Tracer"]
