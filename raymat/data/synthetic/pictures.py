"""Procedural matting pairs and backgrounds, drawn from (seed, index, size) alone: no dataset is needed.

A foreground is a figure (head, body, arms, hair) or an object of one to three blobs, textured and shaded; its alpha has edges of
varying softness, strands of hair along a part of the outline, and sometimes a hole, a translucent part or a veil. As in keyed
footage the foreground has colours everywhere, also where the alpha is 0. A background is a scene of muted colours: a gradient,
noise, rectangles, stripes, lights.

Everything is drawn in coordinates relative to the picture, so the same (seed, index) at another size is the same picture at
another resolution. No draw depends on the size, none comes from a global generator, and the pixels do not depend on OpenCV's
number of threads.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from raymat.data.rng import Draws, Stream
from raymat.data.synthetic.canvas import Canvas, Field, Pixels, Points, as_pixels, blob
from raymat.data.synthetic.subjects import (
    Colour,
    Subject,
    Veil,
    figure,
    hsv,
    ripples,
    thing,
    veil_near,
    vivid,
)


def synthetic_pair(seed: int, index: int, size: int | tuple[int, int]) -> tuple[Pixels, Pixels]:
    """Draw foreground, uint8 (h, w, 3) RGB, and alpha, uint8 (h, w), of pair `index`; `size` is a side or (width, height)."""
    draws = Draws(seed, Stream.SYNTHETIC_PAIR, index)
    canvas = Canvas.of(size)
    subject = figure(draws) if draws.chance(0.6) else thing(draws)
    veil = veil_near(draws, subject)
    body = _body(canvas, draws, subject)
    shade = _shade(canvas, draws, body)
    pha = _alpha(canvas, draws, subject, body, veil)
    return _foreground(canvas, draws, subject, veil, shade), pha


def synthetic_background(seed: int, index: int, size: int | tuple[int, int]) -> Pixels:
    """Draw background `index`, uint8 (h, w, 3) RGB; `size` is a side or (width, height)."""
    draws = Draws(seed, Stream.SYNTHETIC_BACKGROUND, index)
    canvas = Canvas.of(size)
    scene = _wall_and_floor(canvas, draws)
    _rectangles(canvas, draws, scene)
    _bars(canvas, draws, scene)
    added = _lamps(canvas, draws, scene)
    tint = Canvas(_COARSE, _COARSE).noise(draws, cells=2, octaves=3, channels=3)
    added += np.float32(draws.uniform(4, 16)) * tint
    light = canvas.noise(draws, cells=3, octaves=8, gain=0.62)
    light = 1 + np.float32(draws.uniform(0.1, 0.3)) * light
    picture = canvas.blur(scene.astype(np.float32), draws.uniform(0, 0.004))
    lit = cv2.multiply(picture, cv2.merge((light, light, light)))
    return as_pixels(cv2.add(lit, canvas.stretch(added), dtype=cv2.CV_8U))


_COARSE = 64
"""Side of the grid on which smooth fields are made before they are stretched to the picture."""


def _to_pixels(picture: Field) -> Pixels:
    """Round and clamp to 0..255."""
    return as_pixels(cv2.addWeighted(picture, 1.0, picture, 0.0, 0.0, dtype=cv2.CV_8U))


# ---- alpha


def _body(canvas: Canvas, draws: Draws, subject: Subject) -> Field:
    """Draw the subject's solid silhouette, 0..1, with edges of varying softness."""
    layer = canvas.layer(0)
    for part in subject.parts:
        canvas.fill(layer, part.outline, (255,))
    solid = layer.astype(np.float32) * np.float32(1 / 255)
    crisp = canvas.blur(solid, draws.uniform(0.0006, 0.0016))
    soft = canvas.blur(solid, draws.uniform(0.004, 0.016))
    where = canvas.noise(draws, cells=4, octaves=2) * 1.6 + draws.uniform(0.0, 0.6)
    return np.asarray(crisp + np.clip(where, 0, 1) * (soft - crisp))


def _alpha(canvas: Canvas, draws: Draws, subject: Subject, body: Field, veil: Veil) -> Pixels:
    """Draw the alpha, uint8: body without hole and translucency, with veil and strands added."""
    clear = 1 - body * _openings(canvas, draws, subject)
    if veil.opacity > 0:
        layer = canvas.layer(0)
        canvas.fill(layer, veil.outline, (round(255 * veil.opacity),))
        thin = canvas.blur(layer.astype(np.float32), 0.006)
        folds = 1 + 0.3 * canvas.noise(draws, cells=5, octaves=3)
        clear *= 1 - np.clip(thin * folds / 255, 0, 1)
    clear *= 1 - _strands(canvas, draws, subject)
    return _to_pixels((1 - clear) * 255)


def _openings(canvas: Canvas, draws: Draws, subject: Subject) -> Field:
    """Draw the factor of the body: 1, less at a translucent part, 0 in a hole."""
    keep = np.ones((canvas.height, canvas.width), dtype=np.float32)
    for size, least, most, edge in ((0.06, 0.9, 1.0, 0.002), (0.16, 0.3, 0.75, 0.01)):
        chosen = draws.chance(subject.openings)
        which, x, y, wide, tall, depth = draws.uniforms(6)
        part = subject.parts[int(which * len(subject.parts))].outline
        at = part.mean(axis=0) + (np.array([x, y]) - 0.5) * 0.6 * np.ptp(part, axis=0)
        radii = (size * (0.4 + 0.6 * wide), size * (0.4 + 0.6 * tall))
        outline = blob((at[0], at[1]), radii, waves=ripples(draws, 4, 0.15))
        if chosen:
            layer = canvas.layer(0)
            canvas.fill(layer, outline, (255,))
            amount = np.float32((least + (most - least) * depth) / 255)
            keep *= 1 - amount * canvas.blur(layer.astype(np.float32), edge)
    return keep


_STRAND_GROUPS = 5
_MOST_STRANDS = 640


def _strands(canvas: Canvas, draws: Draws, subject: Subject) -> Field:
    """Draw hair, 0..1: thin curved lines from the subject's `hair_outline`, finer and fainter to their ends."""
    lines, groups = _strand_lines(draws, subject)
    layer = canvas.layer(0)
    # Faint before strong: a line replaces what is under it.
    for piece, fade in ((slice(6, 10), 0.55), (slice(3, 7), 0.8), (slice(0, 4), 1.0)):
        for group in range(_STRAND_GROUPS):
            opacity = fade * (0.4 + 0.6 * (group + 1) / _STRAND_GROUPS)
            width = (0.0007 + 0.0002 * group) * (0.5 + 0.5 * fade)
            canvas.strokes(layer, lines[groups == group, piece], width, opacity)
    return layer.astype(np.float32) * np.float32(1 / 255)


def _strand_lines(draws: Draws, subject: Subject) -> tuple[Points, NDArray[np.int64]]:
    """Return strands as curves of ten points (n, 10, 2), and the group (0..4, finest first) of each."""
    count = draws.integer(120, _MOST_STRANDS)
    wind, gravity = draws.uniform(-0.5, 0.5), draws.uniform(0, 0.9)
    curl, spread = draws.uniform(0.1, 0.7), draws.uniform(0.2, 0.8)
    where, tilt, long, twist, group = draws.uniforms(5 * _MOST_STRANDS).reshape(5, -1, 1)[:, :count]
    outline = subject.hair_outline
    place = where * (len(outline) - 1)
    first = np.minimum(place.astype(np.int64), len(outline) - 2)[:, 0]
    root = outline[first] + (place - first[:, None]) * (outline[first + 1] - outline[first])
    out = root - np.array(subject.hair_centre)
    out /= np.linalg.norm(out, axis=1, keepdims=True) + 1e-9
    side = np.stack((-out[:, 1], out[:, 0]), axis=-1)
    length = subject.hair_length * (0.35 + 0.65 * long + 1.2 * long**12)  # a few far longer
    straight = length * (out + spread * (2 * tilt - 1) * side)
    bend = length * (curl * (2 * twist - 1) * side + np.array([wind, gravity]))
    t = np.linspace(-0.15, 1, 10)[None, :, None]
    lines = root[:, None] + t * straight[:, None] + t**2 * bend[:, None]
    return lines, (group[:, 0] * _STRAND_GROUPS).astype(np.int64)


# ---- colours


def _shade(canvas: Canvas, draws: Draws, body: Field) -> Field:
    """Compute the light on the body, around 1: as if it were higher towards its middle and lit from one side."""
    small = Canvas(_COARSE, _COARSE)
    height = small.blur(small.stretch(body), 0.05)
    angle = draws.uniform(0, 2 * math.pi)
    slope = math.cos(angle) * cv2.Sobel(height, cv2.CV_32F, 1, 0)
    slope += math.sin(angle) * cv2.Sobel(height, cv2.CV_32F, 0, 1)
    strength = draws.uniform(0.5, 1.4)
    return canvas.stretch(np.clip(1 + strength * slope, 0.45, 1.5).astype(np.float32))


def _foreground(canvas: Canvas, draws: Draws, subject: Subject, veil: Veil, shade: Field) -> Pixels:
    """Paint the subject's colours, everywhere: a part's colour continues beyond its outline, ever more blurred."""
    picture = _painted(canvas, draws, subject, veil)
    pattern = canvas.layer(0, 76, 0)
    for part in subject.parts:
        amounts = (round(255 * part.stripes), round(255 * part.mottle), 0)
        canvas.fill(pattern, part.outline, amounts, grow=0.01)
    x, y = canvas.grid()
    angle, cycles = draws.uniform(0, math.pi), draws.uniform(7, 22)
    turns = np.float32(2 * math.pi * cycles)
    wobble = canvas.noise(draws, cells=3, octaves=3)
    phase = turns * (np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y)
    stripes = np.sin(phase + 1.5 * wobble)
    mottle = canvas.noise(draws, cells=8, octaves=7, gain=0.75)
    light = shade + stripes * (pattern[:, :, 0] * np.float32(0.6 / 255))
    light += mottle * (pattern[:, :, 1] * np.float32(0.5 / 255))
    return as_pixels(cv2.multiply(picture, cv2.merge((light, light, light)), dtype=cv2.CV_8U))


def _painted(canvas: Canvas, draws: Draws, subject: Subject, veil: Veil) -> Pixels:
    """Paint the flat colours: widened and blurred outside of the parts, sharp inside."""
    coarse = canvas.scaled(128)
    wide = coarse.layer(*vivid(draws))
    for part in subject.parts:
        coarse.fill(wide, part.outline, part.colour, grow=0.07)
    coarse.fill(wide, subject.hair_outline, subject.hair_colour, grow=1.3 * subject.hair_length)
    if veil.opacity > 0:
        coarse.fill(wide, veil.outline, veil.colour, grow=0.03)
    layer = _to_pixels(canvas.stretch(coarse.blur(wide.astype(np.float32), 0.025)))
    for part in subject.parts:
        canvas.fill(layer, part.outline, part.colour, grow=0.008)
    return layer


# ---- backgrounds


def _muted(draws: Draws) -> Colour:
    hue, saturation, value = draws.uniforms(3)
    return hsv(hue, 0.3 * saturation, 0.2 + 0.65 * value)


def _wall_and_floor(canvas: Canvas, draws: Draws) -> Pixels:
    """Draw a wall whose colour changes in some direction, and a floor whose edge may lie outside of the picture."""
    x, y = Canvas(_COARSE, _COARSE).grid()
    angle = draws.uniform(0, 2 * math.pi)
    towards = np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y
    start, end = (np.array(_muted(draws), dtype=np.float32) for _ in range(2))
    wall = start + np.clip(towards + 0.5, 0, 1)[:, :, None] * (end - start)
    scene = _to_pixels(canvas.stretch(wall))
    wide, high = canvas.width / canvas.unit, canvas.height / canvas.unit
    left, right = draws.uniform(0.05, 0.6) + np.array((-1, 1)) * draws.uniform(-0.05, 0.05)
    floor = np.array([(-wide, left), (wide, right), (wide, high), (-wide, high)])
    canvas.fill(scene, floor, _muted(draws))
    return scene


_MOST_RECTANGLES = 14


def _rectangles(canvas: Canvas, draws: Draws, scene: Pixels) -> None:
    """Draw windows, pictures, furniture: rectangles, some with a frame, some turned a little."""
    count = draws.integer(3, _MOST_RECTANGLES + 1)
    across = canvas.width / canvas.unit
    high = canvas.height / canvas.unit
    for x, y, wide, tall, turn, frame, hue, tone in draws.uniforms(8 * count).reshape(count, 8):
        centre = ((x - 0.5) * across, (y - 0.5) * high)
        half = (0.03 + 0.2 * wide**2, 0.03 + 0.2 * tall**2)
        outline = _rectangle(centre, half, 0.5 * (turn - 0.5) ** 3)
        canvas.fill(scene, outline, hsv(hue, 0.35 * tone, 0.15 + 0.75 * tone))
        if frame < 0.5:
            inner = _rectangle(centre, (half[0] * 0.85, half[1] * 0.85), 0.5 * (turn - 0.5) ** 3)
            canvas.fill(scene, inner, hsv(hue + frame, 0.3 * frame, 0.2 + 1.4 * frame))


def _rectangle(centre: tuple[float, float], half: tuple[float, float], turn: float) -> Points:
    c, s = math.cos(turn), math.sin(turn)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * np.array(half)
    return np.asarray(np.array(centre) + corners @ np.array([(c, s), (-s, c)]))


_MOST_BARS = 12


def _bars(canvas: Canvas, draws: Draws, scene: Pixels) -> None:
    """Draw a shelf, a blind, a fence: equal bars side by side, vertical or horizontal."""
    chosen, upright = draws.chance(0.6), draws.chance(0.5)
    colour, count = _muted(draws), draws.integer(4, _MOST_BARS + 1)
    x, y, pitch, bar, long = draws.uniforms(5)
    if not chosen:
        return
    step, half = 0.02 + 0.05 * pitch, 0.08 + 0.25 * long
    for i in range(count):
        offset = (i - count / 2) * step
        thick = step * (0.15 + 0.25 * bar)
        centre = (x - 0.5 + offset * upright, y - 0.5 + offset * (not upright))
        sides = (thick, half) if upright else (half, thick)
        canvas.fill(scene, _rectangle(centre, sides, 0.0), colour)


def _lamps(canvas: Canvas, draws: Draws, scene: Pixels) -> Field:
    """Draw up to four small lamps into the scene; return their wide glow, (_COARSE, _COARSE, 3)."""
    wide, high = canvas.width / canvas.unit, canvas.height / canvas.unit
    grid_x, grid_y = Canvas(_COARSE, _COARSE).grid()
    glow = np.zeros((_COARSE, _COARSE, 3), dtype=np.float32)
    for x, y, size, bright, warm in draws.uniforms(20).reshape(4, 5):
        if bright < 0.4:
            continue
        tone = np.array((1, 0.95 - 0.2 * warm, 0.9 - 0.5 * warm), dtype=np.float32)
        red, green, blue = (np.float32(255) * tone).round().astype(int).tolist()
        place, radius = ((x - 0.5) * wide, (y - 0.5) * high), 0.005 + 0.012 * size
        canvas.fill(scene, blob(place, (radius, radius)), (red, green, blue))
        away = ((grid_x - (x - 0.5)) * wide) ** 2 + ((grid_y - (y - 0.5)) * high) ** 2
        reach = np.exp(away * -((0.02 + 0.12 * size) ** -2)) * 110 * bright
        glow += reach[:, :, None].astype(np.float32) * tone
    return glow
