"""``corral replay``: real processes along recorded agent traces.

controller.simulate reads recordings and makes schedules of them · player.py runs them through corral-exec ·
report.py counts what came out (pure) · command.py is the command.
"""
