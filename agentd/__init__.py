"""The daemon of Corral, its API and its command line."""

from importlib import metadata

try:
    __version__ = metadata.version("corral")
except metadata.PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0+unknown"
