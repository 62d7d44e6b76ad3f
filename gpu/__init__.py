"""Sees the inference tier: GPUs through NVML, engines through adapters, where each session's KV cache is.

Imports none of the other packages. Nothing here loads NVML, ZeroMQ or an HTTP client before it is asked for: a host
without GPUs pays for none of it.

    gpu.nvml      devices, processes, energy, events (see gpu.nvml.sampler)
    gpu.engines   llama.cpp, vLLM, SGLang, LMCache behind one interface (see gpu.engines.base)
    gpu.ledger    where each session's KV cache is and what it cost (pure)
    gpu.policy    keep, offload or drop (pure)
"""
