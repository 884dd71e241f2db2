#!/usr/bin/env python3
"""Train two digit classifiers whose weights have two or three numbers only, and export them to ONNX.

    python train_signs.py             # train, export, check
    python train_signs.py --out DIR   # write to DIR instead of this script's folder

Data
    scikit-learn's ``load_digits``: 1797 grey images of 8x8 pixels, values 0..16, scaled to 0..1. A fixed stratified split puts 540
    images aside, which only measure the finished models.

Models
    ``digits_binary``    every weight of a layer is +a or -a
    ``digits_ternary``   every weight of a layer is +a, 0 or -a
    A convolution (1 to 32 channels, 3x3), ReLU, max pooling, and two linear layers (512 to 128 to 10). The convolution has an a for each
    output channel, the linear layers one each. Biases are ordinary numbers. Input ``image`` (float32, N x 1 x 8 x 8), output
    ``logits`` (float32, N x 10).

Training keeps latent weights in full precision, rounds them in each forward pass, and passes gradients through the rounding as if it
were not there (Courbariaux et al., "BinaryConnect", 2015; Li et al., "Ternary Weight Networks", 2016). NumPy only; everything
random is seeded.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CHANNELS, HIDDEN, CLASSES = 32, 128, 10
EPOCHS, BATCH, RATE = 40, 64, 2e-3


def binary(w, axes):
    scale = np.abs(w).mean(axis=axes, keepdims=True)
    return np.where(w < 0, -scale, scale).astype(np.float32)


def ternary(w, axes):
    size = np.abs(w)
    kept = size > 0.7 * size.mean(axis=axes, keepdims=True)
    scale = (size * kept).sum(axis=axes, keepdims=True) / np.maximum(kept.sum(axis=axes, keepdims=True), 1)
    return (np.sign(w) * kept * scale).astype(np.float32)


def patches(x):
    """N x 1 x 8 x 8 to N x 64 x 9: what a 3x3 window sees, with a border of zeros."""
    padded = np.pad(x[:, 0], ((0, 0), (1, 1), (1, 1)))
    return np.stack([padded[:, i : i + 8, j : j + 8].reshape(len(x), 64) for i in range(3) for j in range(3)], axis=2)


class Net:
    def __init__(self, rounding, seed):
        draw = np.random.default_rng(seed)
        normal = lambda *dims: (draw.standard_normal(dims) / np.sqrt(np.prod(dims[1:]))).astype(np.float32)
        self.rounding = rounding
        self.latent = {"conv": normal(CHANNELS, 9), "first": normal(HIDDEN, CHANNELS * 16), "second": normal(CLASSES, HIDDEN)}
        self.bias = {k: np.zeros(len(w), np.float32) for k, w in self.latent.items()}
        self.moments = {}
        self.steps = 0

    def weights(self):
        return {k: self.rounding(w, 1 if k == "conv" else (0, 1)) for k, w in self.latent.items()}

    def forward(self, x):
        w = self.weights()
        seen = patches(x)
        conv = np.maximum(seen @ w["conv"].T + self.bias["conv"], 0)  # N x 64 x C
        windows = conv.reshape(-1, 4, 2, 4, 2, CHANNELS).transpose(0, 5, 1, 3, 2, 4).reshape(len(x), CHANNELS, 16, 4)
        best = windows.argmax(axis=3)
        pooled = windows.max(axis=3).reshape(len(x), -1)
        hidden = np.maximum(pooled @ w["first"].T + self.bias["first"], 0)
        return hidden @ w["second"].T + self.bias["second"], (w, seen, conv, best, pooled, hidden)

    def train(self, x, labels):
        logits, (w, seen, conv, best, pooled, hidden) = self.forward(x)
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        share[np.arange(len(x)), labels] -= 1
        slope = share / len(x)
        grads = {"second": (slope.T @ hidden, slope.sum(0))}
        slope = (slope @ w["second"]) * (hidden > 0)
        grads["first"] = (slope.T @ pooled, slope.sum(0))
        slope = (slope @ w["first"]).reshape(len(x), CHANNELS, 16, 1) * (np.arange(4) == best[..., None])
        slope = slope.reshape(-1, CHANNELS, 4, 4, 2, 2).transpose(0, 2, 4, 3, 5, 1).reshape(len(x), 64, CHANNELS)
        slope = slope * (conv > 0)
        grads["conv"] = (np.einsum("npc,npk->ck", slope, seen), slope.sum((0, 1)))
        self.steps += 1
        for name, (weight, bias) in grads.items():
            self.adam(name, self.latent[name], weight)
            self.adam(name + "/bias", self.bias[name], bias)

    def adam(self, name, value, grad):
        m, v = self.moments.setdefault(name, (np.zeros_like(value), np.zeros_like(value)))
        m += 0.1 * (grad - m)
        v += 0.001 * (grad * grad - v)
        by = (m / (1 - 0.9**self.steps)) / (np.sqrt(v / (1 - 0.999**self.steps)) + 1e-8)
        value -= (RATE * by).astype(np.float32)

    def export(self, path):
        w = self.weights()
        constants = {
            "conv.weight": w["conv"].reshape(CHANNELS, 1, 3, 3),
            "first.weight": w["first"],
            "second.weight": w["second"],
            **{f"{k}.bias": b for k, b in self.bias.items()},
        }
        nodes = [
            helper.make_node("Conv", ["image", "conv.weight", "conv.bias"], ["conv"], "conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
            helper.make_node("Relu", ["conv"], ["conv_relu"], "conv_relu"),
            helper.make_node("MaxPool", ["conv_relu"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
            helper.make_node("Gemm", ["flat", "first.weight", "first.bias"], ["first"], "first", transB=1),
            helper.make_node("Relu", ["first"], ["hidden"], "first_relu"),
            helper.make_node("Gemm", ["hidden", "second.weight", "second.bias"], ["logits"], "second", transB=1),
        ]
        graph = helper.make_graph(
            nodes,
            path.stem,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
            [numpy_helper.from_array(np.ascontiguousarray(a, np.float32), k) for k, a in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="train_signs.py")
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    x, held, labels, truth = train_test_split(images, digits.target, test_size=540, random_state=0, stratify=digits.target)
    for name, rounding, seed in [("digits_binary", binary, 1), ("digits_ternary", ternary, 2)]:
        net, order = Net(rounding, seed), np.random.default_rng(seed)
        for _ in range(EPOCHS):
            for at in np.array_split(order.permutation(len(x)), len(x) // BATCH):
                net.train(x[at], labels[at])
        right = (net.forward(held)[0].argmax(axis=1) == truth).mean()
        net.export(out / f"{name}.onnx")
        print(f"{name}: {100 * right:.2f} % of {len(held)} images")


if __name__ == "__main__":
    main()
