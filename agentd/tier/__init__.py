"""The inference tier, live: GPUs sampled and charged, engines watched, each session's KV cache followed and moved.

    gpus.py         NVML on a beat; whose processes use which GPU, and what that is charged to
    engines.py      one watcher for each engine of the configuration
    book.py         where each session's KV cache is
    coordinator.py  tool calls and turns in, policy decisions and moves out
    effects.py      what a decision does to an engine, and where it is put on record
    tier.py         all of it, as the daemon holds it
    view.py         the picture that the API, the metrics and the command line show

The rules are ``gpu.policy``'s and pure; nothing here is on the path of a tool call: calls are followed through the same
subscription that a dashboard has.
"""
