"""Stocks that are used up: pure arithmetic (``stock``, ``price``), what a call has been charged (``meter``), and the
live accounts of tenants and sessions (``account``, ``keeper``)."""
