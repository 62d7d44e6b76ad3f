"""Processes as the kernel tells of them without eBPF.

procfs.py, group.py    /proc: one process; the group that one is in
events.py              the process connector: forks, execs and exits, as they happen
stats.py               taskstats: what a task used
netlink.py             both of them as a kernel side, in the place of ``bpf.KernelSide``
tree.py                process trees, where there are no cgroups
probe.py, errors.py    whether any of it can be had, and why not
"""
