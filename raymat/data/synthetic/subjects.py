"""Subjects of procedural foregrounds: outlines and colours, before anything is painted.

Coordinates are those of `raymat.data.synthetic.canvas`: 0 is the picture's centre, 1 its shorter side, y down.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymat.data.rng import Draws
from raymat.data.synthetic.canvas import Points, blob, limb

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Part:
    """Part of a foreground: its outline, its colour (RGB 0..255) and how strongly (0..1) it is striped and mottled."""

    outline: Points
    colour: Colour
    stripes: float = 0.0
    mottle: float = 0.3


@dataclass(frozen=True)
class Subject:
    """Subject of a foreground: parts from back to front, and where hair grows.

    `hair_outline` (n, 2) is the piece of outline the strands start from, `hair_length` in shorter sides.
    """

    parts: tuple[Part, ...]
    hair_outline: Points
    hair_centre: tuple[float, float]
    hair_length: float
    hair_colour: Colour
    openings: float
    """Probability of a hole, and of a translucent part."""


@dataclass(frozen=True)
class Veil:
    """Veil over or beside the subject: its outline, colour and opacity (0..1; 0: there is none)."""

    outline: Points
    colour: Colour
    opacity: float


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Convert hue in turns, saturation and value in 0..1 to RGB 0..255."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def vivid(draws: Draws) -> Colour:
    """Draw a strong colour, which foregrounds have and backgrounds do not."""
    hue, saturation, value = draws.uniforms(3)
    return hsv(hue, 0.45 + 0.5 * saturation, 0.3 + 0.65 * value)


def _skin(draws: Draws) -> Colour:
    hue, saturation, value = draws.uniforms(3)
    return hsv(0.03 + 0.05 * hue, 0.3 + 0.35 * saturation, 0.35 + 0.6 * value)


def _hair(draws: Draws) -> Colour:
    hue, saturation, value = draws.uniforms(3)
    return hsv(0.02 + 0.11 * hue, 0.15 + 0.6 * saturation, 0.08 + 0.7 * value**2)


def ripples(draws: Draws, count: int, strength: float) -> NDArray[np.float64]:
    """Draw amplitudes (up to `strength`, weaker the higher) and phases of `count` harmonics."""
    waves = draws.uniforms(2 * count).reshape(count, 2)
    waves[:, 0] *= strength * 2 / np.arange(2, count + 2)
    return waves


def figure(draws: Draws) -> Subject:
    """Draw a person, cut off by the lower edge: arms, neck, body, head, hair that may reach the shoulders."""
    scale, x = draws.uniform(0.8, 1.2), draws.uniform(-0.14, 0.14)
    y, lean = draws.uniform(-0.26, -0.12), draws.uniform(-0.06, 0.06)
    skin, cloth, hair = _skin(draws), vivid(draws), _hair(draws)
    wide, tall = 0.095 * scale * draws.uniform(0.9, 1.15), 0.125 * scale
    shoulders = y + 1.3 * tall
    middle = x - lean
    torso = _torso(draws, (middle, shoulders + 0.42 * scale), scale, cloth)
    head = blob((x, y), (wide, tall), lean, ripples(draws, 4, 0.04))
    neck = limb(
        np.array([x, y + 0.4 * tall]),
        np.array([x, shoulders]),
        np.array([middle, shoulders + 0.06 * scale]),
        (0.055 * scale, 0.07 * scale),
    )
    arms: list[Part] = []
    for side in (-1, 1):
        shoulder = (middle + side * 0.17 * scale, shoulders + 0.09 * scale)
        arms += _arm(draws, side, shoulder, scale, cloth, skin)
    cap = _cap(head, (x, y), y - draws.uniform(0, 0.48) * wide)
    fall = draws.uniform(1.0, 1.7)
    mane = blob(
        (x, y + (fall - 0.95) * tall), (1.4 * wide, fall * tall), lean, ripples(draws, 5, 0.06), 2.4
    )
    long, turned_away = draws.chance(0.45), draws.chance(0.5)
    fallen = [Part(mane, hair, stripes=0.2, mottle=0.8)] if long else []
    parts = (
        *arms[: draws.integer(0, 3) * 2],
        *([] if turned_away else fallen),
        Part(neck, skin),
        torso,
        Part(head, skin, mottle=0.2),
        Part(cap, hair, stripes=0.2, mottle=0.8),
        *(fallen if turned_away else []),
    )
    outline = np.roll(mane, -30, axis=0)[:84] if long else cap
    return Subject(parts, outline, (x, y), draws.uniform(0.02, 0.13) * scale, hair, openings=0.08)


def _torso(draws: Draws, chest: tuple[float, float], scale: float, cloth: Colour) -> Part:
    """Return shoulders and chest around the point `chest`, down to below any frame."""
    outline = blob(
        chest,
        (0.23 * scale * draws.uniform(0.8, 1.15), 0.43 * scale),
        waves=ripples(draws, 3, 0.05),
        square=draws.uniform(2.3, 3.2),
    )
    outline[:, 1] += np.maximum(outline[:, 1] - chest[1], 0)
    return Part(outline, cloth, max(0.0, draws.uniform(-0.4, 0.5)), draws.uniform(0.2, 0.6))


def _cap(head: Points, centre: tuple[float, float], brow: float) -> Points:
    """Return the hair on a head: its outline above the height `brow`, a little larger."""
    around = np.roll(head, -24, axis=0)  # from the chin, so that the upper part is in one piece
    upper = around[around[:, 1] < brow]
    return np.asarray(np.array(centre) + (upper - np.array(centre)) * 1.12)


def _arm(
    draws: Draws,
    side: int,
    shoulder: tuple[float, float],
    scale: float,
    cloth: Colour,
    skin: Colour,
) -> list[Part]:
    """Draw sleeve and hand of an arm that starts at `shoulder` on one `side` (-1 or 1)."""
    out, down, reach, lift = draws.uniforms(4)
    start = np.array(shoulder)
    bend = start + scale * np.array([side * (0.1 + 0.2 * out), 0.1 + 0.2 * down])
    end = bend + scale * np.array([side * (0.25 * reach - 0.1), 0.25 - 0.6 * lift])
    sleeve = limb(start, bend, end, (0.062 * scale, 0.04 * scale))
    hand = blob((end[0], end[1]), (0.045 * scale, 0.05 * scale), waves=ripples(draws, 5, 0.12))
    return [Part(sleeve, cloth, mottle=0.5), Part(hand, skin)]


def thing(draws: Draws) -> Subject:
    """Draw an object of one to three blobs, perhaps with a tail, furry along a part of the first."""
    colours = [vivid(draws) for _ in range(4)]
    blobs = []
    for _ in range(3):
        x, y, wide, tall, turn = draws.uniforms(5)
        outline = blob(
            (0.44 * x - 0.22, 0.44 * y - 0.22),
            (0.1 + 0.17 * wide, 0.1 + 0.17 * tall),
            math.pi * turn,
            ripples(draws, 5, 0.16),
            square=2 + draws.uniform(0, 1.5),
        )
        blobs.append(outline)
    count = draws.integer(1, 4)
    middle = blobs[0].mean(axis=0)
    ends = draws.uniforms(4).reshape(2, 2) - 0.5
    tail = limb(
        middle, middle + 0.5 * ends[0], middle + 0.9 * ends[1], (0.05, draws.uniform(0.01, 0.04))
    )
    parts = [
        Part(outline, colour, max(0.0, draws.uniform(-0.5, 0.6)), draws.uniform(0.2, 0.9))
        for outline, colour in zip(blobs[:count][::-1], colours, strict=False)
    ]
    if draws.chance(0.5):
        parts.insert(0, Part(tail, colours[3], mottle=0.6))
    start, length = draws.integer(0, 96), draws.integer(20, 90)
    furry = np.roll(blobs[0], -start, axis=0)[:length]
    centre = (float(middle[0]), float(middle[1]))
    return Subject(
        tuple(parts), furry, centre, draws.uniform(0.015, 0.07), parts[-1].colour, openings=0.35
    )


def veil_near(draws: Draws, subject: Subject) -> Veil:
    """Draw a veil close to the subject's hindmost part; in three of four cases there is none."""
    chosen = draws.chance(0.25)
    x, y, wide, tall, turn, opacity = draws.uniforms(6)
    near = subject.parts[0].outline.mean(axis=0)
    outline = blob(
        (near[0] + 0.3 * x - 0.15, near[1] + 0.3 * y - 0.15),
        (0.08 + 0.16 * wide, 0.08 + 0.16 * tall),
        math.pi * turn,
        ripples(draws, 6, 0.25),
    )
    return Veil(outline, vivid(draws), (0.25 + 0.5 * opacity) * chosen)
