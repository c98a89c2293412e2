"""The figures the paper's authors publish, to stand beside ours.

Source: table 5 as given in the README of the authors' own repository,
github.com/YUNBLAK/standalone_16bits_nn at commit 3952ce4 (1 May 2024), for Yun, Choi, Rameau, Kang,
Fu, *Standalone 16-bit Training*, arXiv 2305.10947: CIFAR-10, TensorFlow, 100 epochs at a batch of
256 with SGD, learning rate 0.01. Copied digit by digit; differences and speedups are computed from
the columns copied, and so may differ from theirs, which they rounded from more digits, by one in
the last place. Two figures there look like slips of the pen and are kept out of what we compute:
AlexNet's 2.09 million parameters (their program has 20.97) and ViT-12's difference of -0.004.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = (
    "table 5 in the README of the authors' repository, github.com/YUNBLAK/standalone_16bits_nn, "
    "commit 3952ce4; CIFAR-10, TensorFlow"
)


@dataclass(frozen=True)
class Published:
    """A row: accuracies in percent as (mean, spread) and seconds, each float16, float32, mixed.

    Attributes:
        millions: parameters, running statistics counted as Keras does.
    """

    millions: float
    accuracy: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    seconds: tuple[float, float, float]


PUBLISHED = {
    "AlexNet": Published(2.09, ((76.0, 0.3), (75.8, 0.3), (75.9, 0.3)), (96, 174, 150)),
    "VGG-16": Published(33.76, ((83.7, 0.3), (83.9, 0.2), (83.8, 0.2)), (377, 857, 455)),
    "VGG-19": Published(38.36, ((83.8, 0.2), (83.9, 0.3), (83.9, 0.2)), (416, 937, 492)),
    "ResNet-32": Published(0.47, ((80.9, 0.3), (80.9, 0.4), (80.9, 0.3)), (413, 551, 483)),
    "ResNet-56": Published(0.86, ((81.6, 0.4), (81.4, 0.6), (81.5, 0.6)), (677, 905, 795)),
    "ResNet-110": Published(1.78, ((81.8, 0.4), (81.4, 0.5), (81.8, 0.5)), (1256, 1712, 1486)),
    "DenseNet-121": Published(7.04, ((72.1, 0.3), (72.6, 0.4), (73.0, 0.3)), (539, 720, 641)),
    "DenseNet-169": Published(12.65, ((71.7, 0.5), (72.3, 0.3), (72.1, 0.3)), (724, 966, 812)),
    "Xception": Published(22.96, ((75.9, 0.4), (76.3, 0.3), (76.3, 0.4)), (324, 611, 412)),
    "MobileNetV2": Published(2.27, ((69.4, 1.1), (70.0, 1.2), (70.0, 1.1)), (353, 588, 411)),
    "ViT-8": Published(2.02, ((71.0, 0.3), (71.3, 0.3), (71.2, 0.3)), (316, 423, 410)),
    "ViT-12": Published(2.55, ((71.1, 0.3), (71.4, 0.3), (71.5, 0.3)), (425, 663, 629)),
}
