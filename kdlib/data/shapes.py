"""The embedded set: ten shapes on cluttered textured ground, rendered from a seed in seconds.

It needs no network, a small network visibly trails a larger one on it, and the mask of every object
is known, so that an attention map can be *scored* (the share of its energy on the object) and not
only looked at.
"""

import numpy as np

VERSION = 1  # of the pictures; part of the name under which they are cached
SIDE = 32
WIDTH = (16.0, 24.0)  # of an object, in pixels
TURN = 0.3  # largest rotation, in radians to either side
STROKES = 4  # distractor lines behind every object
NOISE = 15.0  # standard deviation of the pixel noise, in units of 0..255
CONTRAST = 80.0  # smallest distance of object to ground colour, root mean square over channels
CHUNK = 1000  # pictures rendered at once, so that the temporaries stay in the cache


def _star(points: int, inner: float) -> np.ndarray:
    """Corners of a star whose tips lie on the unit circle; ``inner`` is the notches' radius."""
    corner = np.arange(2 * points)
    angle, radius = corner * np.pi / points - np.pi / 2, np.where(corner % 2, inner, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)  # (2 * points, 2)


def _polygon(corners):
    """Distance to a polygon's nearest edge, negative where a ray crosses an odd number of edges."""
    corners = np.asarray(corners, np.float32)

    def distance(x, y):
        nearest, inside = np.full_like(x, np.inf), np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            ex, ey = bx - ax, by - ay
            t = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, (x - ax - t * ex) ** 2 + (y - ay - t * ey) ** 2)
            if ey:
                inside ^= ((ay > y) != (by > y)) & (x < ex * (y - ay) / ey + ax)
        return np.where(inside, -1, 1) * np.sqrt(nearest)

    return distance


# Signed distances in a frame where an object spans about -1..1. Look-alikes are deliberate (disc
# and hexagon, ring and crescent, triangle and arrow): that is where dark knowledge comes from.
SHAPES = {"disc": lambda x, y: np.hypot(x, y) - 0.85,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.65) - 0.2,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.75 - np.hypot(x - 0.5, y)),
    "triangle": _polygon(_star(3, 0.5)),
    "square": _polygon([(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)]),
    "hexagon": _polygon(_star(6, 0.866)[::2] * 0.92), "star": _polygon(_star(5, 0.42)),
    "cross": _polygon([
        (-0.3, -0.9), (0.3, -0.9), (0.3, -0.3), (0.9, -0.3), (0.9, 0.3), (0.3, 0.3), (0.3, 0.9),
        (-0.3, 0.9), (-0.3, 0.3), (-0.9, 0.3), (-0.9, -0.3), (-0.3, -0.3)]), "arrow": _polygon([
        (0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 0.9), (-0.3, 0.9), (-0.3, -0.1), (-0.8, -0.1)]),
    "corner": _polygon([(-0.8, -0.8), (-0.2, -0.8), (-0.2, 0.25), (0.8, 0.25), (0.8, 0.8),
                        (-0.8, 0.8)])}  # fmt: skip


def _texture(rng, count):
    """Smooth coloured ground: a coarse grid of random colours, bilinearly enlarged."""
    grid = rng.uniform(60, 195, (count, 5, 5, 3)).astype(np.float32)
    position = np.linspace(0, 4, SIDE, dtype=np.float32)
    low = np.minimum(position.astype(int), 3)
    high = (position - low)[:, None]  # (h, 1)
    rows = grid[:, low] * (1 - high[..., None]) + grid[:, low + 1] * high[..., None]  # (n, h, 5, 3)
    return rows[:, :, low] * (1 - high) + rows[:, :, low + 1] * high  # (n, h, w, 3)


def _paint(images, distance, colour):
    """Lay ``colour`` over the pixels inside, with an edge one pixel soft; returns the coverage."""
    cover = np.clip(0.5 - distance, 0, 1)  # (n, h, w)
    images += cover[..., None] * (colour[:, None, None, :] - images)
    return cover


def _render(rng, labels):
    count = len(labels)
    draw = lambda low, high, *shape: rng.uniform(low, high, shape).astype(np.float32)
    images = _texture(rng, count)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    for _ in range(STROKES):
        ax, ay, bx, by = draw(-2, SIDE + 2, 4, count, 1, 1)
        ex, ey = bx - ax, by - ay
        t = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex**2 + ey**2 + 1e-6), 0, 1)
        distance = np.hypot(x - ax - t * ex, y - ay - t * ey) - draw(0.6, 1.6, count, 1, 1)
        _paint(images, distance, draw(0, 255, count, 3))
    radius = draw(WIDTH[0] / 2, WIDTH[1] / 2, count, 1, 1)
    centre = draw(-1, 1, 2, count, 1, 1) * (SIDE / 2 - 1 - radius)
    turn = draw(-TURN, TURN, count, 1, 1)
    dx, dy = x - SIDE / 2 + 0.5 - centre[0], y - SIDE / 2 + 0.5 - centre[1]
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / radius  # (n, h, w), the object's own frame
    v = (np.cos(turn) * dy - np.sin(turn) * dx) / radius
    distance = np.empty_like(u)
    for label, shape in enumerate(SHAPES.values()):
        chosen = labels == label
        distance[chosen] = shape(u[chosen], v[chosen])
    ground = images.mean((1, 2))  # (n, 3)
    difference = draw(0, 255, count, 3) - ground
    size = np.sqrt((difference**2).mean(-1, keepdims=True))
    colour = np.clip(ground + difference * np.maximum(1, CONTRAST / (size + 1e-6)), 0, 255)
    cover = _paint(images, distance * radius, colour)  # back to pixels
    images += rng.normal(0, NOISE, images.shape).astype(np.float32)
    return np.clip(images, 0, 255).astype(np.uint8), cover > 0.5


def render(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw pictures; classes take turns, so that every prefix is nearly balanced.

    A seed gives the same pictures, whatever the count ``n`` is. Returns images, uint8
    ``[n, 32, 32, 3]``, labels, int32 ``[n]`` (positions in ``SHAPES``), and masks, bool
    ``[n, 32, 32]``, true on the object.
    """
    starts = range(0, count, CHUNK)
    labels = (np.arange(len(starts) * CHUNK) % len(SHAPES)).astype(np.int32)
    chunks = (_render(np.random.default_rng([seed, s]), labels[s : s + CHUNK]) for s in starts)
    images, masks = (np.concatenate(parts)[:count] for parts in zip(*chunks, strict=True))
    return images, labels[:count], masks
