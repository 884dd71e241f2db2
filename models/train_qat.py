#!/usr/bin/env python3
"""Train a small digit classifier with quantization in the loop, and export it in the forms that tools leave behind.

    python train_qat.py             # train, export, check
    python train_qat.py --check     # only check the files that are already there
    python train_qat.py --out DIR   # work in DIR instead of this script's folder

The data are those of ``train.py``. One float network (``QatCnn``) is trained first; every form goes on from its weights
for a few epochs with fake-quantization, and is exported with the quantizers in it:

``digits_qat_eager``   PyTorch's eager mode, ``qnnpack`` settings: uint8 activations, one scale per weight
``digits_qat_fx``      PyTorch's FX mode, ``x86`` settings: 7 bits of uint8 for activations, a scale per channel
``digits_qat_inputs``  TensorRT's style: symmetric int8, quantizers in front of weighted layers only
``digits_qat_few``     QONNX ``Quant`` and ``BipolarQuant`` nodes: 8-bit, 4-bit and binary weights, 8-bit, 4-bit and 3-bit activations;
                       ``digits_qat_few.qcdq`` is what the ``qonnx`` package makes of it

The first three are written by both of PyTorch's exporters.  For every file, ``digits_qat_codes.npz`` holds the codes that
training simulated, one array for each weighted layer, computed by PyTorch itself.
"""

import argparse
import copy
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import quantize_fx

import train as base

SEED = 4177
FLOAT_EPOCHS, QAT_EPOCHS = 60, 8
EXPORTERS = ("torchscript", "dynamo")


# -------------------------------------------------------------------- model


class Residual(nn.Module):
    """Depthwise Conv-BN-ReLU, pointwise Conv-BN, added to what came in."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.add = torch.ao.nn.quantized.FloatFunctional()
        self.relu2 = nn.ReLU()

    def forward(self, x):
        y = self.relu1(self.bn1(self.depthwise(x)))
        y = self.bn2(self.pointwise(y))
        return self.relu2(self.add.add(y, x))


class QatCnn(nn.Module):
    """Strided stem, pooling, two residual blocks, a linear layer on every pixel, one on their mean."""

    def __init__(self, width=32):
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.block1, self.block2 = Residual(width), Residual(width)
        self.tokens = nn.Linear(width, width)
        self.relu_tokens = nn.ReLU()
        self.mean = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(width, base.NUM_CLASSES)

    def forward(self, image):
        x = self.pool(self.relu(self.bn(self.stem(self.quant(image)))))
        x = self.block2(self.block1(x))
        x = self.relu_tokens(self.tokens(torch.flatten(x, 2).transpose(1, 2)))
        x = torch.flatten(self.mean(x.transpose(1, 2)), 1)
        return self.dequant(self.head(x))


FUSED = [["stem", "bn", "relu"], ["tokens", "relu_tokens"]]
for block in ("block1", "block2"):
    FUSED += [[f"{block}.depthwise", f"{block}.bn1", f"{block}.relu1"], [f"{block}.pointwise", f"{block}.bn2"]]


# ------------------------------------------------- quantizers of other styles


class Rounded(torch.autograd.Function):
    """Rounds to codes and back; gradients pass as if it did not, where the codes do not saturate.

    Exports as a QONNX node: ``Quant``, or ``BipolarQuant`` for one bit.
    """

    @staticmethod
    def forward(ctx, x, scale, bits, signed, narrow):
        if bits == 1:
            ctx.save_for_backward(x.abs() <= 1)
            return torch.where(x >= 0, 1.0, -1.0) * scale
        low, high = code_range(bits, signed, narrow)
        codes = torch.round(x / scale)
        ctx.save_for_backward((codes >= low) & (codes <= high))
        return torch.clamp(codes, low, high) * scale

    @staticmethod
    def backward(ctx, gradient):
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None, None

    @staticmethod
    def symbolic(g, x, scale, bits, signed, narrow):
        domain = "qonnx.custom_op.general"
        if bits == 1:
            return g.op(f"{domain}::BipolarQuant", x, scale).setType(x.type())
        zero = g.op("Constant", value_t=torch.tensor(0.0))
        width = g.op("Constant", value_t=torch.tensor(float(bits)))
        how = {"signed_i": int(signed), "narrow_i": int(narrow), "rounding_mode_s": "ROUND"}
        return g.op(f"{domain}::Quant", x, scale, zero, width, **how).setType(x.type())


def code_range(bits, signed, narrow):
    if signed:
        return -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - int(narrow)


class FewBits(nn.Module):
    """A quantizer of activations with a scale that follows their largest value while training."""

    def __init__(self, bits, signed):
        super().__init__()
        self.bits, self.signed = bits, signed
        self.register_buffer("scale", torch.tensor(0.0))

    def forward(self, x):
        if self.training:
            high = max(code_range(self.bits, self.signed, False)[1], 1)
            now = x.detach().abs().max() / high if self.bits > 1 else x.detach().abs().mean()
            self.scale.copy_(now if self.scale == 0 else self.scale * 0.95 + now * 0.05)
        return Rounded.apply(x, self.scale, self.bits, self.signed, False)


class FewBitsLayer(nn.Module):
    """A Conv2d or Linear whose weight is rounded to a few bits, with a scale per output channel."""

    def __init__(self, layer, bits):
        super().__init__()
        self.layer, self.bits = layer, bits

    def scale(self):
        flat = self.layer.weight.detach().flatten(1).abs()
        most = flat.mean(1) if self.bits == 1 else flat.max(1).values / code_range(self.bits, True, True)[1]
        return most.reshape(-1, *[1] * (self.layer.weight.dim() - 1))

    def forward(self, x):
        weight = Rounded.apply(self.layer.weight, self.scale(), self.bits, True, True)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        return F.conv2d(x, weight, None, self.layer.stride, self.layer.padding, 1, self.layer.groups)


class SymmetricInput(nn.Module):
    """A layer with a symmetric int8 quantizer in front of it and one for its weight, as TensorRT wants them."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.register_buffer("largest", torch.tensor(0.0))

    def weight_scale(self):
        return self.layer.weight.detach().flatten(1).abs().max(1).values / 127

    def forward(self, x):
        if self.training:
            now = x.detach().abs().max()
            self.largest.copy_(now if self.largest == 0 else self.largest * 0.95 + now * 0.05)
        x = torch.fake_quantize_per_tensor_affine(x, float(self.largest / 127), 0, -128, 127)
        scale = self.weight_scale()
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(self.layer.weight, scale, zeros, 0, -128, 127)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        return F.conv2d(x, weight, None, self.layer.stride, self.layer.padding, 1, self.layer.groups)


LAYERS = ("stem", "block1.depthwise", "block1.pointwise", "block2.depthwise", "block2.pointwise", "tokens", "head")


def replace(model, name, made):
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, made(model.get_submodule(name)))


# ----------------------------------------------------------------- training


def run(model, images, labels, epochs, peak):
    rng = torch.Generator().manual_seed(SEED)
    batch, steps = 64, len(images) // 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, epochs=epochs, steps_per_epoch=steps)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=rng)
        # Statistics of batches settle before the last epoch.
        if epoch == epochs - 1 and epochs == QAT_EPOCHS:
            model.apply(torch.ao.nn.intrinsic.qat.freeze_bn_stats)
        for step in range(steps):
            pick = order[step * batch : (step + 1) * batch]
            loss = F.cross_entropy(model(base.augment(images[pick], rng)), labels[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def frozen(model):
    """In eval mode, with ranges that stay."""
    model.eval()
    model.apply(tq.disable_observer)
    return model


def eager(model):
    model = tq.fuse_modules_qat(copy.deepcopy(model).train(), FUSED)
    # Version 0 has the quantizers that the exporters know.
    model.qconfig = tq.get_default_qat_qconfig("qnnpack", version=0)
    return tq.prepare_qat(model)


def fx(model):
    model = copy.deepcopy(model).train()
    model.quant, model.dequant = nn.Identity(), nn.Identity()
    mapping = tq.get_default_qat_qconfig_mapping("x86", version=0)
    return quantize_fx.prepare_qat_fx(model, mapping, (torch.zeros(2, 1, 32, 32),))


def inputs(model):
    model = copy.deepcopy(model).train()
    for name in LAYERS:
        replace(model, name, SymmetricInput)
    return model


def few(model):
    model = copy.deepcopy(model).train()
    bits = {"stem": 8, "block2.depthwise": 4, "block2.pointwise": 1, "head": 8}
    for name in LAYERS:
        replace(model, name, lambda layer, name=name: FewBitsLayer(layer, bits.get(name, 4)))
    model.quant = FewBits(8, True)
    widths = {"relu": 4, "block1.relu1": 4, "block1.relu2": 4, "block2.relu1": 3, "block2.relu2": 4, "relu_tokens": 4}
    for name, width in widths.items():
        replace(model, name, lambda relu, width=width: nn.Sequential(relu, FewBits(width, False)))
    return model


FORMS = {"eager": eager, "fx": fx, "inputs": inputs, "few": few}


# ------------------------------------------------------------------- export


class Spelled(nn.Module):
    """A trained quantizer of PyTorch in plain arithmetic: the exporter that goes by ``torch.export`` has no operator for it."""

    def __init__(self, fake):
        super().__init__()
        self.register_buffer("scale", fake.scale.clone())
        self.register_buffer("zero_point", fake.zero_point.clone().float())
        self.low, self.high = float(fake.quant_min), float(fake.quant_max)
        self.axis = fake.ch_axis if fake.is_per_channel else None

    def forward(self, x):
        shape = [1] * x.dim()
        if self.axis is not None:
            shape[self.axis] = -1
        scale, zero_point = self.scale.reshape(shape), self.zero_point.reshape(shape)
        return (torch.clamp(torch.round(x / scale) + zero_point, self.low, self.high) - zero_point) * scale


class SpelledInput(nn.Module):
    """The same of ``SymmetricInput``."""

    def __init__(self, trained):
        super().__init__()
        self.layer = copy.deepcopy(trained.layer)
        self.register_buffer("scale", torch.tensor(float(trained.largest / 127)))
        scale = trained.weight_scale().reshape(-1, *[1] * (self.layer.weight.dim() - 1))
        codes = torch.clamp(torch.round(self.layer.weight / scale), -128, 127)
        self.layer.weight = nn.Parameter(codes * scale)

    def forward(self, x):
        return self.layer(torch.clamp(torch.round(x / self.scale), -128, 127) * self.scale)


def spelled(model):
    model = copy.deepcopy(model)
    made = {}
    for kind, new in ((tq.FakeQuantize, Spelled), (SymmetricInput, SpelledInput)):
        for name, module in list(model.named_modules(remove_duplicate=False)):
            if isinstance(module, kind):
                replace(model, name, lambda old, new=new: made.setdefault(id(old), new(old)))
    return model


def exporters(form):
    return ("torchscript",) if form == "few" else EXPORTERS


def export(model, form, exporter, path):
    if exporter == "torchscript":
        base.export_torchscript(model, path)
    else:
        base.export_dynamo(spelled(model), path)
    strip(path)


def strip(path):
    """Drop what ties a file to the machine it was made on: source locations, inner values' shapes."""
    model = onnx.load(path)
    graph = model.graph
    for holder in [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]:
        del holder.metadata_props[:]
        holder.ClearField("doc_string")
    del graph.value_info[:]
    onnx.save(model, path)


def qcdq(source, path):
    """The standard operators that the qonnx package makes of ``Quant``; it knows none for ``BipolarQuant``, which is computed."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.fold_constants import FoldConstants
    from qonnx.transformation.infer_shapes import InferShapes
    from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ

    model = ModelWrapper(str(source)).transform(InferShapes()).transform(FoldConstants(exclude_op_types=["Quant"]))
    model.transform(QuantToQCDQ()).save(str(path))
    strip(path)


# --------------------------------------------------------------------- codes


def layer_codes(model, form):
    """The codes of every weighted layer as training simulates them, and their scales, by PyTorch."""
    found = {}
    for name in LAYERS:
        module = model.get_submodule(name)
        if form == "few":
            scale = module.scale().detach()
            rounded = Rounded.apply(module.layer.weight, scale, module.bits, True, True).detach()
        elif form == "inputs":
            weight = module.layer.weight.detach()
            scale = module.weight_scale().reshape(-1, *[1] * (weight.dim() - 1))
            rounded = torch.fake_quantize_per_channel_affine(
                weight, scale.flatten(), torch.zeros(len(weight), dtype=torch.int32), 0, -128, 127
            )
        else:
            fake = module.weight_fake_quant
            weight = module.weight.detach()
            if hasattr(module, "bn"):
                factor = module.bn.weight / torch.sqrt(module.bn.running_var + module.bn.eps)
                weight = weight * factor.detach().reshape(-1, *[1] * (weight.dim() - 1))
            rounded, scale = fake(weight).detach(), fake.scale
            if fake.is_per_channel:
                scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
        found[name] = torch.round(rounded / scale).numpy().astype(np.int8)
    return found


def correct(path, images, labels):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = session.run(None, {base.INPUT_NAME: images.numpy()})[0]
    return int((logits.argmax(1) == labels.numpy()).sum()), logits


def make(out):
    torch.manual_seed(SEED)
    images, labels, test, test_labels = base.load_split()
    float_model = run(QatCnn().train(), images, labels, FLOAT_EPOCHS, 6e-3).eval()
    codes = {}
    for form, prepare in FORMS.items():
        trained = frozen(run(prepare(float_model), images, labels, QAT_EPOCHS, 1e-3))
        for name, array in layer_codes(trained, form).items():
            codes[f"{form}.{name}"] = array
        with torch.no_grad():
            wanted = trained(test).numpy()
        print(f"{form}: {(wanted.argmax(1) == test_labels.numpy()).sum()} of {len(test)} in PyTorch")
        for exporter in exporters(form):
            path = out / f"digits_qat_{form}.{exporter}.onnx"
            export(trained, form, exporter, path)
            if form != "few":
                _, logits = correct(path, test, test_labels)
                print(f"  {exporter}: largest difference {abs(logits - wanted).max():.2g}")
    qcdq(out / "digits_qat_few.torchscript.onnx", out / "digits_qat_few.qcdq.onnx")
    np.savez_compressed(out / "digits_qat_codes.npz", **codes)


def check(out):
    _, _, test, test_labels = base.load_split()
    for path in sorted(out.glob("digits_qat_*.onnx")):
        onnx.load(path)
        if path.name != "digits_qat_few.torchscript.onnx":  # ONNX Runtime does not know its operators.
            print(f"{path.name}: {path.stat().st_size:,} bytes, {correct(path, test, test_labels)[0]} of {len(test)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only check the files that are already there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the files")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if not args.check:
        args.out.mkdir(parents=True, exist_ok=True)
        make(args.out)
    check(args.out)


if __name__ == "__main__":
    main()
