"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the thing and the way out; commands print it without a traceback and exit 2.
    """
