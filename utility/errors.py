"""The errors that programs calling this package may catch; see `utility.system.errors`."""
from utility.system.errors import Unclear, UserError

__all__ = ["Unclear", "UserError"]
