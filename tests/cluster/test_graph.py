"""The real graph on a real local Ray: batching, poison, live changes, dead replicas, parity, every
process ended.
"""

import asyncio
import base64
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from serve_app.config.service import parse_config
from serve_app.demo import scenes
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.tagging.options import TagOptions
from tests.cluster.conftest import demo_config
from tests.conftest import encoded, random_picture
from tests.service import Service, wait_for
from tests.tiny_checkpoints import FAMILIES, LABELS

PICTURES = [
    encoded(scenes.draw(scene, 320, 240), "JPEG", quality=90)
    for scene in scenes.sample_scenes(3, 16, scenes.SEEN)
]
CLIENT_TIMEOUT_S = 60.0
REQUESTS_PER_S = 60
"""Requests of all clients together that a test sends while something else happens; as many as they
can would keep that from the processors."""


async def post(client: httpx.AsyncClient, picture: bytes, **parameters: Any) -> httpx.Response:
    return await client.post("/v1/tag", content=picture, params=parameters)


async def at_once(service: Service, count: int) -> list[httpx.Response]:
    """Send that many single-picture requests at the same time."""
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(
        base_url=service.url, timeout=CLIENT_TIMEOUT_S, limits=limits
    ) as client:
        return await asyncio.gather(
            *[post(client, PICTURES[n % len(PICTURES)]) for n in range(count)]
        )


async def under_load(
    service: Service, clients: int, work: Callable[[], Awaitable[None]]
) -> list[httpx.Response]:
    """Keep clients asking while some work is done, and return every answer."""
    answers: list[httpx.Response] = []
    done = asyncio.Event()

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        while not done.is_set():
            answers.append(await post(client, PICTURES[(number + len(answers)) % len(PICTURES)]))
            await asyncio.sleep(clients / REQUESTS_PER_S)

    async with httpx.AsyncClient(base_url=service.url, timeout=CLIENT_TIMEOUT_S) as client:
        tasks = [asyncio.create_task(ask(client, number)) for number in range(clients)]
        try:
            await work()
        finally:
            done.set()
        await asyncio.gather(*tasks)
    return answers


async def test_concurrent_requests_share_batches(service: Service) -> None:
    """64 concurrent single-picture requests are encoded in batches well above 1, and none fails."""
    await at_once(service, 8)
    wait_for(lambda: service.metrics().get("ray_siglip_encoder_batches_total", 0) > 0)
    await asyncio.to_thread(
        service.settled_metric, "ray_siglip_encoder_items_total"
    )  # those of earlier requests arrive late
    before = service.metrics()
    answers = await at_once(service, 64)
    assert [a.status_code for a in answers] == [200] * 64

    def counted(name: str) -> float:
        return service.metrics()[name] - before[name]

    wait_for(lambda: counted("ray_siglip_encoder_items_total") >= 64)
    await asyncio.to_thread(service.settled_metric, "ray_siglip_encoder_items_total")
    assert counted("ray_siglip_encoder_items_total") == 64
    assert 64 / counted("ray_siglip_encoder_batches_total") > 4


async def test_answers_do_not_depend_on_their_batch(service: Service) -> None:
    """Alone or among 64, a picture gets the same tags."""
    async with httpx.AsyncClient(base_url=service.url, timeout=CLIENT_TIMEOUT_S) as client:
        alone = {
            n: (await post(client, picture)).json()["tags"] for n, picture in enumerate(PICTURES)
        }
    for n, answer in enumerate(await at_once(service, 64)):
        expected = alone[n % len(PICTURES)]
        assert [t["label"] for t in answer.json()["tags"]] == [t["label"] for t in expected]
        np.testing.assert_allclose(
            [t["confidence"] for t in answer.json()["tags"]],
            [t["confidence"] for t in expected],
            atol=1e-4,
        )


def test_broken_pictures_fail_alone_in_a_batch_of_32(service: Service) -> None:
    """29 results and 3 errors, in order."""
    pictures = [PICTURES[n % len(PICTURES)] for n in range(32)]
    broken = {4: b"not a picture", 17: PICTURES[0][:300], 31: PICTURES[1][:-400]}
    bodies = [
        base64.b64encode(broken.get(n, picture)).decode() for n, picture in enumerate(pictures)
    ]
    response = httpx.post(
        f"{service.url}/v1/tag", json={"images": bodies}, timeout=CLIENT_TIMEOUT_S
    )
    results = response.json()["results"]
    assert len(results) == 32
    assert {n for n, result in enumerate(results) if "error" in result} == set(broken)
    assert sum("tags" in result for result in results) == 29


def test_graph_equals_local_tagger_on_the_demo(service: Service) -> None:
    """Every tag of every picture has the logit that one process gives, to 1e-4, and so has the
    request's own label.
    """
    local = LocalTagger(parse_config(demo_config()))
    for picture in PICTURES[:4]:
        (expected,) = local.tag_images([picture])
        answer = httpx.post(f"{service.url}/v1/tag", content=picture).json()["tags"]
        assert [t["label"] for t in answer] == [t.label for t in expected.tags]
        np.testing.assert_allclose(
            [t["confidence"] for t in answer], [t.confidence for t in expected.tags], atol=1e-4
        )
    own = httpx.post(
        f"{service.url}/v1/tag?labels=red,green thing&confidence_threshold=0", content=PICTURES[0]
    ).json()["tags"]
    assert {t["label"] for t in own} == {"red", "green thing"}


def test_tiles_and_stored_embeddings_go_through_the_graph(service: Service) -> None:
    """quality=high has the logits of one process; an embedding that was given is scored again to
    the same tags.
    """
    local = LocalTagger(parse_config(demo_config(include_raw_scores=True)))
    (picture, *_) = PICTURES
    asked = {"quality": "high", "return": "embedding", "include_raw_scores": "true"}
    answer = httpx.post(f"{service.url}/v1/tag", content=picture, params=asked).json()
    (expected,) = local.tag_images([picture], TagOptions(quality="high"))
    assert answer["metadata"] == {"quality": "high", "views": 7}
    assert {t["label"]: t["raw_score"] for t in answer["tags"]} == pytest.approx(
        {t.label: t.logit for t in expected.tags}, abs=1e-3
    )
    again = httpx.post(
        f"{service.url}/v1/score", json={"embeddings": [answer["embedding"]] * 300}
    ).json()
    plain = httpx.post(f"{service.url}/v1/tag", content=picture).json()
    assert len(again["results"]) == 300
    assert [t["label"] for t in again["results"][-1]["tags"]] == [t["label"] for t in plain["tags"]]
    assert again["vocabulary_fingerprint"] == plain["vocabulary_fingerprint"]


def test_embeddings_and_vocabularies_go_through_the_graph(service: Service) -> None:
    """Texts and images in one list have the embeddings of one process; the vocabulary is listed
    with its tags.
    """
    local = LocalTagger(parse_config(demo_config()))
    picture = PICTURES[0]
    uri = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    answer = httpx.post(
        f"{service.url}/v1/embeddings", json={"input": ["red", uri, "blue star", "red"]}
    ).json()
    rows = np.array([entry["embedding"] for entry in answer["data"]])
    np.testing.assert_allclose(
        rows[[0, 2, 3]], local.scorer.embed_texts(["red", "blue star", "red"]), atol=1e-4
    )
    np.testing.assert_allclose(rows[1], local.encode_images([picture])[0], atol=1e-4)  # type: ignore[arg-type]
    (card,) = httpx.get(f"{service.url}/v1/vocabularies").json()["vocabularies"]
    shown = httpx.get(f"{service.url}/v1/vocabularies/{card['name']}").json()
    assert [tag["label"] for tag in shown["tags"]] == list(local.settings.vocabulary.labels)
    assert httpx.get(f"{service.url}/v1/vocabularies/other").status_code == 404


async def test_live_threshold_changes_under_load_without_a_reload(service: Service) -> None:
    """Another threshold changes the answers within seconds, reloads no model, restarts no replica
    and fails no request.
    """
    replicas = service.replica_ids()
    loads = service.metrics()["ray_siglip_model_loads_total"]
    faint = {"confidence_threshold": 0.0001, "max_tags": 62}

    async def change() -> None:
        await asyncio.sleep(1)
        await asyncio.to_thread(service.deploy, demo_config(**faint))
        await asyncio.sleep(3)

    answers = await under_load(service, 8, change)
    assert {a.status_code for a in answers} == {200}
    counts = [len(a.json()["tags"]) for a in answers]
    assert np.mean(counts[-20:]) > np.mean(counts[:20]) + 3
    assert service.replica_ids() == replicas
    assert service.metrics()["ray_siglip_model_loads_total"] == loads


def two_thousand(reverse: bool) -> list[dict[str, str]]:
    """Return 2,000 tags whose labels say nothing of what is said to the model; the other way round
    each means something else.
    """
    things = list(itertools.product(scenes.COLORS, scenes.SHAPES))
    pairs = itertools.islice(itertools.product(things, things), 2_000)
    said = [f"{' '.join(one)} {' '.join(other)}" for one, other in pairs]
    return [
        {"label": f"tag {i}", "prompt": prompt}
        for i, prompt in enumerate(reversed(said) if reverse else said)
    ]


async def test_two_thousand_tags_are_swapped_under_32_clients(service: Service) -> None:
    """No request fails, no replica restarts, and every answer has one vocabulary's labels, scores
    and fingerprint; then one tag more costs the prompts of that tag alone.
    """
    options = {"confidence_threshold": 0.0, "max_tags": 50, "include_raw_scores": True}
    tags = {reverse: two_thousand(reverse) for reverse in (False, True)}
    configs = {
        reverse: demo_config(**options)
        | {"labels": own, "prompt_templates": ["a {label}." if reverse else "{label}"]}
        for reverse, own in tags.items()
    }
    service.deploy(configs[False])
    await asyncio.to_thread(
        wait_for, lambda: httpx.get(f"{service.url}/v1/model").json()["labels"] == 2_000
    )
    replicas = service.replica_ids()

    async def change() -> None:
        await asyncio.sleep(1)
        await asyncio.to_thread(service.deploy, configs[True])
        await asyncio.sleep(4)

    answers = await under_load(service, 32, change)
    assert {a.status_code for a in answers} == {200}
    assert service.replica_ids() == replicas
    expected: dict[str, list[dict[str, float]]] = {}
    for config in configs.values():
        local = LocalTagger(parse_config(config))
        images = local.tag_images(PICTURES, TagOptions(max_tags=2_000))
        expected[local.scorer.registered("default").bank.fingerprint] = [
            {t.label: t.logit for t in image.tags} for image in images
        ]
    bodies = [a.json() for a in answers]
    assert {body["vocabulary_fingerprint"] for body in bodies} == set(expected)
    for body in bodies:
        got = {tag["label"]: tag["raw_score"] for tag in body["tags"]}
        off = [
            max(abs(table[label] - value) for label, value in got.items())
            for table in expected[body["vocabulary_fingerprint"]]
        ]
        assert min(off) < 1e-3  # of one of the sixteen pictures

    encoded_before = await asyncio.to_thread(
        service.settled_metric, "ray_siglip_encoder_items_total"
    )
    grown = configs[True] | {"labels": [{"label": "one more"}, *tags[True]]}
    await asyncio.to_thread(service.deploy, grown)
    await asyncio.to_thread(
        wait_for, lambda: httpx.get(f"{service.url}/v1/model").json()["labels"] == 2_001
    )
    assert (
        await asyncio.to_thread(service.settled_metric, "ray_siglip_encoder_items_total")
        == encoded_before + 1
    )


def test_refused_live_configuration_keeps_the_last_good_one(service: Service) -> None:
    """A user_config that cannot work reaches the replica past our own check; it goes on with the
    last good one.
    """
    path = "/api/serve/applications/"
    details = service.ask(path).json()
    (application,) = details["applications"].values()
    good = application["deployed_app_config"]
    bad = {**good, "deployments": [dict(d) for d in good["deployments"]]}
    for deployment in bad["deployments"]:
        if deployment["name"] == "Postprocessor":
            deployment["user_config"] = deployment["user_config"] | {
                "vocabularies": {},
                "confidence_threshold": 7,
            }
    replicas = service.replica_ids()
    assert service.ask(path, "PUT", json={"applications": [bad]}).status_code == 200
    wait_for(lambda: service.metrics().get("ray_siglip_config_refusals_total", 0) >= 1)
    answer = httpx.post(f"{service.url}/v1/tag", content=PICTURES[0])
    assert answer.status_code == 200
    assert answer.json()["tags"]
    assert service.replica_ids() == replicas
    assert service.ask(path, "PUT", json={"applications": [good]}).status_code == 200


@pytest.mark.parametrize("deployment", ["ImageEncoder", "Postprocessor"])
async def test_killed_replica_costs_no_request(service: Service, deployment: str) -> None:
    """Kill -9 of the only replica of an inner deployment under load: calls are made again, every
    request is answered.
    """
    (victim,) = service.replicas(deployment)

    async def kill() -> None:
        await asyncio.sleep(1)
        victim.kill()
        await asyncio.sleep(1)
        await asyncio.to_thread(
            wait_for, lambda: any(p.pid != victim.pid for p in service.replicas(deployment))
        )
        await asyncio.sleep(8)

    answers = await under_load(service, 8, kill)
    assert not psutil.pid_exists(victim.pid)
    said = [line for line in service.lines if "inner call" in line]
    assert {a.status_code for a in answers} == {200}, (
        said,
        [a.text for a in answers if a.status_code != 200],
    )
    assert len(answers) > 20


def test_graph_equals_local_tagger_on_every_family(
    service: Service, tiny: Callable[[str], Path]
) -> None:
    """Through HTTP, processes and batches: the logits of one process, which parity/ holds against
    transformers.

    The demo checkpoint is of the first family, which the tests above show. This is the last test of
    the service: it is not deployed as before.
    """
    assert httpx.get(f"{service.url}/v1/model").json()["family"] == FAMILIES[0]
    for family in FAMILIES[1:]:
        config = demo_config(
            model=str(tiny(family)),
            confidence_threshold=0.0,
            max_num_patches=64,
            include_raw_scores=True,
        ) | {
            "labels": list(LABELS),
            "prompt_templates": ["a photo of {label}"],
        }
        service.deploy(config)
        pictures = [
            encoded(random_picture(width, height, seed))
            for seed, (width, height) in enumerate([(120, 200), (300, 90), (64, 64)])
        ]
        bodies = [base64.b64encode(picture).decode() for picture in pictures]
        response = httpx.post(
            f"{service.url}/v1/tag", json={"images": bodies}, timeout=CLIENT_TIMEOUT_S
        ).json()
        expected = LocalTagger(parse_config(config)).tag_images(pictures)
        for result, image in zip(response["results"], expected, strict=True):
            got = {tag["label"]: tag["raw_score"] for tag in result["tags"]}
            for tag in image.tags:
                assert got[tag.label] == pytest.approx(tag.logit, abs=1e-4)
        assert httpx.get(f"{service.url}/v1/model").json()["family"] == family
