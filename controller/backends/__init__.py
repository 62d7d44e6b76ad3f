"""What carries out decisions: the two backends behind ``controller.backend.Backend``, and their parts.

enforce.py      a cgroup for every call, and eBPF beside it
leaf.py, groups.py, squeezing.py, records.py    calls' leaves, the groups above them, what they remember
kernelside.py, bothsides.py                     what is asked of the kernel, where eBPF loads in part, too
disks.py, fulldisk.py                           proof of a full disk
observe.py      no cgroups, no limits: process trees
rootlock.py     one daemon for one tree
"""
