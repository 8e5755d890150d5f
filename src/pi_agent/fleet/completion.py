"""Completion files for bash, zsh and fish from a tree of commands: plain words in a file, no Python at each TAB.

Only where a query is typed, the program is asked what may stand there (``PROGRAM suggest``): its fields, their values,
and the names of devices, from the fleet that the options on the line name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pi_agent.fleet.command_tree import ASKED, FILES, FOLDERS, Command, Option

BASH = """\
# bash completion for {program}: made from its --help
_{function}() {{
    local word path= words= globals=() i cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}}
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
{asked}
{words}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -F _{function} {program}
"""
# A word with a colon is several to bash (COMP_WORDBREAKS), and what is offered stands for the last of them.
BASH_ASK = """\
_{function}_ask() {{
    local typed=${{COMP_LINE:0:COMP_POINT}}
    typed=${{typed##* }}
    local IFS=$'\\n' before=${{typed%"${{typed##*:}}"}}
    COMPREPLY=($("${{COMP_WORDS[0]}}" "${{globals[@]}}" suggest -- "$typed" 2>/dev/null))
    [[ $COMP_WORDBREAKS != *:* ]] || COMPREPLY=("${{COMPREPLY[@]#"$before"}}")
    [[ ${{COMPREPLY[0]}} != *: ]] || compopt -o nospace
}}
"""
ZSH_ASK = """\
_{function}_ask() {{
    local -a found fields
    found=(${{(f)"$({program} $globals suggest -- "$PREFIX" 2>/dev/null)"}})
    fields=(${{(M)found:#*:}})
    found=(${{found:#*:}})
    compadd -U -S '' -a fields
    compadd -U -a found
}}
"""
FISH_ASK = """\
function __{function}_ask
    set -l globals
    set -l words (commandline -opc)
    set -e words[1]
    while set -q words[1]; and string match -q -- '--*' $words[1]
        set -a globals $words[1]
        if not string match -q -- '*=*' $words[1]
            set -a globals $words[2]
            set -e words[1]
        end
        set -e words[1]
    end
    {program} $globals suggest -- (commandline -ct) 2>/dev/null
end
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
    globals_ = sorted(f"/{name}" for option in tree.options if _has_value(option) for name in option.names)
    asked = [f'"{_path(command)}"' for command in everything if _is_asked(command)]
    ask = BASH_ASK.format(function=_function(program)) if asked else ""
    takes = [f'{" | ".join(globals_)}) globals+=($word "${{COMP_WORDS[++i]}}") ;;'] if globals_ and asked else []
    others = [one for one in valued if not (takes and one in globals_)]
    takes += [f"{' | '.join(others)}) ((i++)) ;;"] if others else []
    return ask + BASH.format(
        program=program,
        function=_function(program),
        asked=f"        {' | '.join(asked)}) [[ $cur == -* && $cur != -*:* ]] || {{ _{_function(program)}_ask; return; }} ;;&"
        if asked
        else "",
        takes_value="\n".join(f"            {line}" for line in takes),
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
    asked = any(map(_is_asked, tree.everything()))
    ask = [ZSH_ASK.format(function=_function(program), program=program).rstrip()] if asked else []
    return "\n".join([f"#compdef {program}", *ask, *functions, f'_{_function(program)} "$@"', ""])


def _zsh_function(program: str, command: Command) -> Iterator[str]:
    name = "_" + "_".join([_function(program), *map(_function, command.path)])
    rows = [_zsh_option(option) for option in command.options]
    rows += [_zsh_operand(program, option) for option in command.operands]
    if not command.commands:
        yield from [f"{name}() {{", "    _arguments " + " \\\n        ".join(rows), "}"]
        return
    yield from [f"{name}() {{", "    local curcontext=$curcontext state line", "    local -a commands"]
    yield from [] if command.path else ["    local -A opt_args"]
    yield "    _arguments -C " + " \\\n        ".join([*rows, "'1:command:->command'", "'*::argument:->argument'"])
    yield from ["    case $state in", "    command)", "        commands=("]
    yield from (f"            '{below.path[-1]}:{_zsh_text(below.help)}'" for below in command.commands)
    yield from ["        )", "        _describe command commands ;;", "    argument)"]
    yield from [] if command.path else ['        local -a globals=("${(@kv)opt_args}")']
    yield "        case $line[1] in"
    yield from (f"        {below.path[-1]}) {name}_{_function(below.path[-1])} ;;" for below in command.commands)
    yield from ["        esac ;;", "    esac", "}"]


def _zsh_operand(program: str, option: Option) -> str:
    if option.value in ASKED:
        return f"'*:{_zsh_text(option.value)}:_{_function(program)}_ask'"
    return f"':{_zsh_text(option.value)}: :{_zsh_kind(option)}'"


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
    asked = any(map(_is_asked, tree.everything()))
    lines = [FISH_ASK.format(function=_function(program), program=program).rstrip()] if asked else []
    lines.append(f"complete -c {program} -f")
    for command in tree.everything():
        where = _fish_condition(command)
        for below in command.commands:
            lines.append(f"complete -c {program}{where} -a {below.path[-1]} -d '{_quoted(below.help)}'")
        if _is_asked(command):
            lines.append(f"complete -c {program}{where} -a '(__{_function(program)}_ask)'")
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


def _is_asked(command: Command) -> bool:
    return any(operand.value in ASKED for operand in command.operands)


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
