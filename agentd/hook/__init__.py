"""corral-hook: puts the shell commands of coding agents under Corral, through the hooks that those agents have.

Reads one event (JSON) on stdin and answers on stdout. Before a tool runs, its command is rewritten to run under
``corral-exec``; after it ran, what Corral did to it is given to the model as additional context. Whatever goes wrong,
the tool runs as it would have without the hook, the exit status is 0, and stderr has one line.

    main.py      stdin, stdout, stderr; the two subcommands
    contract.py  the agents' dialects: what their events and answers look like
    rewrite.py   a command, wrapped
    shell.py     as much of the shell's grammar as that needs
    classify.py  which class of call a command is: a table
    config.py    hook.toml
    state.py     files that one event leaves for the next: outcomes, and intents that were declared beforehand

Standard library only, and little of that: it starts for every command that an agent runs (docs/integrations.md has what
it costs). Nothing here may import the rest of Corral.
"""
