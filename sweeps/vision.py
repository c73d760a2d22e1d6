"""What augmentation does to the exponent of data: ResNet and ViT on Fashion-MNIST, with and without it.

    bigmodel prepare fashion-mnist
    bigmodel sweep run sweeps/vision.py && bigmodel report sweeps/vision.py
    bigmodel fit runs/vision --L=eval_error --where=family=resnet         the error rate, by the same law

4 widths x 2 depths x 3 amounts of pictures a family, each picture seen six times: D, which counts what is seen, is in
proportion to the different pictures. Augmented: random windows of the padded picture and mirroring.
"""

from analyses import families

from bigmodel import sweep

CONFIG = "experiments/resnet.py"
LAW = None  # one for each family, with and without augmentation
SHAPES = {"resnet": ([4, 6, 8, 12], [3, 6]), "vit": ([16, 24, 32, 48], [2, 4])}
PICTURES = [2_000, 6_000, 18_000]
PASSES = 6


def get_sweep():
    sizes = sweep.zip_({"data.examples": PICTURES, "train.tokens": [PASSES * n for n in PICTURES]})
    augmented = [{"data.crop": 2, "data.flip": True}, {"data.crop": 0, "data.flip": False}]
    rows = []
    for family, (widths, depths) in SHAPES.items():
        shapes = sweep.ladder(family, widths=widths, depths=depths)
        own = [{"experiment": f"experiments/{family}.py"}]
        rows += sweep.product(own, shapes, augmented, sizes)
    return rows


def label(config):
    return f"{config['family']}, {'augmented' if config['data']['crop'] else 'plain'}"


def report(folder, out):
    return families.report(folder, out, label)
