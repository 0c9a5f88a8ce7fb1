"""The reading of Dockerfiles and .dockerignore that test_image.py judges by, against what Docker's
documentation says.
"""

import pytest

from tests.manifests.dockerfiles import Ignored, Variables, expanded, read_stages


@pytest.mark.parametrize(
    ("patterns", "path", "left_out"),
    [
        # the examples of Docker's documentation
        ("*/temp*", "somedir/temporary.txt", True),
        ("*/temp*", "somedir/temp", True),
        ("*/temp*", "somedir/subdir/temporary.txt", False),
        ("*/*/temp*", "somedir/subdir/temporary.txt", True),
        ("temp?", "tempa", True),
        ("temp?", "temp", False),
        ("**/*.go", "main.go", True),
        ("**/*.go", "a/b/main.go", True),
        ("*.md\n!README.md", "README.md", False),
        ("*.md\n!README.md", "CHANGES.md", True),
        ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", True),
        ("*.md\nREADME-secret.md\n!README*.md", "README-secret.md", False),
        ("# comment\n/foo/bar/", "foo/bar/baz", True),
        ("*\n!src", "src/deep/file.py", False),
        ("*\n!src", "srcs/file.py", True),
        ("**/*.py[co]", "a/b.pyc", True),
        ("**/*.py[co]", "a/b.py", False),
    ],
)
def test_patterns_are_read_as_docker_reads_them(patterns: str, path: str, left_out: bool) -> None:
    """The last pattern that a path or a folder above it matches decides, `*` stops at slashes and
    `**` does not.
    """
    assert Ignored(patterns)(path) is left_out


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$A/b", "1/b"),
        ("${A}", "1"),
        ("${NONE}", ""),
        ("${NONE:-other}", "other"),
        ("${A:-other}", "1"),
        ("${A:+other}", "other"),
        ("${NONE:+o}", ""),
    ],
)
def test_variables_are_replaced(text: str, value: str) -> None:
    """In each of the forms that a Dockerfile may use."""
    assert expanded(text, {"A": "1"}) == value


def test_stages_are_read() -> None:
    """Lines are joined, comments between them left out, and arguments above the first stage known
    to what stages start from.
    """
    text = (
        "# a\nARG V=3.11\nFROM python:${V} AS build\nRUN one \\\n# b\n    && two\n"
        'from build\nCMD ["a b", "c"]\n'
    )
    build, last = read_stages(text)
    assert (build.base, build.name, last.base) == ("python:3.11", "build", "build")
    assert [(step.keyword, step.value) for step in build.steps] == [("RUN", "one     && two")]
    assert last.of("CMD")[0].words() == ["a b", "c"]


def test_arguments_are_given_and_environments_are_not() -> None:
    """`--build-arg` replaces what an ARG says, an ENV of the same name stays, and both may use
    those before them.
    """
    variables = Variables({"PATH": "/bin"}, {"MODEL": "m", "HOME": "given"})
    (stage,) = read_stages(
        'FROM x\nARG MODEL=""\nARG HOME\n'
        "ENV HOME=/tmp \\\n    PATH=/opt:${PATH} \\\n    HUB=${MODEL:+inside}\n"
    )
    for step in stage.steps:
        variables.take(step)
    assert variables.environment == {"PATH": "/opt:/bin", "HOME": "/tmp", "HUB": "inside"}
    assert variables.known()["HOME"] == "/tmp"
