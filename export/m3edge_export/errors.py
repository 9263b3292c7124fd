"""The one exception that only the export raises; the others are m3edge.errors'."""

from m3edge.errors import M3EdgeError


class ParityError(M3EdgeError, ArithmeticError):
    """An exported graph does not compute what the PyTorch model computes."""
