"""Images before they are encoded: sizes come from headers, and a bad image is one error row."""

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile, ImageOps
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve_app.batch import service_engine
from serve_app.batch.blocks import PreparedBlock
from serve_app.batch.cutting import Cut
from serve_app.batch.inputs import find_inputs
from serve_app.batch.output_files import Writing, Written, read_rows
from serve_app.batch.preparing import Model, Reading, prepare_block
from serve_app.batch.rows import ImageFacts, Stamp
from serve_app.batch.service_engine import ServiceEngine, TaggingService
from serve_app.batch.snapshot import read_chunk, take_snapshot
from serve_app.batch.storage import Storage, url_of
from serve_app.batch.table_rows import join_tables
from serve_app.demo.settings import demo_config
from serve_app.siglip.precision import Precision
from tests.conftest import encoded, random_picture
from tests.http_face import served
from tests.odd_names import write
from tests.unit.batch.test_inputs import options_for

PHOTO = random_picture(40, 24, 1)


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(PHOTO, kind, exif=exif)


IMAGES = {
    f"{kind}-{orientation}": turned(kind, orientation)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF")
    for orientation in range(1, 9)
}
BAD = {
    "cut.png": (encoded(PHOTO)[:-200], "invalid_image"),
    "cut.jpg": (encoded(PHOTO, "JPEG")[:300], "invalid_image"),
    "empty.png": (b"", "unsupported_image"),
    "page.jpg": (b"<html>", "unsupported_image"),
    "large.png": (encoded(Image.new("1", (9_000, 9_000))), "image_too_large"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in IMAGES.items():
        write(tmp_path / "in", f"{name}.png", data)
    for name, (data, _) in BAD.items():
        write(tmp_path / "in", name, data)
    return tmp_path / "in"


class Watched:
    """Keeps what an engine reports."""

    def __init__(self) -> None:
        self.written: list[Written] = []

    def chunk_done(self, written: Written) -> None:
        self.written.append(written)

    def tick(self, encoders: int) -> None:
        pass


def prepare(folder: Path) -> tuple[list[str], PreparedBlock, list[ImageFacts]]:
    """Prepare a folder as a worker does."""
    config = demo_config()
    plugin = config.siglip
    model = Model(plugin.model_source, None, Precision(), 8, plugin.max_num_patches, 1)
    reading = Reading(
        model,
        config.image_limits(),
        config.limits.max_image_bytes,
        "standard",
        "object",
        None,
        Storage(),
    )
    rows = join_tables(list(find_inputs(options_for(folder)).tables))
    return ([Path(uri).name for uri in rows["uri"].to_pylist()], *prepare_block(reading, rows))


def test_rows_have_upright_sizes_and_errors_of_their_own(folder: Path) -> None:
    """In every format and orientation, as Pillow turns them; bad images take nothing with them."""
    names, block, images = prepare(folder)
    assert len(block) == len(IMAGES)
    assert block.views.tolist() == [0 if name in BAD else 1 for name in names]
    for name, image in zip(names, images, strict=True):
        if name in BAD:
            assert image.error is not None
            assert image.error.code == BAD[name][1]
        else:
            upright = ImageOps.exif_transpose(
                Image.open(io.BytesIO(IMAGES[name.removesuffix(".png")]))
            )
            assert (image.width, image.height, image.error) == (*upright.size, None)


def test_an_image_is_decoded_once_and_one_that_is_too_large_not_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes come from headers, also of PNGs, whose EXIF may be at their end."""
    opened: list[tuple[int, int]] = []
    decoded: list[ImageFile.ImageFile] = []
    inner_open = Image.open
    inner_load = ImageFile.ImageFile.load_prepare

    def spying_open(*args: object, **options: object) -> Image.Image:
        image = inner_open(*args, **options)  # type: ignore[arg-type]
        opened.append(image.size)
        return image

    def spying_load(image: ImageFile.ImageFile) -> None:
        decoded.append(image)
        inner_load(image)

    monkeypatch.setattr("PIL.Image.open", spying_open)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load_prepare", spying_load)
    for name in list(IMAGES):
        if not name.startswith("PNG"):
            (folder / f"{name}.png").unlink()
    prepare(folder)
    assert opened == [PHOTO.size] * 9  # eight PNGs and the one that is cut off
    assert len(decoded) == len(set(map(id, decoded))) == len(opened)


def test_through_a_service_sizes_are_read_apart_from_the_event_loop(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one bad image is one error row, whatever reading its header does."""
    threads = set[int]()
    inner = service_engine.image_size

    def spying(data: bytes, *rest: object) -> tuple[int, int]:
        threads.add(threading.get_ident())
        if data.startswith(b"<html>"):
            raise RuntimeError("a mistake of ours")
        return inner(data, *rest)  # type: ignore[arg-type]

    def result(data: bytes) -> dict[str, Any]:
        if any(data == bad for bad, _ in BAD.values()):
            return {"error": {"code": "invalid_image", "message": "It is damaged."}}
        return {"tags": [{"label": "cat", "confidence": 0.5}], "views": 1}

    async def tag(request: Request) -> JSONResponse:
        about = {"vocabulary": "v", "vocabulary_fingerprint": "f", "score": "sigmoid"}
        about |= {"model": "m", "version": "1", "inference_time_ms": 1.0}
        if request.headers["content-type"].startswith("multipart/form-data"):
            form = await request.form()
            files = [await file.read() for file in form.getlist("images")]  # type: ignore[union-attr]
            return JSONResponse(about | {"results": [result(data) for data in files]})
        only = result(await request.body())
        return JSONResponse(only | about, 422 if "error" in only else 200)

    monkeypatch.setattr(service_engine, "image_size", spying)
    storage = Storage()
    output = url_of(str(folder.parent / "out"))
    options = options_for(folder)
    snapshot = take_snapshot(storage, output, find_inputs(options), Cut(100))
    writing = Writing(storage, output, "parquet", "zstd", embeddings=False)
    watcher = Watched()
    with served(Starlette(routes=[Route("/v1/tag", tag, methods=["POST"])])) as url:
        engine = ServiceEngine(
            TaggingService(url), options, writing, Stamp("m", None, "f"), 0, snapshot
        )
        engine.run(
            ((chunk, read_chunk(storage, output, chunk)) for chunk in snapshot.chunks), watcher
        )
    assert threading.get_ident() not in threads
    assert [one.inputs for one in watcher.written] == [len(IMAGES) + len(BAD)]
    rows = {
        Path(row["uri"]).name: row
        for row in read_rows(writing, snapshot.chunks[0].name, ["uri", "width", "height", "error"])
    }
    assert {name for name, row in rows.items() if row["error"] is not None} == set(BAD)
    assert (rows["TIFF-6.png"]["width"], rows["TIFF-6.png"]["height"]) == (24, 40)
    assert (rows["page.jpg"]["width"], rows["page.jpg"]["height"]) == (None, None)
