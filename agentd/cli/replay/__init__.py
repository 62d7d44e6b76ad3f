"""``corral replay``: real processes along recorded agent traces.

trace.py reads and checks a recording · plan.py makes schedules of it (pure) · player.py runs them through corral-exec ·
report.py counts what came out (pure) · command.py is the command.
"""
