#!/usr/bin/env python3
"""Train the two digit classifiers of this folder and export them to ONNX.

    python train.py             # train, export, write the data sets, check
    python train.py --check     # only check the files that are already there
    python train.py --out DIR   # work in DIR instead of this script's folder

Data
    scikit-learn's ``load_digits``: 1797 grey images of 8x8 pixels with integer
    values 0..16, ten classes.  An image is scaled to 0..1, enlarged to 32x32
    (bilinear) and normalised with mean 0.5 and deviation 0.5.  A fixed
    stratified split puts 540 images aside; they only measure finished models
    and never pick a setting or a checkpoint.

Models
    ``digits_cnn``          convolutional network, see ``DigitsCnn``
    ``digits_transformer``  small vision transformer, see ``DigitsTransformer``

Both take one input, ``image`` (float32, N x 1 x 32 x 32), and give one output,
``logits`` (float32, N x 10); N is free.  Both are written once by PyTorch's
TorchScript-based exporter and once by its ``torch.export``-based ("dynamo")
exporter, because the two produce quite different graphs.

Everything random is seeded and PyTorch runs on one thread with deterministic
kernels, so that one machine with one set of package versions always gives the
same weights.  Other machines may differ in the last digits.
"""

import argparse
import math
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

SEED = 20240
IMAGE_SIZE = 32
NUM_CLASSES = 10
NUM_TEST = 540
NUM_CALIB = 128
INPUT_NAME = "image"
OUTPUT_NAME = "logits"
EXPORTERS = ("torchscript", "dynamo")


# --------------------------------------------------------------------- data


def prepare(raw):
    """Turn raw digits (N x 8 x 8, values 0..16) into model inputs."""
    x = torch.from_numpy(raw.astype(np.float32)).unsqueeze(1) / 16.0
    x = F.interpolate(x, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    return (x - 0.5) / 0.5


def load_split():
    """Return (train images, train labels, test images, test labels)."""
    digits = load_digits()
    raw_train, raw_test, y_train, y_test = train_test_split(
        digits.images,
        digits.target,
        test_size=NUM_TEST,
        stratify=digits.target,
        random_state=SEED,
    )
    return (
        prepare(raw_train),
        torch.from_numpy(y_train.astype(np.int64)),
        prepare(raw_test),
        torch.from_numpy(y_test.astype(np.int64)),
    )


def augment(x, rng):
    """Rotate, scale, shear and shift every image of a batch a little."""
    n = x.shape[0]

    def uniform(limit):
        return (torch.rand(n, generator=rng) * 2 - 1) * limit

    angle = uniform(math.radians(12))
    shear = uniform(0.15)
    scale_x = 1 + uniform(0.12)
    scale_y = 1 + uniform(0.12)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Rotation times shear and scale; shifts of up to 2.4 of 32 pixels.
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = cos * scale_x
    theta[:, 0, 1] = (cos * shear - sin) * scale_y
    theta[:, 1, 0] = sin * scale_x
    theta[:, 1, 1] = (sin * shear + cos) * scale_y
    theta[:, 0, 2] = uniform(0.15)
    theta[:, 1, 2] = uniform(0.15)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    # Outside the image lies background, which is -1 and not 0.
    return F.grid_sample(x + 1, grid, mode="bilinear", align_corners=False) - 1


# ------------------------------------------------------------------- models


class ResidualBlock(nn.Module):
    """Conv-BN-ReLU-Conv-BN with an identity shortcut, then ReLU."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(x + y)


class DepthwiseSeparable(nn.Module):
    """Depthwise Conv-BN-ReLU6, then a linear pointwise Conv-BN."""

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels,
            in_channels,
            3,
            stride=stride,
            padding=1,
            groups=in_channels,
            bias=False,
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu6 = nn.ReLU6()
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        x = self.relu6(self.bn1(self.depthwise(x)))
        return self.bn2(self.pointwise(x))


class DigitsCnn(nn.Module):
    """Stem, residual blocks, depthwise-separable blocks, pooling, linear head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.stage1 = nn.Sequential(ResidualBlock(32), ResidualBlock(32))  # 32 x 32
        self.down1 = DepthwiseSeparable(32, 64, stride=2)  # 16 x 16
        self.stage2 = ResidualBlock(64)
        self.widen = DepthwiseSeparable(64, 96, stride=1)
        self.down2 = DepthwiseSeparable(96, 128, stride=2)  # 8 x 8
        self.act = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(128, NUM_CLASSES)

    def forward(self, image):
        x = self.stage1(self.stem(image))
        x = self.stage2(self.down1(x))
        x = self.act(self.down2(self.widen(x)))
        return self.head(torch.flatten(self.pool(x), 1))


class SelfAttention(nn.Module):
    """Multi-head self-attention in plain matrix products and a softmax."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def split_heads(self, x):
        n, tokens, _ = x.shape
        return x.reshape(n, tokens, self.heads, self.head_dim).transpose(1, 2)

    def forward(self, x):
        n, tokens, dim = x.shape
        q = self.split_heads(self.query(x))
        k = self.split_heads(self.key(x))
        v = self.split_heads(self.value(x))
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.head_dim)
        mixed = torch.matmul(torch.softmax(scores, dim=-1), v)
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, dim))


class EncoderBlock(nn.Module):
    """Pre-LN encoder block: attention and a GELU perceptron, each residual."""

    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))


class DigitsTransformer(nn.Module):
    """8 x 8 patches and a class token, three encoder blocks, linear head."""

    def __init__(self, dim=64, heads=4, hidden=192, depth=3, patch=8):
        super().__init__()
        tokens = (IMAGE_SIZE // patch) ** 2 + 1
        self.patches = nn.Conv2d(1, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
        self.blocks = nn.Sequential(*[EncoderBlock(dim, heads, hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, NUM_CLASSES)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        token = self.class_token.expand(x.shape[0], -1, -1)
        x = torch.cat([token, x], dim=1) + self.position
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


# name: (class, epochs, peak learning rate)
MODELS = {
    "digits_cnn": (DigitsCnn, 40, 4e-3),
    "digits_transformer": (DigitsTransformer, 300, 2e-3),
}


# ----------------------------------------------------------------- training


def train(name, images, labels):
    """Train one model with AdamW and a one-cycle schedule; return it in eval mode."""
    make, epochs, peak = MODELS[name]
    torch.manual_seed(SEED)
    rng = torch.Generator().manual_seed(SEED)
    model = make().train()
    batch = 64
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak, epochs=epochs, steps_per_epoch=steps, pct_start=0.2
    )
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=rng)
        total = 0.0
        for step in range(steps):
            pick = order[step * batch : (step + 1) * batch]
            logits = model(augment(images[pick], rng))
            loss = F.cross_entropy(logits, labels[pick], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"{name}: epoch {epoch + 1}/{epochs}, loss {total / steps:.4f}", flush=True)
    return model.eval()


# ------------------------------------------------------------------- export


def export_torchscript(model, path):
    """TorchScript-based exporter, opset 17.

    In its default mode this exporter folds BatchNormalization into the
    convolution before it.  ``TrainingMode.PRESERVE`` leaves the graph as it
    is; the model is in eval mode, so the nodes have inference semantics.
    """
    torch.onnx.export(
        model,
        (torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE),),
        str(path),
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
    )


def export_dynamo(model, path):
    """``torch.export``-based exporter, opset 20, weights inside the file."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE),),
        dynamo=True,
        opset_version=20,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    program.save(str(path), external_data=False)


def strip_traces(path):
    """Drop what ties a file to the machine it was made on: source locations."""
    model = onnx.load(path)
    graph = model.graph
    holders = [model, graph, *graph.node, *graph.input, *graph.output]
    holders += [*graph.value_info, *graph.initializer]
    for holder in holders:
        kept = [p for p in holder.metadata_props if "stack_trace" not in p.key]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
        holder.ClearField("doc_string")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def export(name, model, out):
    for exporter, function in zip(EXPORTERS, (export_torchscript, export_dynamo)):
        path = out / f"{name}.{exporter}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(model, path)
        strip_traces(path)


def write_data(out, x_train, y_train, x_test, y_test):
    """Calibration: a stratified sample of the training split; evaluation: all of the test split."""
    calib, _ = train_test_split(
        np.arange(len(x_train)),
        train_size=NUM_CALIB,
        stratify=y_train.numpy(),
        random_state=SEED,
    )
    np.savez_compressed(out / "digits_calib.npz", **{INPUT_NAME: x_train[calib].numpy()})
    np.savez_compressed(
        out / "digits_eval.npz", **{INPUT_NAME: x_test.numpy(), "labels": y_test.numpy()}
    )


# -------------------------------------------------------------------- check


def run_onnx(path, images, batch):
    """Logits of an ONNX file for all images, computed ``batch`` at a time."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    chunks = [images[i : i + batch] for i in range(0, len(images), batch)]
    return np.concatenate([session.run(None, {INPUT_NAME: c})[0] for c in chunks])


def check(out, trained=None):
    """Print size, operators and accuracy of every file.

    Each file has to give the same answers at batch 1 and batch 100, both
    exports of one model have to agree, and, straight after training, they have
    to agree with PyTorch as well.
    """
    data = np.load(out / "digits_eval.npz")
    images, labels = data[INPUT_NAME], data["labels"]
    for name in MODELS:
        if trained:
            with torch.no_grad():
                expected = trained[name](torch.from_numpy(images)).numpy()
        else:
            expected = run_onnx(out / f"{name}.{EXPORTERS[0]}.onnx", images, 100)
        for exporter in EXPORTERS:
            path = out / f"{name}.{exporter}.onnx"
            model = onnx.load(path)
            single = run_onnx(path, images, 1)
            many = run_onnx(path, images, 100)
            np.testing.assert_allclose(many, single, atol=1e-4)
            np.testing.assert_allclose(many, expected, atol=1e-4)
            right = int((many.argmax(1) == labels).sum())
            opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
            counts = Counter(node.op_type for node in model.graph.node)
            size = path.stat().st_size
            print(f"{path.name}: {size} bytes, opset {opsets}, IR {model.ir_version}")
            print(f"  accuracy {right}/{len(labels)} = {100 * right / len(labels):.2f} %")
            print(f"  largest difference {np.abs(many - expected).max():.1e}")
            print("  " + ", ".join(f"{op} {n}" for op, n in sorted(counts.items())))


def main():
    parser = argparse.ArgumentParser(description="Train and export the digit classifiers.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--check", action="store_true", help="only check existing files")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if args.check:
        check(args.out)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    x_train, y_train, x_test, y_test = load_split()
    write_data(args.out, x_train, y_train, x_test, y_test)
    trained = {}
    for name in MODELS:
        trained[name] = train(name, x_train, y_train)
        export(name, trained[name], args.out)
    check(args.out, trained)


if __name__ == "__main__":
    main()
