"""What the course's scripts call, and what one may add to them."""

import importlib

from configurator import InputError


def import_optional(package, why):
    """The module of an optional package. InputError says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(f"{why} needs a package: pip install {package.split('.')[0]}") from None
