"""Manual pages: the prose of ``docs/man``, with what ``--help`` and the table of settings say put in where it is asked for.

A page is Markdown; ``<!-- commands -->``, ``<!-- options -->`` and ``<!-- settings -->`` stand for what is made here,
and the title line that roff wants is put before it. ``go-md2man`` makes roff of it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator

from pi_agent.device.config import Setting
from pi_agent.fleet.command_tree import Command, Option


def page(name: str, section: str, text: str, *, version: str, date: int, parts: dict[str, str]) -> str:
    """The page as ``go-md2man`` takes it; ``date`` are epoch seconds. Raises KeyError for a part that there is not."""
    day = datetime.datetime.fromtimestamp(date, datetime.UTC).date().isoformat()
    title = f'% {name.upper()} {section} "{day}" "pi-agent {version}" "pi-agent"'
    lines = [parts[line[5:-4].strip()] if line.startswith("<!-- ") else line for line in text.splitlines()]
    return "\n".join([title, "", *lines, ""])


def parts(tree: Command | None, settings: Iterable[Setting]) -> dict[str, str]:
    """What the pages may ask for. ``tree`` is the page's program, if it is about one."""
    made = {"settings": "\n".join(line for setting in settings for line in _setting(setting))}
    if tree:
        made["options"] = "\n".join(_options(tree.options))
        made["commands"] = "\n".join(
            line for command in tree.everything() if command.path for line in _command(command)
        )
    return made


def _command(command: Command) -> Iterator[str]:
    if command.commands:
        return  # those below it say it all
    usage = [f"*{_plain(operand.value or '|'.join(operand.choices))}*" for operand in command.operands]
    # Three signs: go-md2man makes a section of two, and a subsection of three.
    yield from [f"### **{' '.join(command.path)}** {' '.join(usage)}".rstrip(), "", _sentence(command.help), ""]
    yield from _options(option for option in command.options if "--help" not in option.names)
    for block in command.epilog.split("\n\n") if command.epilog else ():
        if block.startswith("example:"):
            yield from ["Example:", "", *(f"    {line.strip()}" for line in block[8:].strip().splitlines()), ""]
        else:
            yield from [_sentence(_plain(block)), ""]


def _options(options: Iterable[Option]) -> Iterator[str]:
    for option in options:
        value = option.value or "|".join(option.choices)
        names = ", ".join(f"**{name}**" for name in option.names)
        yield from [names + (f" *{_plain(value)}*" if value else ""), f": {_sentence(_plain(option.help))}", ""]


def _setting(setting: Setting) -> Iterator[str]:
    choices = f" One of {', '.join(f'**{_plain(choice)}**' for choice in setting.choices)}." if setting.choices else ""
    default = f"Default: **{_plain(_toml(setting.default))}**." if setting.default != "" else "Default: none."
    yield from [f"**{setting.name}** ({_kind(setting.default)})"]
    yield from [
        f": {_sentence(_plain(setting.help))}{choices} {default} Environment: **{_plain(setting.variable)}**.",
        "",
    ]


def _kind(default: object) -> str:
    return "true or false" if isinstance(default, bool) else "number" if isinstance(default, int) else "text"


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def _plain(text: str) -> str:
    """Words as they are: Markdown would take stars, underscores and angle brackets out of them."""
    return "".join("\\" + character if character in "*_<>`[]" else character for character in text)
