"""The controller's policies in virtual time over recorded traces. See docs/control.md.

trace.py reads and checks a recording · plan.py makes schedules of it (pure).
"""
