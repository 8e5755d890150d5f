"""Completion files for bash, zsh and fish from a tree of commands: plain words in a file, no Python at each TAB."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from command_tree import FILES, FOLDERS, Command, Option

BASH = """\
# bash completion for {program}: made from its --help
_{function}() {{
    local word path= words= i cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}}
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        case "$path/$word" in
{takes_value}
{commands}
        esac
    done
    case "$path/$prev" in
{values}
    esac
    case "$path" in
{words}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -F _{function} {program}
"""


def files(program: str, tree: Command) -> dict[str, str]:
    """The text of each completion file, by the name under which its shell looks for it."""
    return {
        f"bash-completion/completions/{program}": bash(program, tree),
        f"zsh/vendor-completions/_{program}": zsh(program, tree),
        f"fish/vendor_completions.d/{program}.fish": fish(program, tree),
    }


def write(folder: Path, program: str, tree: Command) -> None:
    for name, text in files(program, tree).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def bash(program: str, tree: Command) -> str:
    everything = list(tree.everything())
    known = [(_path(command), option) for command in everything for option in command.options]
    valued = sorted({f"{path}/{name}" for path, option in known if _has_value(option) for name in option.names})
    return BASH.format(
        program=program,
        function=_function(program),
        takes_value=f"            {' | '.join(valued)}) ((i++)) ;;" if valued else "",
        commands="\n".join(
            f"            {_path(command)}) path={_path(command)} ;;" for command in everything if command.path
        ),
        values="\n".join(line for path, option in known for line in _bash_value(path, option)),
        words="\n".join(
            f'        "{_path(command)}") words="{" ".join(_words(command))}" ;;' for command in everything
        ),
    )


def _bash_value(path: str, option: Option) -> Iterator[str]:
    if not _has_value(option):
        return
    pattern = " | ".join(f"{path}/{name}" for name in option.names)
    if option.choices:
        yield f'        {pattern}) COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$cur")); return ;;'
    elif option.value in FILES + FOLDERS:
        kind = "-d" if option.value in FOLDERS else "-f"
        yield f'        {pattern}) compopt -o filenames; COMPREPLY=($(compgen {kind} -- "$cur")); return ;;'
    else:
        yield f"        {pattern}) COMPREPLY=(); return ;;"


def zsh(program: str, tree: Command) -> str:
    functions = [line for command in tree.everything() for line in _zsh_function(program, command)]
    return "\n".join([f"#compdef {program}", *functions, f'_{_function(program)} "$@"', ""])


def _zsh_function(program: str, command: Command) -> Iterator[str]:
    name = "_" + "_".join([_function(program), *map(_function, command.path)])
    rows = [_zsh_option(option) for option in command.options]
    rows += [f"'{_zsh_text(option.value)}: :{_zsh_kind(option)}'".replace("'", "':", 1) for option in command.operands]
    if not command.commands:
        yield from [f"{name}() {{", "    _arguments " + " \\\n        ".join(rows), "}"]
        return
    yield from [f"{name}() {{", "    local curcontext=$curcontext state line", "    local -a commands"]
    yield "    _arguments -C " + " \\\n        ".join([*rows, "'1:command:->command'", "'*::argument:->argument'"])
    yield from ["    case $state in", "    command)", "        commands=("]
    yield from (f"            '{below.path[-1]}:{_zsh_text(below.help)}'" for below in command.commands)
    yield from ["        )", "        _describe command commands ;;", "    argument)", "        case $line[1] in"]
    yield from (f"        {below.path[-1]}) {name}_{_function(below.path[-1])} ;;" for below in command.commands)
    yield from ["        esac ;;", "    esac", "}"]


def _zsh_option(option: Option) -> str:
    value = f":{_zsh_text(option.value)}:{_zsh_kind(option)}" if _has_value(option) else ""
    text = f"[{_zsh_text(option.help)}]{value}'"
    if len(option.names) == 1:
        return f"'{option.names[0]}{text}"
    return f"'({' '.join(option.names)})'{{{','.join(option.names)}}}'{text}"


def _zsh_kind(option: Option) -> str:
    if option.choices:
        return f"({' '.join(option.choices)})"
    return {"FILE": "_files", "DIR": "_files -/"}.get(option.value, "")


def fish(program: str, tree: Command) -> str:
    lines = [f"complete -c {program} -f"]
    for command in tree.everything():
        where = _fish_condition(command)
        for below in command.commands:
            lines.append(f"complete -c {program}{where} -a {below.path[-1]} -d '{_quoted(below.help)}'")
        lines += [f"complete -c {program}{where}{_fish_option(option)}" for option in command.options]
    return "\n".join(lines) + "\n"


def _fish_condition(command: Command) -> str:
    words = [f"__fish_seen_subcommand_from {word}" for word in command.path]
    if command.commands:
        words.append("not __fish_seen_subcommand_from " + " ".join(below.path[-1] for below in command.commands))
    return f" -n '{'; and '.join(words)}'" if words else ""


def _fish_option(option: Option) -> str:
    flags = "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in option.names)
    if option.choices:
        flags += f" -x -a '{' '.join(option.choices)}'"
    elif option.value in FILES + FOLDERS:
        flags += " -r -F"
    elif option.value:
        flags += " -x"
    return f"{flags} -d '{_quoted(option.help)}'"


def _words(command: Command) -> Iterator[str]:
    yield from (below.path[-1] for below in command.commands)
    for option in command.options:
        yield from option.names
    for operand in command.operands:
        yield from operand.choices


def _has_value(option: Option) -> bool:
    return bool(option.value or option.choices)


def _path(command: Command) -> str:
    return "".join("/" + word for word in command.path)


def _function(word: str) -> str:
    return word.replace("-", "_")


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _zsh_text(text: str) -> str:
    return text.replace("'", "").replace("[", "(").replace("]", ")").replace(":", "")
