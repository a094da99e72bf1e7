"""The user's own objects by name, ``package.module:object``, as command lines and files give them.

Importing runs code, so a name comes from the user's own command line or file, never from the network.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from portend.errors import InvalidValue, PortendError

__all__ = ["import_object", "raised"]


def raised(error: BaseException) -> str:
    """Return what the user's code raised, and the line of it that did, as part of a message."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{text and ': '}{text}{at}"


def import_object(text: str, what: str, *, error: type[PortendError] = InvalidValue, hint: str = "") -> Any:
    """Return the object that ``package.module:object`` names; modules of the current folder are found too.

    Args:
        text: such as ``networks:Small`` or ``package.data:sets.train``.
        what: begins messages, such as "the network".
        error: what is raised. hint: ends the message where there is no such module.

    Raises:
        PortendError: there is no such module or object, or importing it fails; of the class ``error``.

    >>> import_object("math:pi", "the number")
    3.141592653589793
    """
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise error(f"{what} {text!r} cannot be imported: write package.module:object{hint}")
    try:
        found = _import(module)
    except Exception as failed:  # the user's code may raise anything
        if _absent(module, failed):
            raise error(
                f"{what} {text!r} cannot be imported: there is no module {failed.name!r}, neither installed nor in the "  # type: ignore[attr-defined]
                f"current folder {Path.cwd()}; run this where the module is, or add its folder to PYTHONPATH{hint}"
            ) from None
        raise error(f"{what} {text!r} cannot be imported: {raised(failed)}") from failed
    for part in name.split("."):
        if not hasattr(found, part):
            raise error(f"{what} {text!r} does not exist: {module} has no {name!r}")
        found = getattr(found, part)
    return found


def _import(module: str) -> Any:
    """Import a module; the current folder is looked through last, so that nothing there hides a package."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as failed:
        here = str(Path.cwd())
        if not _absent(module, failed) or here in sys.path:
            raise
        sys.path.append(here)
        importlib.invalidate_caches()
        return importlib.import_module(module)


def _absent(module: str, failed: Exception) -> bool:
    """Whether it is the module itself, or a package that it is in, that is not there."""
    name = failed.name if isinstance(failed, ModuleNotFoundError) else None
    return name is not None and (module == name or module.startswith(f"{name}."))
