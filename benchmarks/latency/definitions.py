"""Operator lists of detectors that the published measurements name and give no graph for.

Written down from the networks' public definitions: YOLOv8 (Ultralytics `cfg/models/v8/yolov8.yaml`), YOLOX (Megvii
`yolox/models`), YOLOv7-tiny (`cfg/deploy/yolov7-tiny.yaml`). The form is that of the other lists: kind, macs, w
(weights), i and o (elements in and out), and a convolution's k, g, cin, cout, hw, stride.
"""

from __future__ import annotations

import math
from typing import Any

Operator = dict[str, Any]
CLASSES = 80


class _Net:
    """Lists operators while it follows the sizes."""

    def __init__(self, size: int) -> None:
        self.operators: list[Operator] = []
        self.size = size

    def plain(self, kind: str, inputs: int, outputs: int) -> None:
        self.operators.append({"kind": kind, "macs": 0, "w": 0, "i": inputs, "o": outputs})

    def conv(
        self, cin: int, cout: int, k: int, side: int, stride: int = 1, groups: int = 1, *, activation: bool = True
    ) -> int:
        """A convolution that makes `side` × `side`; returns cout."""
        hw, outputs = side * side, side * side * cout
        weights = cout * (cin // groups) * k * k
        kind = ("conv_pw" if k == 1 else "conv") if groups == 1 else ("conv_dw" if groups == cin else "conv_grp")
        self.operators.append(
            {
                "kind": kind, "macs": hw * weights, "w": weights, "i": hw * stride * stride * cin, "o": outputs,
                "k": k * k, "g": groups, "cin": cin, "cout": cout, "hw": hw, "stride": stride,
            }
        )  # fmt: skip
        if activation:
            self.plain("act", outputs, outputs)
        return cout

    def concat(self, channels: int, side: int) -> None:
        self.plain("move", channels * side * side, channels * side * side)

    def add(self, channels: int, side: int) -> None:
        self.plain("elt", 2 * channels * side * side, channels * side * side)

    def pool(self, channels: int, side_in: int, side_out: int) -> None:
        self.plain("pool", channels * side_in**2, channels * side_out**2)


def yolov8(size: int, depth: float, width: float, most: int) -> list[Operator]:
    net = _Net(size)

    def ch(c: int) -> int:
        return math.ceil(min(c, most) * width / 8) * 8

    def c2f(cin: int, cout: int, n: int, side: int, shortcut: bool) -> int:
        half, n = cout // 2, max(1, round(n * depth))
        net.conv(cin, cout, 1, side)
        net.plain("move", cout * side * side, cout * side * side)
        for _ in range(n):
            net.conv(half, half, 3, side)
            net.conv(half, half, 3, side)
            if shortcut:
                net.add(half, side)
        net.concat((2 + n) * half, side)
        return net.conv((2 + n) * half, cout, 1, side)

    c1, c2, c3, c4, c5 = ch(64), ch(128), ch(256), ch(512), ch(1024)
    s = [size // 2**i for i in range(6)]
    net.conv(3, c1, 3, s[1], 2)
    net.conv(c1, c2, 3, s[2], 2)
    c2f(c2, c2, 3, s[2], True)
    net.conv(c2, c3, 3, s[3], 2)
    c2f(c3, c3, 6, s[3], True)
    net.conv(c3, c4, 3, s[4], 2)
    c2f(c4, c4, 6, s[4], True)
    net.conv(c4, c5, 3, s[5], 2)
    c2f(c5, c5, 3, s[5], True)
    net.conv(c5, c5 // 2, 1, s[5])
    for _ in range(3):
        net.pool(c5 // 2, s[5], s[5])
    net.concat(2 * c5, s[5])
    net.conv(2 * c5, c5, 1, s[5])
    net.plain("move", c5 * s[5] ** 2, c5 * s[4] ** 2)
    net.concat(c5 + c4, s[4])
    c2f(c5 + c4, c4, 3, s[4], False)
    net.plain("move", c4 * s[4] ** 2, c4 * s[3] ** 2)
    net.concat(c4 + c3, s[3])
    c2f(c4 + c3, c3, 3, s[3], False)
    net.conv(c3, c3, 3, s[4], 2)
    net.concat(c3 + c4, s[4])
    c2f(c3 + c4, c4, 3, s[4], False)
    net.conv(c4, c4, 3, s[5], 2)
    net.concat(c4 + c5, s[5])
    c2f(c4 + c5, c5, 3, s[5], False)
    box, cls = max(16, c3 // 4, 64), max(c3, min(CLASSES, 100))
    for channels, side in ((c3, s[3]), (c4, s[4]), (c5, s[5])):
        for hidden, last in ((box, 64), (cls, CLASSES)):
            net.conv(channels, hidden, 3, side)
            net.conv(hidden, hidden, 3, side)
            net.conv(hidden, last, 1, side, activation=False)
        net.concat(64 + CLASSES, side)
    anchors = s[3] ** 2 + s[4] ** 2 + s[5] ** 2
    net.concat(64 + CLASSES, math.isqrt(anchors))
    net.plain("softmax", 64 * anchors, 64 * anchors)
    net.conv(16, 1, 1, math.isqrt(4 * anchors), activation=False)
    net.plain("elt", 8 * anchors, 4 * anchors)
    net.plain("act", CLASSES * anchors, CLASSES * anchors)
    net.plain("move", (4 + CLASSES) * anchors, (4 + CLASSES) * anchors)
    return net.operators


def yolox(size: int, depth: float, width: float, *, depthwise: bool = False) -> list[Operator]:
    net = _Net(size)
    base, n = int(width * 64), max(round(depth * 3), 1)
    c = [base * 2**i for i in range(5)]
    s = [size // 2**i for i in range(6)]

    def conv3(cin: int, cout: int, side: int, stride: int = 1) -> int:
        if not depthwise:
            return net.conv(cin, cout, 3, side, stride)
        net.conv(cin, cin, 3, side, stride, cin)
        return net.conv(cin, cout, 1, side)

    def csp(cin: int, cout: int, count: int, side: int, shortcut: bool) -> int:
        half = cout // 2
        net.conv(cin, half, 1, side)
        net.conv(cin, half, 1, side)
        for _ in range(count):
            net.conv(half, half, 1, side)
            conv3(half, half, side)
            if shortcut:
                net.add(half, side)
        net.concat(2 * half, side)
        return net.conv(2 * half, cout, 1, side)

    net.plain("move", 3 * size * size, 3 * size * size)
    net.conv(12, c[0], 3, s[1])
    conv3(c[0], c[1], s[2], 2)
    csp(c[1], c[1], n, s[2], True)
    conv3(c[1], c[2], s[3], 2)
    csp(c[2], c[2], 3 * n, s[3], True)
    conv3(c[2], c[3], s[4], 2)
    csp(c[3], c[3], 3 * n, s[4], True)
    conv3(c[3], c[4], s[5], 2)
    net.conv(c[4], c[4] // 2, 1, s[5])
    for _ in range(3):
        net.pool(c[4] // 2, s[5], s[5])
    net.concat(2 * c[4], s[5])
    net.conv(2 * c[4], c[4], 1, s[5])
    csp(c[4], c[4], n, s[5], False)
    net.conv(c[4], c[3], 1, s[5])
    net.plain("move", c[3] * s[5] ** 2, c[3] * s[4] ** 2)
    net.concat(2 * c[3], s[4])
    csp(2 * c[3], c[3], n, s[4], False)
    net.conv(c[3], c[2], 1, s[4])
    net.plain("move", c[2] * s[4] ** 2, c[2] * s[3] ** 2)
    net.concat(2 * c[2], s[3])
    csp(2 * c[2], c[2], n, s[3], False)
    conv3(c[2], c[2], s[4], 2)
    net.concat(2 * c[2], s[4])
    csp(2 * c[2], c[3], n, s[4], False)
    conv3(c[3], c[3], s[5], 2)
    net.concat(2 * c[3], s[5])
    csp(2 * c[3], c[4], n, s[5], False)
    hidden = int(256 * width)
    for channels, side in ((c[2], s[3]), (c[3], s[4]), (c[4], s[5])):
        net.conv(channels, hidden, 1, side)
        for lasts in ((CLASSES,), (4, 1)):
            conv3(hidden, hidden, side)
            conv3(hidden, hidden, side)
            for last in lasts:
                net.conv(hidden, last, 1, side, activation=False)
        net.plain("act", (1 + CLASSES) * side * side, (1 + CLASSES) * side * side)
        net.concat(5 + CLASSES, side)
    return net.operators


def yolov7_tiny(size: int) -> list[Operator]:
    net = _Net(size)
    s = [size // 2**i for i in range(6)]

    def elan(cin: int, c: int, cout: int, side: int) -> int:
        net.conv(cin, c, 1, side)
        net.conv(cin, c, 1, side)
        net.conv(c, c, 3, side)
        net.conv(c, c, 3, side)
        net.concat(4 * c, side)
        return net.conv(4 * c, cout, 1, side)

    net.conv(3, 32, 3, s[1], 2)
    net.conv(32, 64, 3, s[2], 2)
    elan(64, 32, 64, s[2])
    for cin, level in ((64, 3), (128, 4), (256, 5)):
        net.pool(cin, s[level - 1], s[level])
        elan(cin, cin, 2 * cin, s[level])
    net.conv(512, 256, 1, s[5])
    net.conv(512, 256, 1, s[5])
    for _ in range(3):
        net.pool(256, s[5], s[5])
    net.concat(1024, s[5])
    net.conv(1024, 256, 1, s[5])
    net.concat(512, s[5])
    net.conv(512, 256, 1, s[5])
    for cin, route, level in ((256, 256, 4), (128, 128, 3)):
        half = cin // 2
        net.conv(cin, half, 1, s[level + 1])
        net.plain("move", half * s[level + 1] ** 2, half * s[level] ** 2)
        net.conv(route, half, 1, s[level])
        net.concat(cin, s[level])
        elan(cin, half // 2, half, s[level])
    for cin, level in ((64, 4), (128, 5)):
        net.conv(cin, 2 * cin, 3, s[level], 2)
        net.concat(4 * cin, s[level])
        elan(4 * cin, cin, 2 * cin, s[level])
    for cin, level in ((64, 3), (128, 4), (256, 5)):
        net.conv(cin, 2 * cin, 3, s[level])
        net.conv(2 * cin, 3 * (5 + CLASSES), 1, s[level], activation=False)
        net.plain("act", 255 * s[level] ** 2, 255 * s[level] ** 2)
        net.plain("move", 255 * s[level] ** 2, 255 * s[level] ** 2)
    return net.operators


def define(model: str, size: int) -> list[Operator] | None:
    """The operators of a model at `size` × `size` pixels; None where no definition is written down."""
    name = model.removeprefix("np:").replace("yolox_", "yolox")
    eights = {"yolov8n": (1 / 3, 0.25, 1024), "yolov8s": (1 / 3, 0.5, 1024), "yolov8m": (2 / 3, 0.75, 768)}
    xs = {"yoloxn": (0.33, 0.25), "yoloxt": (0.33, 0.375), "yoloxs": (0.33, 0.5), "yoloxm": (0.67, 0.75)}
    xs["yoloxl"] = (1.0, 1.0)
    if name in eights:
        return yolov8(size, *eights[name])
    if name in xs:
        return yolox(size, *xs[name], depthwise=name == "yoloxn")
    return yolov7_tiny(size) if name == "yolov7t" else None
