"""What crosses between replicas is small, and a part of a request is that part's."""

import pickle

import numpy as np

from serve_app.graph.messages import ScoreRequest
from serve_app.tagging.options import TagOptions, tag_options

LABELS = [f"label number {i}" for i in range(1_000)]


def test_labels_of_a_request_cross_once_for_all_its_images() -> None:
    """64 images of a request with 1,000 labels hold the labels once; a registered vocabulary is a
    name.
    """
    embeds = np.zeros((64, 8), np.float32)
    registered = tag_options(vocabulary="pets")
    own = tag_options(labels=LABELS)
    sizes = [
        len(pickle.dumps(ScoreRequest(embeds[:count], (options,) * count))) - embeds[:count].nbytes
        for options in (registered, own)
        for count in (1, 64)
    ]
    labels_bytes = len(pickle.dumps(tuple(LABELS)))
    assert sizes[0] < 600
    assert sizes[1] - sizes[0] < 64 * 6
    assert sizes[2] - sizes[0] < labels_bytes + 100
    assert sizes[3] - sizes[2] < 64 * 6


def test_a_part_of_a_request_has_the_views_and_shares_of_its_images() -> None:
    """Images of one, two and three views, of which the first and the last are wanted."""
    embeds = np.arange(6, dtype=np.float32).reshape(6, 1)
    options = tuple(TagOptions(max_tags=n) for n in (1, 2, 3))
    request = ScoreRequest(embeds, options, (1, 2, 3), 99, (10, 20, 30))
    part = request.part([0, 2])
    assert part.image_embeds.ravel().tolist() == [0.0, 3.0, 4.0, 5.0]
    assert (part.options, part.views) == ((options[0], options[2]), (1, 3))
    assert (part.max_bytes, part.shares) == (99, (10, 30))
    assert request.part([0, 1, 2]) is request
