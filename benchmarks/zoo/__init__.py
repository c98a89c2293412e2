"""Architectures of public libraries, built from their configurations with random weights."""

from benchmarks.zoo import images, senses, text
from benchmarks.zoo.base import Architecture

#: Every architecture, by library and kind.
ALL: tuple[Architecture, ...] = (*text.ALL, *senses.ALL, *images.ALL)
