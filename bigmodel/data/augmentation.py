"""Changes of a training picture, drawn from a generator of its own: a function of (seed, batch, row).

A picture is uint8, H x W x C, of 1 or 3 channels, and stays so. Pillow does what it has; a library on accelerators
(dm-pix) would change float pictures within the step, where a worker process has nothing else to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from bigmodel.errors import check_ranges

OPTIONS = dict(
    crop=0,  # pixels of zeros on each side, of which a window as large as the picture is cut at random
    resized_crop=0.0,  # least share of the area that is cut at random and resized; 0: none
    flip=False,  # mirrored left to right, half of the time
    jitter=0.0,  # brightness, contrast and saturation by up to this share either way
    randaugment_layers=0,  # random operations, one after another
    randaugment_magnitude=10,  # their strength, of 30
    erase=0.0,  # probability of a rectangle of random pixels
)
# Of AugReg (Steiner et al. 2021, arXiv:2106.10270, section 3.3, as in its code): layers, magnitude, and the mixup that
# goes with them (config.model.mixup).
LEVELS = {
    "none": (0, 0, 0.0),
    "light1": (2, 0, 0.0),
    "light2": (2, 10, 0.2),
    "medium1": (2, 15, 0.2),
    "medium2": (2, 15, 0.5),
    "strong1": (2, 20, 0.5),
    "strong2": (2, 20, 0.8),
}
Rng = np.random.Generator
GREY = 128  # of what comes in from outside


def finalize(cfg: Any) -> None:
    shares = dict.fromkeys(("resized_crop", "erase"), "[0, 1]")
    check_ranges(
        "config.data.", cfg, crop="[0, inf)", jitter="[0, 1)", randaugment_layers="[0, inf)",
        randaugment_magnitude="[0, 30]", **shares,
    )  # fmt: skip


def wanted(cfg: Any) -> bool:
    return bool(cfg.crop or cfg.resized_crop or cfg.flip or cfg.jitter or cfg.randaugment_layers or cfg.erase)


def changed(cfg: Any, x_HWC: np.ndarray, rng: Rng) -> np.ndarray:
    """A picture by all that `cfg` asks for, in the order of OPTIONS."""
    if cfg.crop:
        x_HWC = cropped(x_HWC, cfg.crop, rng)
    if cfg.resized_crop:
        x_HWC = resized_crop(x_HWC, cfg.resized_crop, rng)
    if cfg.flip and rng.random() < 0.5:
        x_HWC = x_HWC[:, ::-1]
    if cfg.jitter:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            x_HWC = _array(enhance(_image(x_HWC)).enhance(1 + cfg.jitter * rng.uniform(-1, 1)))
    if cfg.randaugment_layers:
        x_HWC = randaugment(x_HWC, cfg.randaugment_layers, cfg.randaugment_magnitude, rng)
    if cfg.erase and rng.random() < cfg.erase:
        x_HWC = erased(x_HWC, rng)
    return np.ascontiguousarray(x_HWC)


def _image(x_HWC: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(x_HWC[..., 0] if x_HWC.shape[-1] == 1 else x_HWC))


def _array(image: Image.Image) -> np.ndarray:
    found = np.asarray(image)
    return found[..., None] if found.ndim == 2 else found


def cropped(x_HWC: np.ndarray, border: int, rng: Rng) -> np.ndarray:
    """He et al. 2015 (arXiv:1512.03385, section 4.2): padded by `border` zeros a side, and a window of it."""
    H, W = x_HWC.shape[:2]
    top, left = rng.integers(0, 2 * border + 1, 2)
    return np.pad(x_HWC, ((border, border), (border, border), (0, 0)))[top : top + H, left : left + W]


def resized_crop(x_HWC: np.ndarray, smallest: float, rng: Rng) -> np.ndarray:
    """A part of at least `smallest` of the area, of an aspect from 3/4 to 4/3, resized to the whole (Szegedy et al.
    2014, arXiv:1409.4842, section 6). After ten draws that don't fit, the picture itself."""
    H, W = x_HWC.shape[:2]
    for _ in range(10):
        area, aspect = rng.uniform(smallest, 1) * H * W, math.exp(rng.uniform(-1, 1) * math.log(4 / 3))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= H and 0 < w <= W:
            top, left = rng.integers(0, H - h + 1), rng.integers(0, W - w + 1)
            part = _image(x_HWC[top : top + h, left : left + w])
            return _array(part.resize((W, H), Image.Resampling.BILINEAR))
    return x_HWC


def erased(x_HWC: np.ndarray, rng: Rng) -> np.ndarray:
    """A rectangle of 2 to 33 % of the area becomes random pixels (Zhong et al. 2017, arXiv:1708.04896, algorithm 1)."""
    H, W, C = x_HWC.shape
    for _ in range(10):
        area, aspect = rng.uniform(0.02, 1 / 3) * H * W, math.exp(rng.uniform(-1, 1) * math.log(3.3))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h <= H and 0 < w <= W:
            top, left = rng.integers(0, H - h + 1), rng.integers(0, W - w + 1)
            x_HWC = x_HWC.copy()
            x_HWC[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, C), np.uint8)
            return x_HWC
    return x_HWC


# ------------------------------------------------------------------------------------------------ RandAugment


def _outside(image: Image.Image) -> Any:
    return GREY if image.mode == "L" else (GREY,) * len(image.getbands())


def _affine(*row: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, row, fillcolor=_outside(image))


def _enhanced(kind: Any, factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: kind(image).enhance(factor)


def operations(magnitude: float, sign: float, size: tuple[int, int]) -> dict[str, Callable[[Image.Image], Image.Image]]:
    """RandAugment's operations at a magnitude of up to 30, on pictures of size (W, H); its cutout is left to `erased`.

    Cubuk et al. 2019, arXiv:1909.13719, section 3; ranges as in its code, where 10 is AutoAugment's largest.
    Translations, there 100 pixels of 224 at 10, are the same share of the picture's side.

    Args:
      sign: 1 or -1: the way of what has two.
    """
    level = magnitude / 10
    shear, turn, factor = sign * 0.3 * level, sign * 30 * level, 0.1 + 1.8 * level
    W, H = size
    right, down = sign * level * 100 / 224 * W, sign * level * 100 / 224 * H

    def added(image: Image.Image) -> Image.Image:
        table = [min(255, i + int(110 * level)) if i < 128 else i for i in range(256)]
        return image.point(table * len(image.getbands()))

    return {
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "invert": ImageOps.invert,
        "posterize": lambda image: ImageOps.posterize(image, min(8, max(1, int(4 * level)))),
        "solarize": lambda image: ImageOps.solarize(image, min(256, int(256 * level))),
        "solarize_add": added,
        "rotate": lambda image: image.rotate(turn, fillcolor=_outside(image)),
        "shear_x": _affine(1, shear, 0, 0, 1, 0),
        "shear_y": _affine(1, 0, 0, shear, 1, 0),
        "translate_x": _affine(1, 0, right, 0, 1, 0),
        "translate_y": _affine(1, 0, 0, 0, 1, down),
        "color": _enhanced(ImageEnhance.Color, factor),
        "contrast": _enhanced(ImageEnhance.Contrast, factor),
        "brightness": _enhanced(ImageEnhance.Brightness, factor),
        "sharpness": _enhanced(ImageEnhance.Sharpness, factor),
    }


def randaugment(x_HWC: np.ndarray, layers: int, magnitude: int, rng: Rng) -> np.ndarray:
    image = _image(x_HWC)
    for _ in range(layers):
        found = operations(magnitude, rng.choice((-1, 1)), image.size)
        image = found[str(rng.choice(list(found)))](image)
    return _array(image)
