"""Noise is a function of its key to the bit, normal, and white."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from raymat.data.compositing.noise_field import noise_words, normal_field, quantiles


def field(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """(2, 3, height, width)"""
    words = torch.from_numpy(noise_words(42, number, height, width))
    return normal_field(words[None], height, width)[0].numpy()


def test_the_table_never_changes() -> None:
    found = quantiles()
    assert found[[0, 1, 32767, 32768, 65535]].tolist() == [
        -4.324920654296875, -4.076202392578125, -1.52587890625e-05, 1.52587890625e-05,
        4.324920654296875,
    ]  # fmt: skip
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == "8422cf312998f0a9"


def test_the_noise_of_a_key_never_changes() -> None:
    """Written down once, to the bit: a table look-up has nothing to round."""
    assert noise_words(42, 66, 2, 4)[:4].tolist() == [
        191648429,
        -226728245,
        -1341239687,
        -603364881,
    ]
    assert field(66, 2, 4)[1, 2].tolist() == [
        [-0.6991119384765625, 0.4466400146484375, 0.9345550537109375, -0.6422119140625],
        [0.7420501708984375, 0.6411285400390625, 0.1956024169921875, 2.0904693603515625],
    ]
    digest = hashlib.sha256(np.ascontiguousarray(field(66)).tobytes()).hexdigest()
    assert digest[:16] == "09109efc78d3490e"


def test_the_noise_is_the_plain_product_of_a_rows_and_a_columns_number() -> None:
    height, width = 4, 6
    words = [int(word) & 0xFFFFFFFF for word in noise_words(7, 3, height, width)]
    assert all(word % 2 for word in words)
    found = field_of(7, 3, height, width)
    for (part, channel, y, x), value in np.ndenumerate(found):
        plane = 3 * part + channel
        product = words[plane * height + y] * words[6 * height + plane * width + x]
        assert value == quantiles()[(product & 0xFFFFFFFF) >> 16]


def field_of(seed: int, number: int, height: int, width: int) -> np.ndarray:
    words = torch.from_numpy(noise_words(seed, number, height, width))
    return normal_field(words[None], height, width)[0].numpy()


def test_several_examples_at_once_have_the_noise_of_each() -> None:
    words = np.stack([noise_words(42, number, 8, 12) for number in (5, 6, 7)])
    together = normal_field(torch.from_numpy(words), 8, 12).numpy()
    for found, number in zip(together, (5, 6, 7), strict=True):
        assert np.array_equal(found, field(number, 8, 12))


def test_the_noise_is_normal() -> None:
    from scipy import stats  # takes a second, which each process that collects would spend

    values = np.concatenate([field(number).ravel() for number in range(20)])  # 1,474,560
    assert values.mean() == pytest.approx(0, abs=0.004)  # five deviations
    assert values.std() == pytest.approx(1, abs=0.003)
    assert stats.kurtosis(values) == pytest.approx(0, abs=0.02)
    assert stats.kstest(values, "norm").statistic < 0.0017


def test_the_noise_is_white_in_all_directions_and_between_its_planes() -> None:
    """No pixel's noise tells another's: neither near nor far, nor in another channel, nor in the background for the source."""
    fields = np.stack([field(number) for number in range(10)])  # (10, 2, 3, 96, 128)
    power = np.abs(np.fft.fft2(fields)) ** 2
    correlation = np.fft.ifft2(power).real.mean((0, 1, 2)) / (96 * 128)
    others = correlation.ravel()[1:]
    # 60 planes of 12,288 pixels: a deviation of 0.00116, and 12,287 of them.
    assert np.abs(others).max() < 0.00116 * 5.5
    planes = fields.reshape(10, 6, -1).transpose(1, 0, 2).reshape(6, -1)
    between = np.corrcoef(planes) - np.eye(6)
    assert np.abs(between).max() < 5 / np.sqrt(planes.shape[1])


def test_four_corners_of_a_rectangle_are_independent() -> None:
    """What two rows and two columns share could show in the product of four pixels."""
    values = np.stack([field(number) for number in range(10)])
    corners = (
        values[..., 0::2, 0::2] * values[..., 0::2, 1::2]
        * values[..., 1::2, 0::2] * values[..., 1::2, 1::2]
    )  # fmt: skip
    assert corners.mean() == pytest.approx(0, abs=5 / np.sqrt(corners.size))
