"""Dockerfiles without Docker: read into stages, their build context as .dockerignore leaves it, and
their steps played in a folder.

Only what k8s/image/Dockerfile uses is understood: no heredocs, no ONBUILD, no ADD. What is played
shares one root for all stages, which works as long as stages do not write to the same place.
"""

import json
import os
import posixpath
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::([-+])([^}]*))?\})")
_CONTAINER_PATH = re.compile(r"(?<![\w./}])/(opt|src|package|app|cache)(?=[/\s\"':;]|$)")


@dataclass(frozen=True)
class Step:
    """One instruction: its keyword in capitals, and the rest with its lines joined."""

    keyword: str
    value: str

    def words(self) -> list[str]:
        """Return the value's words: of its JSON form, or between blanks."""
        return json.loads(self.value) if self.value.startswith("[") else self.value.split()

    def pairs(self) -> dict[str, str]:
        """Return what an ARG, ENV or LABEL sets."""
        found = re.findall(r'([\w.]+)(?:=("(?:[^"\\]|\\.)*"|\S*))?', self.value)
        return {name: value.strip('"') for name, value in found}


@dataclass(frozen=True)
class Stage:
    """A stage: what it starts from, its name, its steps."""

    base: str
    name: str
    steps: list[Step] = field(default_factory=list)

    def of(self, keyword: str) -> list[Step]:
        """Return the steps with a keyword."""
        return [step for step in self.steps if step.keyword == keyword]


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """Return a text with `$A`, `${A}`, `${A:-other}` and `${A:+other}` replaced."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        how = found[3]
        other = found[4]
        known = variables.get(name, "")
        return {None: known, "-": known or other, "+": other if known else ""}[how]

    return _VARIABLE.sub(value, text)


def read_steps(text: str) -> list[Step]:
    """Return the instructions of a Dockerfile, lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [
        Step(keyword.upper(), rest.strip())
        for keyword, _, rest in (line.strip().partition(" ") for line in joined.splitlines())
        if keyword
    ]


def read_stages(text: str) -> list[Stage]:
    """Return the stages of a Dockerfile, with the arguments above the first one put into what they
    start from.
    """
    stages: list[Stage] = []
    above: dict[str, str] = {}
    for step in read_steps(text):
        if step.keyword == "FROM":
            base, _, name = step.value.partition(" AS ")
            stages.append(Stage(expanded(base, above), name or str(len(stages))))
        elif stages:
            stages[-1].steps.append(step)
        else:
            above |= step.pairs()
    return stages


class Ignored:
    """What a .dockerignore leaves out of the build context: the last pattern that a path, or a
    folder above it, matches decides.

    Source: https://docs.docker.com/build/concepts/context/#dockerignore-files
    """

    def __init__(self, text: str) -> None:
        written = [
            line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")
        ]
        self._patterns = [
            (not line.startswith("!"), re.compile(_regex(_clean(line.removeprefix("!")))))
            for line in written
        ]

    def __call__(self, path: str) -> bool:
        """Return whether a path, relative to the context, is left out."""
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        decided = [
            ignores
            for ignores, pattern in self._patterns
            if any(pattern.fullmatch(name) for name in above)
        ]
        return bool(decided) and decided[-1]


def _clean(pattern: str) -> str:
    return posixpath.normpath(pattern.strip()).lstrip("/")


def _regex(pattern: str) -> str:
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", pattern)
    return "".join(
        known.get(piece) or (piece if piece.startswith("[") else re.escape(piece))
        for piece in pieces
    )


def context_files(root: Path, source: str, ignored: Ignored) -> Iterable[Path]:
    """Yield the files, relative to the context's root, that a COPY of a file or folder takes."""
    found = [root / source] if (root / source).is_file() else (root / source).rglob("*")
    for file in sorted(found):
        if file.is_file() and not ignored(file.relative_to(root).as_posix()):
            yield file.relative_to(root)


class Variables:
    """What ARG and ENV have set at a point of a stage.

    Args:
        environment: Of the stage below.
        given: `--build-arg`, which replaces what an ARG says.
        moved: Applied to each value, where paths are to lie elsewhere.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        given: Mapping[str, str],
        moved: Callable[[str], str] = str,
    ) -> None:
        self.environment = dict(environment)
        self.arguments = dict[str, str]()
        self._given = given
        self._moved = moved

    def take(self, step: Step) -> None:
        """Take an ARG or ENV."""
        known = self.known()
        values = {name: expanded(self._moved(value), known) for name, value in step.pairs().items()}
        if step.keyword == "ARG":
            self.arguments |= {name: self._given.get(name, value) for name, value in values.items()}
        else:
            self.environment |= values

    def known(self) -> dict[str, str]:
        """Return what a RUN sees."""
        return self.arguments | self.environment


class Played:
    """Stages whose steps were run below a folder in place of an image: paths in them are moved
    there.

    Args:
        root: What stands for the image's root.
        context: The build context.
        ignored: What is not in it.
        python: The interpreter that stands for the base image's.
    """

    def __init__(self, root: Path, context: Path, ignored: Ignored, python: str) -> None:
        self.root = root
        self.workdir = root
        self._context = context
        self._ignored = ignored
        (tools := root / "usr/local/bin").mkdir(parents=True)
        (tools / "python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        (tools / "python").chmod(0o755)
        self._environments: dict[str, dict[str, str]] = {}
        self._lowest = {"PATH": f"{tools}:/usr/bin:/bin"}

    def play(
        self, stage: Stage, given: Mapping[str, str] = MappingProxyType({}), run: bool = True
    ) -> dict[str, str]:
        """Play a stage with some `--build-arg`, and return its environment.

        `run` is false where its commands must be root in an image of their own.
        """
        variables = Variables(self._environments.get(stage.base, self._lowest), given, self.moved)
        for step in stage.steps:
            if step.keyword in ("ARG", "ENV"):
                variables.take(step)
            elif step.keyword == "WORKDIR":
                self.workdir = Path(self.moved(step.value))
                self.workdir.mkdir(parents=True, exist_ok=True)
            elif step.keyword == "COPY":
                self._copy(step.words())
            elif step.keyword == "RUN" and run:
                done = self.command(["/bin/sh", "-c", self.moved(step.value)], variables.known())
                assert done.returncode == 0, f"{step.value}\n{done.stdout}{done.stderr}"
        self._environments[stage.name] = variables.environment
        return variables.environment

    def command(
        self, command: list[str], environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the working folder, with nothing of this process's environment but how
        it reaches package indexes.
        """
        kept = {
            name: value
            for name, value in os.environ.items()
            if re.match(r"(?i)(PIP_|SSL_|TMPDIR$|\w*_proxy$)", name)
        }
        return subprocess.run(
            command,
            cwd=self.workdir,
            env=kept | dict(environment),
            capture_output=True,
            text=True,
            check=False,
        )

    def moved(self, text: str) -> str:
        """Return a text with the image's paths below the folder."""
        return _CONTAINER_PATH.sub(lambda found: f"{self.root}{found[0]}", text)

    def _copy(self, words: list[str]) -> None:
        from_stage = any(word.startswith("--from=") for word in words)
        *sources, written = [word for word in words if not word.startswith("--")]
        target = self.root if written == "/" else self.workdir / self.moved(written)
        for source in sources:
            if not from_stage:
                self._copy_from_context(source, target, into=written.endswith("/"))
            elif (there := Path(self.moved(source.rstrip("/")))) != target:
                shutil.copytree(there, target, symlinks=True, dirs_exist_ok=True)

    def _copy_from_context(self, source: str, target: Path, into: bool) -> None:
        files = list(context_files(self._context, source, self._ignored))
        assert files, f"COPY {source}: nothing of it is in the build context"
        for file in files:
            below = (
                file.relative_to(source)
                if (self._context / source).is_dir()
                else Path(file.name if into else "")
            )
            (target / below).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self._context / file, target / below)
