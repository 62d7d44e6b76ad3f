"""The daemon of Corral, its API and its command line."""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    # looked up when asked for: it costs 20 ms, and `corral run` must not pay them on every call
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata

    try:
        return metadata.version("corral")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return "0+unknown"
