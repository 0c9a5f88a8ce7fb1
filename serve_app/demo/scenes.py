"""Draws scenes of coloured shapes, which train and evaluate the demo checkpoint.

A `Scene` describes the content of an image, `draw` paints the image, and `labels_in` returns its
true labels. All random values come from a `numpy.random.Generator`, so that one seed always gives
the same images.

Not here: the training (`tools/demo_training`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (245, 220, 40),
    "green": (40, 165, 60),
    "blue": (40, 75, 215),
    "purple": (135, 45, 165),
    "white": (245, 245, 245),
    "black": (18, 18, 18),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "heart")

Combination = tuple[str, str]
"""A colour and a shape on one object."""

COMBINATIONS: tuple[Combination, ...] = tuple(
    (color, shape) for color in COLORS for shape in SHAPES
)
UNSEEN: tuple[Combination, ...] = (
    ("red", "star"),
    ("orange", "circle"),
    ("yellow", "triangle"),
    ("green", "heart"),
    ("blue", "cross"),
    ("purple", "square"),
)
"""Combinations that do not occur in the training images and labels: one per shape."""
SEEN: tuple[Combination, ...] = tuple(c for c in COMBINATIONS if c not in UNSEEN)

MAX_OBJECTS = 3
MIN_RADIUS = 0.17
MAX_RADIUS = 0.29
"""Bounds of an object's radius, as a fraction of the image's shorter side."""
UNNAMED_DISTANCE = 75
UNNAMED_CHROMA = 60
"""Minimum distance (of 255, in RGB) of a colour without a name from every named colour and grey."""
MAX_ROTATION_RAD = math.radians(20)
"""Maximum rotation of a shape to either side. With arbitrary angles, a model of this size takes
several times longer to learn."""
SUPERSAMPLING = 2
"""Shapes are painted this many times larger and then reduced, for smooth edges."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape.

    Attributes:
        color: Name of its colour; None for a colour without a name.
        shape: One of `SHAPES`.
        x: Horizontal position of its centre, as a fraction of the width.
        y: Vertical position of its centre, as a fraction of the height.
        radius: Radius as a fraction of the shorter side.
        angle: Rotation in radians.
    """

    color: str | None
    shape: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def label(self) -> str:
        """The label that describes it, such as `red circle`."""
        return f"{self.color} {self.shape}" if self.color else self.shape

    @property
    def labels(self) -> set[str]:
        """Its true labels: its colour, its shape, and both together."""
        return {self.shape, self.label} | ({self.color} if self.color else set())


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one image; `seed` determines its background and the shades of its colours."""

    objects: tuple[SceneObject, ...]
    seed: int

    @property
    def name(self) -> str:
        """A file name that describes the image, such as `red-circle-and-blue-star`."""
        return "-and-".join(o.label.replace(" ", "-") for o in self.objects)


def combination_labels(combinations: Sequence[Combination]) -> list[str]:
    """Return the labels of combinations, such as `red circle` for `("red", "circle")`."""
    return [f"{color} {shape}" for color, shape in combinations]


def attribute_labels() -> list[str]:
    """Return the labels of the single attributes: every colour, then every shape."""
    return [*COLORS, *SHAPES]


def pair_labels() -> list[str]:
    """Return the labels for a colour and a shape in one image, such as `red and circle`.

    The colour and the shape may belong to one object or to two.
    """
    return [f"{color} and {shape}" for color in COLORS for shape in SHAPES]


def labels_in(scene: Scene) -> set[str]:
    """Return the true labels of a scene: colours, shapes, their combinations and pairs."""
    pairs = {f"{a.color} and {b.shape}" for a in scene.objects for b in scene.objects if a.color}
    return set().union(pairs, *(o.labels for o in scene.objects))


def sample_scene(
    rng: np.random.Generator, combinations: Sequence[Combination], unnamed_share: float = 0.0
) -> Scene:
    """Sample a scene of one to three objects that do not overlap, each one of `combinations`.

    A fraction `unnamed_share` of the objects gets a colour that is far from all named colours.
    """
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    objects: list[SceneObject] = []
    while len(objects) < count:
        placed = _place(rng, objects)
        if placed is None:  # there is no room for another object: start again
            objects.clear()
            continue
        x, y, radius = placed
        color, shape = combinations[int(rng.integers(len(combinations)))]
        named = color if rng.random() >= unnamed_share else None
        objects.append(
            SceneObject(
                named, shape, x, y, radius, float(rng.uniform(-MAX_ROTATION_RAD, MAX_ROTATION_RAD))
            )
        )
    return Scene(tuple(objects), int(rng.integers(2**32)))


def sample_scenes(
    seed: int, count: int, combinations: Sequence[Combination], unnamed_share: float = 0.0
) -> Iterator[Scene]:
    """Yield `count` scenes, which are the same for the same seed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield sample_scene(rng, combinations, unnamed_share)


def object_grid(scene: Scene, width: int, height: int, cells: int) -> npt.NDArray[np.int8]:
    """Return (cells, cells) int8: the index of the object at each cell's centre, or -1 for none.

    The grid covers the whole image of `width` × `height`. An object covers a disc of 0.8 times its
    radius.
    """
    y, x = (np.mgrid[0:cells, 0:cells] + 0.5) / cells
    side = min(width, height)
    grid = np.full((cells, cells), -1, np.int8)
    for i, o in enumerate(scene.objects):
        grid[np.hypot((x - o.x) * width, (y - o.y) * height) < 0.8 * o.radius * side] = i
    return grid


def _place(
    rng: np.random.Generator, taken: Sequence[SceneObject], tries: int = 40
) -> tuple[float, float, float] | None:
    for _ in range(tries):
        radius = float(rng.uniform(MIN_RADIUS, MAX_RADIUS))
        x, y = (float(v) for v in rng.uniform(radius, 1 - radius, size=2))
        if all(math.hypot(x - o.x, y - o.y) > 0.95 * (radius + o.radius) for o in taken):
            return x, y, radius
    return None


def draw(scene: Scene, width: int, height: int) -> Image.Image:
    """Paint a scene at `width` × `height` pixels and return it as an RGB image."""
    # two generators, so that the shades do not depend on the size
    shade_rng, background_rng = np.random.default_rng(scene.seed).spawn(2)
    big_width = width * SUPERSAMPLING
    big_height = height * SUPERSAMPLING
    image = Image.fromarray(_background(background_rng, width, height)).resize(
        (big_width, big_height), Image.Resampling.BILINEAR
    )
    canvas = ImageDraw.Draw(image)
    side = min(big_width, big_height)
    for o in scene.objects:
        paint = np.array(COLORS[o.color]) if o.color else _unnamed_color(shade_rng)
        shade = np.clip(paint + shade_rng.uniform(-16, 16, size=3), 0, 255)
        center = np.array([o.x * big_width, o.y * big_height])
        outline = _outline(o.shape, o.angle) * o.radius * side + center
        canvas.polygon(
            [(float(x), float(y)) for x, y in outline], fill=tuple(int(v) for v in shade)
        )
    return image.reduce(SUPERSAMPLING)


def _unnamed_color(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a colour that is far from every named colour and from a grey background."""
    while True:
        color = rng.uniform(0, 255, size=3)
        distances = [np.linalg.norm(color - np.array(named)) for named in COLORS.values()]
        if min(distances) > UNNAMED_DISTANCE and np.ptp(color) > UNNAMED_CHROMA:
            return color


def _background(rng: np.random.Generator, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return a slightly tinted grey texture (height, width, 3) of blotches, stripes and grain."""
    base = rng.uniform(95, 165) + rng.uniform(-12, 12, size=3)
    cells = int(rng.integers(3, 9))
    coarse = rng.uniform(-1, 1, size=(cells, cells)).astype(np.float32)
    blotches = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    y, x = np.mgrid[0:height, 0:width] / min(width, height)
    direction = rng.uniform(0, math.pi)
    frequency = rng.uniform(2, 14)
    phase = rng.uniform(0, 2 * math.pi)
    stripes = np.sin(
        2 * math.pi * frequency * (x * math.cos(direction) + y * math.sin(direction)) + phase
    )
    grain = rng.standard_normal((height, width))
    texture = (
        rng.uniform(0, 26) * blotches + rng.uniform(0, 14) * stripes + rng.uniform(0, 6) * grain
    )
    image: npt.NDArray[np.uint8] = np.clip(base + texture[..., None], 0, 255).astype(np.uint8)
    return image


def _outline(shape: str, angle: float) -> npt.NDArray[np.float64]:
    """Return the corners (n, 2) of a shape of radius 1 at the origin, rotated by `angle`."""
    match shape:
        case "circle":
            points = _ring(48, 0.88)
        case "square":
            points = _ring(4, 1.0)
        case "triangle":
            points = _ring(3, 1.0)
        case "star":
            points = np.stack([_ring(5, 1.0), _ring(5, 0.42, math.pi / 5)], axis=1).reshape(10, 2)
        case "cross":
            arm = 0.3
            reach = 0.95
            quarter = np.array([(arm, -reach), (arm, -arm), (reach, -arm)])
            points = np.concatenate([quarter @ _rotation(k * math.pi / 2).T for k in range(4)])
        case "heart":
            t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
            y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
            points = np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 16.5
        case _:
            raise ValueError(f"unknown shape {shape!r}")
    return np.asarray(points @ _rotation(angle).T)


def _ring(count: int, radius: float, offset: float = 0.0) -> npt.NDArray[np.float64]:
    t = np.linspace(0, 2 * math.pi, count, endpoint=False) + offset
    return radius * np.stack([np.sin(t), -np.cos(t)], axis=1)


def _rotation(angle: float) -> npt.NDArray[np.float64]:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
