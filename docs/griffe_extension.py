"""Griffe extension: renders docstrings in Keras style, for the API reference.

Docstrings are written to be read by `help` as they are, so four things that a page
needs are done here: doctests become code blocks, `first, second: ...` in a list of
arguments becomes one entry for each, `**kwargs` that a class hands on to its base
becomes the base's arguments, and names in backticks become links.
"""

import copy
import pathlib
import re

import griffe

PAGES = pathlib.Path(__file__).parent / "reference"
_ENTRY = re.compile(r" {4}(\*{0,2}\w+(?:,\s+\*{0,2}\w+)+):(.*)", re.DOTALL)
# Not left to griffe, which takes what stands before a colon for a type.
_RETURNS = re.compile(r"^Returns:\n((?: {4}.*(?:\n|$)|\n(?= {4}))+)", re.MULTILINE)
_CODE = re.compile(r"(?<![`\w\[])`([A-Za-z_][\w.]*)`(?![`\w\]])")


class KerasStyle(griffe.Extension):
    """Prepares the docstrings and signatures of a package once it is loaded."""

    def on_package(self, *, pkg, loader, **kwargs):
        links = documented_names(loader)
        items = list(items_of(pkg))
        classes = [item for item in items if item.is_class]
        # All are read before one is changed: classes inherit from each other.
        found = [constructor_arguments(cls) for cls in classes]
        for cls, arguments in zip(classes, found, strict=True):
            if arguments is not None:
                cls.set_member("__init__", constructor(cls, arguments))
        for item in items:
            if item.docstring is not None:
                own = {item.name, *(p.name for p in getattr(item, "parameters", ()))}
                item.docstring.value = rendered(item.docstring.value, links, own)


def items_of(parent):
    """The modules, classes, functions and attributes of `parent`, itself included."""
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from items_of(member)


def documented_names(loader):
    """Dict of what docstrings call a documented name to its identifier."""
    found = {}
    for page in sorted(PAGES.glob("*.md")):
        for identifier in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE):
            found[identifier] = identifier
            # Names that two packages share are linked by their full path alone.
            short = identifier.rsplit(".", 1)[-1]
            found[short] = None if short in found else identifier
            # The package exports what a subpackage documents, and the reverse.
            canonical = canonical_path(loader, identifier)
            for package in (canonical.rsplit(".", depth)[0] for depth in range(1, 4)):
                found.setdefault(f"{package}.{short}", identifier)
            found.setdefault(f"keras_betakd.{short}", identifier)
    return {name: identifier for name, identifier in found.items() if identifier}


def canonical_path(loader, identifier):
    return loader.modules_collection[identifier].canonical_path


def constructor_arguments(cls):
    """The parameters of `cls(...)`, or `None` if its constructor is unknown."""
    known = [c.members.get("__init__") for c in [cls, *cls.mro()]]
    known = [member for member in known if member is not None and member.is_function]
    return griffe.Parameters(*handed_on(known)) if known else None


def handed_on(constructors):
    """The parameters of the first; its `*args, **kwargs` are given to the next one."""
    first, *bases = constructors
    own = [resolved(p, first) for p in first.parameters]
    variadic = griffe.ParameterKind.var_keyword
    if not bases or all(p.kind is not variadic for p in own):
        return own
    inherited = handed_on(bases)
    positional = [p for p in own if p.kind is griffe.ParameterKind.var_positional]
    own = [p for p in own if p not in positional and p.kind is not variadic]
    names = {p.name for p in own}
    inherited = [p for p in inherited if p.name not in names]
    rest = [p for p in inherited if p.kind is variadic]
    inherited = [p for p in inherited if p.kind is not variadic]
    if positional:  # those of the base come first, and its own by name
        start = [p for p in own if p.name == "self"]
        own = [by_keyword(p) for p in own if p.name != "self"]
        return [*start, *inherited, *own, *rest]
    return [*own, *map(by_keyword, inherited), *rest]


def by_keyword(parameter):
    """The parameter, to be given by its name alone."""
    parameter = copy.copy(parameter)
    parameter.kind = griffe.ParameterKind.keyword_only
    return parameter


def resolved(parameter, function):
    """The parameter, with a constant's value in place of its name as default."""
    name = str(parameter.default)
    if name.isidentifier() and name in function.module.members:
        constant = function.module.members[name]
        constant = constant.final_target if constant.is_alias else constant
        if constant.is_attribute:
            parameter = copy.copy(parameter)
            parameter.default = constant.value
    return parameter


def constructor(cls, arguments):
    own = cls.members.get("__init__")
    if own is not None:
        own.parameters = arguments
        return own
    return griffe.Function("__init__", parameters=arguments, lineno=cls.lineno)


def rendered(text, links, own):
    """The docstring with code blocks, single entries and links."""
    # Another name for it would be an admonition, whose entries run together.
    text = text.replace("\nCall arguments:\n", "\nOther args: Call arguments:\n")
    text = _RETURNS.sub(lambda match: f"**Returns:**\n\n- {match[1].strip()}\n\n", text)
    lines = fenced(single_entries(text).split("\n"))
    return "\n".join(linked(lines, links, own))


def single_entries(text):
    """Repeats what `first, second: ...` says of several arguments for each of them."""
    entries = re.split(r"\n(?= {4}\S)", text)
    return "\n".join(_single(entry) for entry in entries)


def _single(entry):
    # An entry may be the last of its section: what follows is not repeated.
    entry, *rest = re.split(r"(?=\n\s*\n|\n\S)", entry, maxsplit=1)
    match = _ENTRY.fullmatch(entry)
    if match:
        names = re.split(r",\s+", match[1])
        entry = "\n".join(f"    {name}:{match[2]}" for name in names)
    return "".join([entry, *rest])


def fenced(lines):
    """Puts doctests into code blocks: a doctest ends at an empty line."""
    result, inside = [], False
    for line in lines:
        if not inside and line.lstrip().startswith(">>> "):
            indent = line[: len(line) - len(line.lstrip())]
            result.append(f"{indent}```pycon")
            inside = True
        elif inside and not line.strip():
            result.append(f"{indent}```")
            inside = False
        result.append(line)
    return [*result, f"{indent}```"] if inside else result


def linked(lines, links, own):
    """Links the names in backticks, but for those of the item itself."""

    def link(match):
        name = match[1]
        identifier = None if name in own else links.get(name)
        return f"[`{name}`][{identifier}]" if identifier else match[0]

    inside = False
    for line in lines:
        if line.lstrip().startswith("```"):
            inside = not inside
        yield line if inside else _CODE.sub(link, line)
