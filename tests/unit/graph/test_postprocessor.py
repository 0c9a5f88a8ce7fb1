"""A Postprocessor's configurations: the newest wins whatever comes late, and requests never see an
old one's tables.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.config.service import parse_config
from serve_app.errors import Unavailable
from serve_app.graph import live_scorer, postprocessor
from serve_app.graph.messages import ScoreRequest
from serve_app.graph.postprocessor import Postprocessor, ScoringSpec
from serve_app.tagging.options import TagOptions, tag_options


class Texts:
    """Stands for the calls to a TextEncoder, which may be away."""

    def __init__(self) -> None:
        self.away = False

    async def __call__(
        self,
        method: str,
        prompts: Sequence[str],
        refuse_cut: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        if self.away:
            raise Unavailable("away")
        if method == "digests":
            return [prompt.encode() for prompt in prompts]
        return np.stack(
            [
                np.random.default_rng(sum(p.encode())).normal(size=64).astype(np.float32)
                for p in prompts
            ]
        )


@pytest.fixture
def texts() -> Texts:
    return Texts()


@pytest.fixture
def post(
    tiny: Callable[[str], Path], texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> Postprocessor:
    monkeypatch.setattr(postprocessor, "InnerCalls", lambda *_: texts)
    monkeypatch.setattr(live_scorer, "RETRY_PAUSE_S", 0.05)
    handle: Any = None
    return Postprocessor(
        ScoringSpec(str(tiny("siglip2")), None, "float32", "none", 100, 2**20, None, 1.0), handle
    )


def user_config(**data: object) -> dict[str, Any]:
    config = parse_config(
        {
            "prompt_templates": ["{label}"],
            "plugins": {"siglip": {"confidence_threshold": 0, "max_tags": 9}},
        }
        | data
    )
    return config.tag_settings().model_dump(mode="json")


async def labels(post: Postprocessor, options: TagOptions = TagOptions()) -> set[str]:
    reply = await post.score(ScoreRequest(np.eye(1, 64, dtype=np.float32), (options,)))
    if isinstance(reply.outcomes[0], Exception):
        raise reply.outcomes[0]
    return {tag.label for tag in reply.outcomes[0]}


async def test_a_late_retry_never_replaces_a_newer_configuration(
    post: Postprocessor, texts: Texts
) -> None:
    """The first change cannot be encoded and is tried again later; a second one comes before that
    and stays.
    """
    await post.reconfigure(user_config(labels=["start"]))
    texts.away = True
    await post.reconfigure(user_config(labels=["old"]))
    assert await labels(post) == {"start"}
    texts.away = False
    await post.reconfigure(user_config(labels=["new"]))
    await asyncio.sleep(0.3)
    assert await labels(post) == {"new"}
    assert (await post.state()).refused is None


async def test_a_change_that_could_not_be_encoded_comes_when_it_can(
    post: Postprocessor, texts: Texts
) -> None:
    """Without another request of anybody."""
    await post.reconfigure(user_config(labels=["start"]))
    texts.away = True
    await post.reconfigure(user_config(labels=["next"]))
    texts.away = False
    await asyncio.sleep(0.3)
    assert await labels(post) == {"next"}


async def test_a_requests_own_templates_follow_a_changed_vocabulary(post: Postprocessor) -> None:
    """The same request after a swap has the new categories; two vocabularies of the same labels are
    not mixed up.
    """
    own = tag_options(prompt_templates=("a {label}",), include_categories=("new",))
    await post.reconfigure(user_config(labels=[{"label": "cat", "category": "old"}]))
    assert await labels(post, tag_options(prompt_templates=("a {label}",))) == {"cat"}
    await post.reconfigure(
        user_config(
            vocabularies={
                "v": [{"label": "cat", "category": "new"}],
                "w": [{"label": "cat", "category": "x"}],
            }
        )
    )
    assert await labels(post, own) == {"cat"}
    reply = await post.score(
        ScoreRequest(
            np.eye(1, 64, dtype=np.float32),
            (
                tag_options(
                    prompt_templates=("a {label}",), include_categories=("x",), vocabulary="w"
                ),
            ),
        )
    )
    assert reply.scored[0] is not None
    assert reply.scored[0].vocabulary == "w"


async def test_a_bad_configuration_is_refused_and_the_running_one_stays(
    post: Postprocessor, tmp_path: Path
) -> None:
    """A calibration of another checkpoint, a label that would be cut, nonsense: told by `state`,
    and scored as before.
    """
    await post.reconfigure(user_config(labels=["start"]))
    foreign = {
        "method": "platt",
        "checkpoint": "0" * 16,
        "prompt_templates": ["{label}"],
        "images": 1,
        "threshold": 0.5,
    }
    bad = user_config(labels=["next"])
    bad["vocabularies"]["default"]["calibration"] = foreign
    for config, said in ((bad, "another|calibrate again"), ({"nonsense": 1}, "nonsense")):
        await post.reconfigure(config)
        assert await labels(post) == {"start"}
        refused = (await post.state()).refused
        assert refused is not None
        assert any(part in refused for part in said.split("|"))
