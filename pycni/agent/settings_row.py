"""One row of the table of settings. Pure."""

from __future__ import annotations

from typing import NamedTuple

from pycni.agent import settings_kinds as kinds


class Setting(NamedTuple):
    """One row of the table. ``name`` is the flag; the variable is ``PYCNID_`` + NAME with underscores."""

    name: str
    kind: kinds.Kind
    default: object
    help: str
    unit: str = ""
    flannel: bool = False
    """Flannel has it under the same name, so ``FLANNELD_NAME`` is read too."""
    secret: bool = False
    hidden: bool = False
    """Not in the help text: for tests of this project."""
    shown_default: str = ""
    aliases: tuple[str, ...] = ()
    """Names other programs have for it; accepted everywhere."""

    @property
    def field(self) -> str:
        """Attribute of ``Settings``."""
        return self.name.replace("-", "_")

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables, the one that counts more first."""
        fields = [name.upper().replace("-", "_") for name in (self.name, *self.aliases)]
        ours = tuple(f"PYCNID_{name}" for name in fields)
        return ours + tuple(f"FLANNELD_{name}" for name in fields) if self.flannel else ours
