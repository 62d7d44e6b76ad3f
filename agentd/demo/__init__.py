"""The demonstration (scripts/demo): three tenants' agents at work on one host, under a daemon of their own.

workloads.py  makes the inputs: a git repository, a C project, a package's source, a file to fetch
datajob.py    the data job: a program that an agent runs
agents.py     what each agent runs, with what it declares, and what is known beforehand about each call
runner.py     runs the agents: one corral-exec for each call
watch.py      shows what happens while it happens
report.py     the closing table
verdict.py    the checks, as pure functions of what the ledger says
main.py       puts it together and cleans up
"""
