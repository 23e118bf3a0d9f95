"""Resizing and straightening: against SciPy's interpolation, and where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from scipy import ndimage
from unified_backend.stages.pixels import resize, straighten

IMAGE = skimage.data.astronaut()


@pytest.mark.parametrize(("height", "width"), [(48, 97), (700, 900), (300, 512), (1, 1), (512, 3)])
def test_resizes_bilinearly_between_the_centres_of_pixels(height: int, width: int) -> None:
    y = (np.arange(height) + 0.5) * 512 / height - 0.5
    x = (np.arange(width) + 0.5) * 512 / width - 0.5
    places = np.stack(np.meshgrid(y, x, indexing="ij"))
    wanted = [ndimage.map_coordinates(IMAGE[..., c].astype(float), places, order=1, mode="nearest") for c in range(3)]
    np.testing.assert_allclose(resize(IMAGE, height, width), np.stack(wanted, -1), atol=0.51)


def test_a_grey_image_is_resized_as_each_channel_of_a_coloured_one() -> None:
    np.testing.assert_array_equal(resize(IMAGE[..., 1], 70, 90), resize(IMAGE, 70, 90)[..., 1])


def test_an_upright_box_is_cut_as_it_is() -> None:
    corners = np.array([[20, 10], [120, 10], [120, 60], [20, 60]], np.float32)
    np.testing.assert_array_equal(straighten(IMAGE, corners, 50, 100), IMAGE[10:60, 20:120])


def test_what_lies_outside_is_as_the_rim() -> None:
    corners = np.array([[-30, -20], [0, -20], [0, 0], [-30, 0]], np.float32)
    assert (straighten(IMAGE, corners, 20, 30) == IMAGE[0, 0]).all()


def test_a_turned_box_comes_out_straight() -> None:
    smooth = ndimage.gaussian_filter(IMAGE, (3, 3, 0))
    turned = ndimage.rotate(smooth, 30, reshape=False, order=3)
    angle = np.deg2rad(-30)
    across, down = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    centre = np.array([255.5, 255.5])
    corners = np.array([centre - 60.5 * across - 40.5 * down, centre + 59.5 * across - 40.5 * down])
    corners = np.concatenate([corners, corners[::-1] + 80 * down])
    found = straighten(turned, corners, 80, 120).astype(int)
    assert np.abs(found - smooth[215:295, 195:315]).max() <= 6


def test_perspective_takes_each_corner_to_its_place() -> None:
    image = np.zeros((200, 200, 1), np.uint8)
    corners = np.array([[40, 30], [150, 50], [160, 140], [30, 120]], np.float32)
    for x, y in corners.astype(int):
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
    found = straighten(image, corners, 101, 101)  # the lower and right corners lie one pixel outside
    assert found[0, 0] == found[0, 100] == found[100, 100] == found[100, 0] == 255
    assert found[50, 50] == 0


def test_corners_on_a_line_are_refused() -> None:
    with pytest.raises(ValueError, match="enclose nothing"):
        straighten(IMAGE, np.array([[0, 0], [10, 10], [20, 20], [0, 0]], np.float32), 5, 5)
