"""What this host can do and what it cannot, for `corral doctor`.

table.py     the whole table, in its order
attempt.py   one line: what was tried, and how it went
places.py    which daemon it is about: root's, or a user's own
groups.py, limits.py, netlink.py, around.py    the lines (the kernel's own are bpf.probe's)
"""

from agentd.doctor.table import features, own_features

__all__ = ["features", "own_features"]
