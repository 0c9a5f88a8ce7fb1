"""Measures how decoding JPEGs at a smaller size changes pixels, embeddings, logits and CPU time.

Run with `python -m bench.decoding`. Each 12-megapixel JPEG is prepared with `image_decoding: fast`
and with `exact`, interleaved, for checkpoints of 224, 384 and 512 pixels. `--base` encodes both
with a base-size checkpoint of random weights. The constants of `serve_app/images/decoding_plan.py`
and `detail.py` come from these tables.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bench.base_checkpoint import build_base_checkpoint
from serve_app.config.service import parse_config
from serve_app.images.detail import finest_detail
from serve_app.images.limits import ImageLimits
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.siglip.inputs import collate
from serve_app.siglip.precision import Precision
from serve_app.siglip.prepare import ImagePreparer
from serve_app.siglip.scoring import pair_logits
from serve_app.towers.tower import ImageTower
from tests.hostile import encoded as make
from tests.hostile.measured import preparer

SIZE = (4000, 3000)
SIDES = (224, 384, 512)
FAST = ImageLimits()
EXACT = ImageLimits(decoding="exact")


def photo(slope: float, seed: int) -> Image.Image:
    """Return noise of amplitude 1 / frequency^slope and discs; natural images have a slope of 1."""
    width, height = SIZE
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    channels = []
    for _ in range(3):
        noise = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
        channels.append(np.fft.irfft2(noise / frequency**slope, (height, width)))
    pixels = np.stack([0.85 * channels[0] + 0.5 * channel for channel in channels], axis=2)
    pixels *= 45 / pixels.std()
    image = Image.fromarray(np.clip(pixels + 120, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        x = rng.integers(0, width)
        y = rng.integers(0, height)
        radius = rng.integers(20, 400)
        red, green, blue = (int(value) for value in rng.integers(60, 200, 3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(red, green, blue))
    return image


def checkerboard(cell_px: int) -> Image.Image:
    """Return black and white cells."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]] // cell_px
    return Image.fromarray(((rows + columns) % 2 * 255).astype(np.uint8)).convert("RGB")


def zone_plate() -> Image.Image:
    """Return rings that get finer outwards, up to one pixel."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    squared = (rows - SIZE[1] / 2) ** 2 + (columns - SIZE[0] / 2) ** 2
    return Image.fromarray(
        (127.5 + 127.5 * np.cos(squared * np.pi / 2 / SIZE[0])).astype(np.uint8)
    ).convert("RGB")


def discs() -> Image.Image:
    """Return discs of saturated colours on white."""
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    rng = np.random.default_rng(5)
    for index in range(30):
        x = rng.integers(0, SIZE[0])
        y = rng.integers(0, SIZE[1])
        radius = rng.integers(60, 500)
        draw.ellipse(
            (x - radius, y - radius, x + radius, y + radius),
            fill=("red", "blue", "lime")[index % 3],
        )
    return image


def contents() -> Iterator[tuple[str, Image.Image]]:
    """Yield 12-megapixel images by name."""
    yield "photo, smooth", photo(1.3, 1)
    yield "photo, natural", photo(1.0, 0)
    yield "photo, with sensor noise", make.photo(*SIZE)
    for font_px in (24, 40, 60, 80, 120):
        yield f"text, {font_px} px", make.text_page(*SIZE, font_px)
    yield "text, grey, 40 px", make.text_page(*SIZE, 40, ink=150)
    yield "pattern, cells of 3 px", checkerboard(3)
    yield "pattern, cells of 5 px", checkerboard(5)
    yield "pattern, rings", zone_plate()
    yield "discs of saturated colours", discs()


def codings(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Yield JPEGs of an image."""
    yield "q75 4:2:0", make.saved(image, "JPEG", quality=75)
    yield "q85 4:2:0", make.saved(image, "JPEG", quality=85)
    yield "q95 4:4:4", make.saved(image, "JPEG", quality=95, subsampling=0)
    yield "q85 grey", make.saved(image.convert("L"), "JPEG", quality=85)


def both(size_px: int, resample: int) -> tuple[ImagePreparer, ImagePreparer]:
    """Return a fast and an exact preparer."""
    return preparer(FAST, size_px, resample), preparer(EXACT, size_px, resample)


def cpu_ms(
    fast: ImagePreparer, exact: ImagePreparer, data: bytes, repeats: int
) -> tuple[float, float]:
    """Return the minimum CPU milliseconds of each, measured alternately."""
    lowest = [float("inf"), float("inf")]
    for _ in range(repeats):
        for index, one in enumerate((fast, exact)):
            start = time.thread_time()
            one.prepare(data)
            lowest[index] = min(lowest[index], 1000 * (time.thread_time() - start))
    return lowest[0], lowest[1]


def pixel_rows(only: str, repeats: int) -> Iterator[str]:
    """Yield a row of the table for each content and coding."""
    for name, image in contents():
        if only not in name:
            continue
        for coding, data in codings(image):
            cells = [name, coding, f"{len(data) / 1e6:.1f}"]
            for size_px in SIDES:
                for resample in (2, 3):
                    fast, exact = both(size_px, resample)
                    found, expected = (
                        one.prepare(data).pixel_values.astype(np.int16) for one in (fast, exact)
                    )
                    fast_ms, exact_ms = cpu_ms(fast, exact, data, repeats)
                    cells.append(
                        f"{np.abs(found - expected).max()}; {fast_ms:.0f} / {exact_ms:.0f}"
                    )
            yield f"| {' | '.join(cells)} |"


def detail_rows(only: str) -> Iterator[str]:
    """Yield the detail that is found in each content at half and at a quarter of its size."""
    for name, image in contents():
        if only in name:
            halves = [np.asarray(image.reduce(factor).getchannel(1)) for factor in (2, 4)]
            yield f"| {name} | {' | '.join(f'{finest_detail(half):.0f}' for half in halves)} |"


def logit_rows(only: str) -> Iterator[str]:
    """Yield how far embeddings and logits move at base size with random weights."""
    labels = [
        f"{colour} {thing}"
        for colour in ("red", "blue", "green")
        for thing in ("circle", "star", "page", "dog")
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = str(build_base_checkpoint(Path(folder)))
        siglip = {"model": source, "device": "cpu", "dtype": "float32"}
        scorer = LocalScorer(parse_config({"labels": labels, "plugins": {"siglip": siglip}}))
        text_embeds = scorer.registered("default").bank.text_embeds
        tower = ImageTower(scorer.checkpoint, Precision("cpu", "float32"))
        head = scorer.head
        preparers = [ImagePreparer(scorer.checkpoint, limits, 256) for limits in (FAST, EXACT)]
        for name, image in contents():
            if only not in name:
                continue
            cells = [name]
            for coding, data in list(codings(image))[:3:2]:
                embeds = tower.encode(collate([one.prepare(data) for one in preparers]))
                logits = pair_logits(embeds, text_embeds, head.logit_scale, head.logit_bias)
                moved = np.abs(logits[0] - logits[1]).max()
                cells.append(f"{coding}: {moved:.3f}, {1 - float(embeds[0] @ embeds[1]):.1e}")
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of the names of the contents")
    parser.add_argument(
        "--repeats", type=int, default=3, help="measurements, of which the lowest counts"
    )
    parser.add_argument(
        "--base", action="store_true", help="encode with a base-size checkpoint instead"
    )
    args = parser.parse_args()
    if args.base:
        for row in logit_rows(args.only):
            print(row, flush=True)
        return
    print("| content | half size | quarter |\n|---|---|---|")
    for row in detail_rows(args.only):
        print(row, flush=True)
    heads = [f"{side} px {name}" for side in SIDES for name in ("bilinear", "bicubic")]
    print("\nLargest difference of 255; CPU ms fast / exact.\n")
    print(f"| content | JPEG | MB | {' | '.join(heads)} |\n|{'---|' * (3 + len(heads))}")
    for row in pixel_rows(args.only, args.repeats):
        print(row, flush=True)


if __name__ == "__main__":
    main()
