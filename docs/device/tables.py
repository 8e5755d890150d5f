"""Write the tables of the pages beside this file from the code: the settings, and what each preset sets.

Run ``python docs/device/tables.py`` after changing either; a test fails while a page is behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pi_agent.device.config import RANGES, SETTINGS, Setting
from pi_agent.device.presets import PRESETS
from pi_agent.device.toml_file import literal

HERE = Path(__file__).parent
START, END = "<!-- table -->\n", "<!-- end -->"


def pages() -> Iterator[tuple[Path, str]]:
    """Every page that holds a table, and its text as it should be."""
    yield HERE / "config.md", with_table((HERE / "config.md").read_text(encoding="utf-8"), settings())
    for name in PRESETS:
        path = HERE / f"preset-{name}.md"
        yield path, with_table(path.read_text(encoding="utf-8"), preset(name))


def with_table(page: str, lines: Iterator[str]) -> str:
    before, _, rest = page.partition(START)
    return before + START + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


def settings() -> Iterator[str]:
    yield "| setting | default | what it is | variable |"
    yield "|---|---|---|---|"
    for setting in SETTINGS:
        yield f"| `{setting.name}` | `{literal(setting.default)}` | {_meaning(setting)} | `{setting.variable}` |"


def preset(name: str) -> Iterator[str]:
    if not PRESETS[name]:
        yield "Nothing: the built-in values are for this server."
        return
    yield "| setting | value |"
    yield "|---|---|"
    for key, value in PRESETS[name].items():
        yield f"| `{key}` | `{literal(value)}` |"


def _meaning(setting: Setting) -> str:
    choices = f" (one of {', '.join(f'`{choice}`' for choice in setting.choices)})" if setting.choices else ""
    low, high = RANGES.get(setting.name, (0, 0))
    limits = f" ({low} to {high})" if high and f"{high}" not in setting.help else ""
    return (setting.help + choices + limits).replace("|", "\\|")


if __name__ == "__main__":
    for path, text in pages():
        path.write_text(text, encoding="utf-8")
