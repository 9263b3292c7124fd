"""The exceptions m3edge raises for what is wrong outside the caller's arguments.

    M3EdgeError
    ├── FormatError (ValueError)         a file or folder is not what it should be: names it and the way out
    ├── ModelMismatchError (ValueError)  an index is used with a model it was not built with
    ├── IndexLockedError                 another process is writing to the index: names it
    ├── ProviderError (RuntimeError)     the requested hardware backend is not there, or is not what really runs
    └── CancelledError                   the caller asked a long job to stop

A wrong argument is a plain ValueError or TypeError; a missing optional package is an ImportError with the pip command.
"""


class M3EdgeError(Exception):
    """Base of every error that m3edge defines."""


class FormatError(M3EdgeError, ValueError):
    """A file or folder is damaged, incomplete, from a newer version, or not of the expected kind."""


class ModelMismatchError(M3EdgeError, ValueError):
    """An index was opened or searched with vectors of another model than it was built with."""


class IndexLockedError(M3EdgeError):
    """Another process, or another Index on the same folder, is writing."""


class ProviderError(M3EdgeError, RuntimeError):
    """A hardware backend is not installed, not usable here, or was silently replaced by another."""


class CancelledError(M3EdgeError):
    """A long job stopped because its `cancel` event was set."""
