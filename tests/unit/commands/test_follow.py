"""The request lines that `siglip-serve serve` shows."""

from pathlib import Path

from serve_app.commands.follow import FollowedRequests


def test_whole_new_lines_are_shown_once(tmp_path: Path) -> None:
    """Of every worker's standard output, without Ray's own marks; half a line waits for its end."""
    out = tmp_path / "worker-1.out"
    shown = list[str]()
    out.write_bytes(b":job_id:01\n:actor_name:ServeReplica\n")
    (tmp_path / "worker-1.err").write_bytes(b"not this\n")
    followed = FollowedRequests(tmp_path)
    followed.show(shown.append)
    assert shown == []
    with out.open("ab") as file:
        file.write("POST /v1/tag 200 é\nPOST /v1".encode())
    followed.show(shown.append)
    followed.show(shown.append)
    assert shown == ["POST /v1/tag 200 é"]
    with out.open("ab") as file:
        file.write(b"/score 200\n")
    (tmp_path / "worker-2.out").write_bytes(b"GET /healthz 200\n")
    followed.show(shown.append)
    assert sorted(shown[1:]) == ["GET /healthz 200", "POST /v1/score 200"]


def test_a_log_that_is_deleted_or_cannot_be_read_ends_nothing(tmp_path: Path) -> None:
    """Ray deletes those of workers that have ended, at any moment."""
    (tmp_path / "worker-0.out").symlink_to("gone")
    (tmp_path / "worker-1.out").symlink_to("worker-1.out")
    (tmp_path / "worker-2.out").write_bytes(b"GET /healthz 200\n")
    shown = list[str]()
    FollowedRequests(tmp_path).show(shown.append)
    assert shown == ["GET /healthz 200"]
