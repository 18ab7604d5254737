"""The table of settings as text: the help on the terminal and docs/configuration.md. Pure."""

from __future__ import annotations

from pycni.agent.settings import TABLE
from pycni.agent.settings_file import IGNORED, REFUSED
from pycni.agent.settings_row import Setting


def default_text(row: Setting) -> str:
    """A setting's default as one would write it; "" for none."""
    if row.shown_default:
        return row.shown_default
    if isinstance(row.default, bool):
        return "true" if row.default else "false"
    if isinstance(row.default, tuple):
        return ",".join(str(item) for item in row.default)
    return "" if row.default is None else str(row.default)


def help_text() -> str:
    """What ``pycnid --help`` prints after its usage line."""
    lines = ["settings (flag, else variable, else configuration file, else default):", ""]
    lines += _help_row("config", "path", "", "Configuration file, TOML or JSON.", "PYCNID_CONFIG")
    for row in TABLE:
        if not row.hidden:
            default = f"{default_text(row)} {row.unit}".strip()
            label = row.kind.label.replace("\\|", "|")
            lines += _help_row(row.name, label, default, row.help, ", ".join(row.variables))
    return "\n".join(lines) + "\n"


def _help_row(name: str, label: str, default: str, text: str, variables: str) -> list[str]:
    shown = f" (default: {default})" if default else ""
    return [f"  --{name} <{label}>{shown}", f"        {text}", f"        {variables}"]


def settings_markdown() -> str:
    """The settings as a table of docs/configuration.md."""
    lines = ["| setting | type | default | unit | variables | meaning |", "|---|---|---|---|---|---|"]
    for row in TABLE:
        if not row.hidden:
            default = f"`{default_text(row)}`" if default_text(row) and not row.shown_default else ""
            variables = ", ".join(f"`{name}`" for name in row.variables)
            cells = (
                f"`{row.name}`",
                row.kind.label,
                row.shown_default or default,
                row.unit,
                variables,
                row.help,
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def flannel_markdown() -> str:
    """Flannel's flags that pycni has not, as a table of docs/configuration.md."""
    lines = ["| flannel's flag | here | why |", "|---|---|---|"]
    lines += [f"| `{name}` | ignored, one warning | {why} |" for name, why in IGNORED.items()]
    lines += [f"| `{name}` | refused | {why} |" for name, why in REFUSED.items()]
    return "\n".join(lines) + "\n"
