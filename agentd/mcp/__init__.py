"""corral-mcp: an MCP server over stdio, with which a model declares what a command needs and asks what became of it.

    protocol.py  JSON-RPC 2.0 and the subset of MCP that a server with tools alone needs, of both eras
    tools.py     declare_intent, get_budget, explain_last_call
    daemon.py    the daemon's API, as far as the session's token opens it
    main.py      lines in, lines out

An implementation of its own: the official SDK (``mcp`` 2.x) brings some 25 packages (an HTTP client and server,
pydantic, cryptography) for what is a loop over lines here, and this runs inside every agent. Its client is what the
tests of ``scripts/test-integrations`` speak to this server with.
"""
