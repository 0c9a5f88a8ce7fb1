"""Turns between clients, and between the requests of a client."""

from serve_app.fairness.queues import FairQueue


class Work:
    """An item with a name, which may be dropped."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dropped = False


def queue() -> FairQueue[Work]:
    return FairQueue(lambda work: work.dropped)


def push(
    waiting: FairQueue[Work], client: str, request: str, count: int = 1, cost: float = 1.0
) -> list[Work]:
    items = [Work(client) for _ in range(count)]
    for item in items:
        waiting.push(item, cost, client, request)
    return items


def order(waiting: FairQueue[Work]) -> str:
    names = []
    while (item := waiting.pop()) is not None:
        names.append(item.name)
    return "".join(names)


def test_items_of_one_request_keep_their_order() -> None:
    """First in, first out."""
    waiting = queue()
    items = push(waiting, "a", "1", 5)
    assert [waiting.pop() for _ in range(5)] == items
    assert waiting.pop() is None


def test_two_clients_take_turns_however_much_one_has() -> None:
    """The client with one item is served first or second, not after the other's hundred."""
    waiting = queue()
    push(waiting, "a", "1", 100)
    push(waiting, "b", "1", 1)
    assert "b" in order(waiting)[:2]


def test_many_requests_of_a_client_count_as_one_client() -> None:
    """Ninety requests of ten images from one address leave another address every second turn."""
    waiting = queue()
    for number in range(90):
        push(waiting, "a", str(number), 10)
    push(waiting, "b", "1", 10)
    assert order(waiting)[:20].count("b") == 10


def test_a_small_request_is_not_behind_a_large_one_of_the_same_client() -> None:
    """Eight requests of 64 images, and one with one image: it is among the first nine."""
    waiting = queue()
    for number in range(8):
        push(waiting, "a", str(number), 64)
    (small,) = push(waiting, "a", "small")
    assert small in [waiting.pop() for _ in range(9)]


def test_turns_are_by_cost() -> None:
    """Ten times as dear, ten times as rarely."""
    waiting = queue()
    push(waiting, "a", "1", 10, cost=10.0)
    push(waiting, "b", "1", 100, cost=1.0)
    assert 4 <= order(waiting)[:50].count("a") <= 6


def test_a_client_that_was_away_has_saved_nothing_up() -> None:
    """After a hundred items of another it gets every second turn, not a hundred at once."""
    waiting = queue()
    push(waiting, "a", "1", 200)
    for _ in range(100):
        waiting.pop()
    push(waiting, "b", "1", 50)
    assert 8 <= order(waiting)[:20].count("b") <= 12


def test_who_comes_back_for_every_item_starves_nobody() -> None:
    """A client that keeps one dear item waiting, each a new request, does not keep a client with
    many cheap ones out.
    """
    waiting = queue()
    push(waiting, "b", "1", 100)
    waiting.pop()
    served = ""
    for number in range(20):
        push(waiting, "a", str(number), cost=10.0)
        item = waiting.pop()
        assert item is not None
        served += item.name
    assert served.count("b") >= 10


def test_small_requests_that_keep_coming_starve_no_large_one() -> None:
    """Of the same client: a request of 64 images gets every second turn beside requests of one
    image.
    """
    waiting = queue()
    large = push(waiting, "a", "large", 64)
    taken = 0
    for number in range(40):
        push(waiting, "a", f"small {number}")
        taken += sum(waiting.pop() in large for _ in range(2))
    assert taken >= 35


def test_dropped_items_are_skipped_and_forgotten() -> None:
    """The next one is one that somebody waits for; nothing of the dropped ones stays."""
    waiting = queue()
    dropped = push(waiting, "a", "1", 3)
    push(waiting, "b", "1")
    for item in dropped:
        item.dropped = True
    assert order(waiting) == "b"
    assert not waiting
    assert not waiting._turns
