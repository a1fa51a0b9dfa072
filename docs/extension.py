"""What pages are made with: blocks that run, and what the code itself says of its parts.

- Formulas become MathML, which browsers draw without a script from elsewhere.
- ``{run}`` shows a block and, below it, what it printed: commands, or with the argument ``python``
  Python. The blocks of a page run one after another, in an empty folder of the page's own in which
  `models` leads to the example models. The option ``exit`` is the code that the last command has to
  end with, ``lines`` how many lines are shown, and ``not-run`` the reason why it is only shown.
- ``{options-of} COMMAND``, ``{facts-of} METHOD`` and ``{all-of} commands`` (``precisions``,
  ``recipes``, ``targets``, ``passes``) are written from the parser, the class, or the registry, so
  that they are never out of date.

A page with shell or Python in any other block, a command or a method without a page, and a block
that fails are warnings, which `make docs` does not let pass.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import io
import os
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from onnxq.cli import main
from onnxq.cli.command import COMMANDS, parser
from onnxq.ir import available_passes
from onnxq.precision import available_precisions
from onnxq.recipe import built_in_recipes, load_recipe
from onnxq.targets import available_targets, load_target
from onnxq.tune import Tuner, available_methods

ROOT = Path(__file__).resolve().parents[1]
LOG = logging.getLogger(__name__)

_COMMANDS = {module.__name__.rpartition(".")[2]: module for module in COMMANDS}

_UNMARKED = re.compile(r"^```(sh|bash|console|shell|python|py)\b", re.MULTILINE)
_MARKUP = re.compile(r"([*_$<\[|\\])")


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx of the directives and checks."""
    app.add_directive("run", _Run)
    for kind in (_Command, _Method, _Table):
        app.add_directive(kind.called, kind)
    app.add_html_math_renderer("mathml", (_inline_formula, None), (_formula, None))
    app.connect("builder-inited", _every_part_has_a_page)
    app.connect("source-read", _every_block_is_marked)
    app.connect("autodoc-process-docstring", _without_substitutions)
    return {"parallel_read_safe": False, "parallel_write_safe": True}


def _inline_formula(writer: Any, node: nodes.math) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _formula(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f"<p>{tex2mathml(node.astext(), as_block=True)}</p>")
    raise nodes.SkipNode


def _every_part_has_a_page(app: Sphinx) -> None:
    for folder, names in (("commands", _COMMANDS), ("methods", available_methods())):
        for name in names:
            if not (Path(app.srcdir) / folder / f"{name}.md").is_file():
                LOG.warning(
                    "docs/%s/%s.md is missing: each of the %s has a page", *(folder, name, folder)
                )


def _every_block_is_marked(app: Sphinx, page: str, source: list[str]) -> None:
    for found in _UNMARKED.finditer(source[0]):
        LOG.warning("a block of %s is not marked; use {run}, with not-run", found[1], location=page)


def _without_substitutions(app: Sphinx, what: str, name: str, *rest: Any) -> None:
    """Keep |x| of formulas from being read as reStructuredText."""
    lines = rest[-1]
    lines[:] = [re.sub(r"(?<!`)\|", r"\\|", line) for line in lines]


class _Run(SphinxDirective):
    has_content = True
    optional_arguments = 1
    option_spec: ClassVar[Any] = {
        "exit": directives.nonnegative_int,
        "lines": directives.nonnegative_int,
        "not-run": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        language = (self.arguments or ["sh"])[0]
        code = "\n".join(self.content)
        shown: list[nodes.Node] = [_literal(code, language)]
        if reason := self.options.get("not-run"):
            return [*shown, *self.parse_text_to_nodes(f"*Not run here: {reason}.*")]
        page = self.env.docname
        state = self.env.temp_data.setdefault("onnxq", {})
        if not state:
            folder = Path(self.env.app.outdir).parent / "work" / page
            state.update(names={"__name__": "__main__"}, folder=_emptied(folder))
        try:
            with _inside(state["folder"]):
                if language == "python":
                    said = _python(code, state["names"])
                else:
                    said = _shell(code, self.options.get("exit", 0))
        except Exception as error:
            LOG.warning("a block failed: %r", error, location=self.get_location())
            return shown
        lines = said.rstrip().splitlines()
        if (most := self.options.get("lines")) is not None and len(lines) > most:
            lines = [*lines[:most], "..."] if most else []
        return [*shown, _literal("\n".join(lines), "text")] if lines else shown


def _literal(text: str, language: str) -> nodes.Node:
    return nodes.literal_block(text, text, language=language)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "models").symlink_to(ROOT / "models")
    return folder


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    kept = {name: os.environ.get(name) for name in ("ONNXQ_CACHE", "COLUMNS")}
    os.environ |= {"ONNXQ_CACHE": str(folder.parent / "cache"), "COLUMNS": "100"}
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _python(code: str, names: dict[str, Any]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "<documentation>", "exec", dont_inherit=True), names)
    return said.getvalue()


def _shell(code: str, expected: int) -> str:
    """Run commands; those of onnxq in this process, which has loaded it already.

    Raises:
        RuntimeError: the last one ended otherwise than expected.
    """
    said, ended = io.StringIO(), 0
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "onnxq" and not {"|", ">", "&&"} & set(words):
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                ended = main(words[1:])
        else:
            done = subprocess.run(line, shell=True, text=True, stdout=-1, stderr=-2, check=False)
            said.write(done.stdout)
            ended = done.returncode
    if ended != expected:
        raise RuntimeError(f"it ended with {ended}, not {expected}: {said.getvalue()[-2000:]}")
    return said.getvalue()


class _Described(SphinxDirective):
    """What is written in Markdown from what the code says."""

    called: ClassVar[str]
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(self.text(self.arguments[0]))

    def text(self, name: str) -> str:
        raise NotImplementedError


class _Command(_Described):
    called = "options-of"

    def text(self, name: str) -> str:
        (choices,) = (a.choices for a in parser()._actions if isinstance(a.choices, dict))
        own: argparse.ArgumentParser = choices[name]
        parts = [_plain(own.description or "")]
        examples = (own.epilog or "").split("examples:\n")
        shown, _, more = examples[-1].partition("\n\n")
        if shown.strip():
            parts.append(f"```text\n{textwrap.dedent(shown).rstrip()}\n```")
        parts.append(_plain(more.strip()))
        for group in own._action_groups:
            listed = [a for a in _actions(group) if a.help != argparse.SUPPRESS]
            if listed:
                title = _plain(str(group.title or "").capitalize())
                about = f": {_plain(group.description)}" if group.description else ""
                parts.append(f"**{title}**{about}")
                parts += [_option(action, own) for action in listed]
        if len(examples) > 1 and examples[0].strip():
            parts.append(f"```text\n{examples[0].rstrip()}\n```")
        return "\n\n".join(parts)


def _actions(group: argparse._ArgumentGroup) -> list[argparse.Action]:
    nested = [a for inner in group._mutually_exclusive_groups for a in inner._group_actions]
    found = {id(action): action for action in [*group._group_actions, *nested]}
    return list(found.values())


def _option(action: argparse.Action, own: argparse.ArgumentParser) -> str:
    formatter = own._get_formatter()
    value = (
        formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
        if (action.nargs != 0)
        else ""
    )
    if action.option_strings:
        flags = ", ".join(sorted(action.option_strings, key=len, reverse=True))
        title = f"{flags} {value}".strip()
    else:
        title = value
    return f"`{title}`\n: {_plain(formatter._expand_help(action))}"


class _Method(_Described):
    called = "facts-of"

    def text(self, name: str) -> str:
        kind = available_methods()[name]
        how = (
            "it computes how weights are rounded"
            if issubclass(kind, Tuner)
            else ("it turns the float model into an equal one first")
        )
        users = [
            f"`{precision.name}`"
            for precision in available_precisions().values()
            if name in (*precision.tuners, *precision.transformations)
        ]
        automatic = f"with `--methods auto` for {', '.join(users)}" if users else "by request only"
        options = [f for f in dataclasses.fields(kind) if f.init and f.repr]
        described = inspect.getdoc(kind) or ""
        text = re.split(r"^(?:Attributes|Raises):$", described, flags=re.MULTILINE)[0]
        parts = [f"*{_plain(kind.description.capitalize())}: {how}, {automatic}.*"]
        parts.append("What the code says of it:")
        parts.append("\n".join(f"> {_plain(line)}" for line in text.strip().splitlines()))
        if options:
            example = f"{name}{{{options[0].name}={options[0].default!r}}}"
            parts.append(f'Options, as in `--methods "{example}"`:')
            parts += [
                f"`{f.name}` (default `{f.default!r}`)\n: {_attribute(described, f.name)}"
                for f in options
            ]
        return "\n\n".join(parts)


def _attribute(docstring: str, name: str) -> str:
    found = re.search(rf"^    {name}: (.*(?:\n        .*)*)", docstring, re.MULTILINE)
    return _plain(" ".join(found[1].split())) if found else ""


class _Table(_Described):
    called = "all-of"

    def text(self, name: str) -> str:
        return _TABLES[name]()


def _rows(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [headings, ["---"] * len(list(headings)), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines
    )


def _commands() -> str:
    return _rows(
        ("command", "what it does"),
        ((f"[onnxq {name}]({name}.md)", _plain(module.HELP)) for name, module in _COMMANDS.items()),
    )


def _precisions() -> str:
    return _rows(
        ("precision", "what it is", "bits of weights", "of activations", "methods with `auto`"),
        (
            (
                f"`{name}`",
                _plain(kind.description),
                f"{kind.weight_bits:g}",
                str(kind.activation_bits),
                ", ".join(f"`{m}`" for m in (*kind.transformations, *kind.tuners)),
            )
            for name, kind in available_precisions().items()
        ),
    )


def _recipes() -> str:
    return _rows(
        ("recipe", "what it does"),
        ((f"`{name}`", _plain(load_recipe(name).description)) for name in built_in_recipes()),
    )


def _targets() -> str:
    found = {name: load_target(name) for name in available_targets()}
    return _rows(
        ("target", "what it is", "provider", "precisions of a search", "measured"),
        (
            (
                f"`{name}`",
                _plain(target.description),
                target.provider,
                ", ".join(target.precisions),
                _plain(target.measured) or "no",
            )
            for name, target in found.items()
        ),
    )


def _passes() -> str:
    return _rows(
        ("pass", "what it does", "by default", "numerics"),
        (
            (
                f"`{name}`",
                _plain((inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")),
                "yes" if kind.default else "",
                kind.numerics,
            )
            for name, kind in sorted(available_passes().items())
        ),
    )


_TABLES: dict[str, Callable[[], str]] = {
    "commands": _commands,
    "precisions": _precisions,
    "recipes": _recipes,
    "targets": _targets,
    "passes": _passes,
}


def _plain(text: str) -> str:
    """Text in Markdown, in which only backticks mean something."""
    parts = text.replace("``", "`").split("`")
    return "`".join(_MARKUP.sub(r"\\\1", p) if at % 2 == 0 else p for at, p in enumerate(parts))
