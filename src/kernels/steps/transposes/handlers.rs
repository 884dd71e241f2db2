//! Which nodes a Transpose moves past, and what its order is behind them.

use super::{Mover, inverse, last_to_second};
use crate::ir::{DType, NodeId, ValueId};

/// How a node takes its data in another order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// All the same: element by element.
    Simple,
    /// The same, for operands of fewer dims, too.
    Broadcast,
    /// Along an axis, or several that are written as attribute or input.
    Axis,
    Axes,
    Softmax,
    Reduce,
    ArgReduce,
    Squeeze,
    Unsqueeze,
    Pad,
    Conversion,
    Shape,
    Transpose,
    /// The runtime has a kernel for channels at the end.
    MaxPool,
    Pool,
    Resize,
    /// Never, though it is one of the operators that a Transpose is thought to lead through.
    Reshape,
}

/// A node that a Transpose may move past.
#[derive(Debug)]
pub(super) struct Handler {
    kind: Kind,
    /// The inputs that are transposed.
    pub(super) inputs: Vec<usize>,
    /// Whether the outputs are transposed then.
    pub(super) carries: bool,
    /// Whether it is good in any case.
    pub(super) always: bool,
}

impl Mover<'_, '_> {
    pub(super) fn handler(&self, n: NodeId) -> Option<Handler> {
        let node = self.s.m.node(n);
        let kernel = self.s.kernels.get(&n).filter(|k| **k != node.op_type);
        let all = || (0..node.inputs().len()).filter(|&i| node.input(i).is_some()).collect::<Vec<_>>();
        let first = || vec![0];
        let moves = &self.s.target.layout;
        let (kind, inputs) = match (kernel, node.in_onnx_domain()) {
            // Kernels that a step made read codes where the operator read numbers.
            (Some(kernel), _) => (integer_kind(kernel)?, all()),
            (None, false) => {
                let kind = integer_kind(&node.op_type)?;
                let inputs = match node.op_type.as_str() {
                    "QLinearAdd" | "QLinearMul" => vec![0, 3],
                    "QLinearConcat" => (2..node.inputs().len()).step_by(3).collect(),
                    _ => first(),
                };
                (kind, inputs)
            }
            (None, true) => match node.op_type.as_str() {
                _ if moves.is_elementwise(node) => (Kind::Simple, all()),
                _ if moves.is_broadcast(node) => (Kind::Broadcast, all()),
                _ if moves.is_reduction(node) => (Kind::Reduce, first()),
                "Clip" | "CastLike" => (Kind::Simple, first()),
                "Concat" => (Kind::Axis, all()),
                "Split" => (Kind::Axis, first()),
                "Softmax" | "Hardmax" | "LogSoftmax" => (Kind::Softmax, first()),
                "ArgMin" | "ArgMax" => (Kind::ArgReduce, first()),
                "Squeeze" => (Kind::Squeeze, first()),
                "Unsqueeze" => (Kind::Unsqueeze, first()),
                "Slice" | "Tile" => (Kind::Axes, first()),
                "Pad" => (Kind::Pad, first()),
                "QuantizeLinear" | "DequantizeLinear" => (Kind::Conversion, first()),
                "Shape" => (Kind::Shape, first()),
                "Transpose" => (Kind::Transpose, first()),
                "Reshape" => (Kind::Reshape, first()),
                "Resize" => (Kind::Resize, first()),
                "MaxPool" if !self.is_blocked(n) => (Kind::MaxPool, first()),
                _ => return None,
            },
        };
        let inputs = match kind {
            // Scalars have no order.
            Kind::Broadcast => inputs.into_iter().filter(|&i| !self.is_scalar(node.input(i))).collect(),
            _ => inputs,
        };
        let carries = !matches!(kind, Kind::Shape | Kind::Transpose | Kind::Reshape);
        let always = self.chosen && (kind == Kind::MaxPool || kind == Kind::Resize && self.is_fast_last(n));
        Some(Handler { kind, inputs, carries, always })
    }

    /// Moves a Transpose of this order past a node; false where that cannot be done.
    pub(super) fn push(&mut self, t: NodeId, n: NodeId, perm: &[usize], handler: &Handler) -> bool {
        let rank = perm.len();
        let node = self.s.m.node(n);
        let behind = match handler.kind {
            Kind::Simple | Kind::Axes | Kind::Pad => Some(perm.to_vec()),
            Kind::Transpose => return self.join(t, n, perm),
            Kind::Reshape => None,
            Kind::Shape => Some(Vec::new()),
            Kind::Broadcast => self.level(n, rank, &handler.inputs).then(|| perm.to_vec()),
            Kind::Axis => {
                let default = (node.op_type == "Split").then_some(0);
                node.int("axis").or(default).and_then(|a| axis(a, rank)).map(|_| perm.to_vec())
            }
            Kind::Softmax => self.softmax(n, perm).then(|| perm.to_vec()),
            Kind::Conversion => {
                let scalar = self.opset() < 13 || self.is_scalar(node.input(1));
                (scalar || axis(node.int("axis").unwrap_or(1), rank).is_some()).then(|| perm.to_vec())
            }
            Kind::Reduce => self.reduced(n, perm),
            Kind::ArgReduce => {
                let keeps = node.int("keepdims").unwrap_or(1) != 0;
                let axis = axis(node.int("axis").unwrap_or(0), rank);
                axis.map(|a| if keeps { perm.to_vec() } else { without(perm, &[perm[a]]) })
            }
            Kind::Squeeze => {
                self.file_axes(n, rank, 13).map(|axes| self.moved(n, &axes, perm)).map(|a| without(perm, &a))
            }
            Kind::Unsqueeze => self.unsqueezed(n, perm),
            Kind::MaxPool => (self.chosen && self.is_codes(node.output(0)) && perm == last_to_second(rank))
                .then(|| perm.to_vec())
                .filter(|_| node.output(1).is_none()),
            Kind::Pool => self.pooled(n, perm).then(|| perm.to_vec()),
            Kind::Resize => {
                let order = last_to_second(rank);
                (self.chosen && rank == 4 && (perm == order || perm == inverse(&order))).then(|| perm.to_vec())
            }
        };
        let Some(behind) = behind else { return false };
        let before = inverse(perm);
        for &i in &handler.inputs {
            self.transpose_input(n, i, &before);
        }
        self.transpose_outputs(n, &behind);
        true
    }

    /// Brings operands to so many dims; false where that is not known or too few.
    fn level(&mut self, n: NodeId, rank: usize, inputs: &[usize]) -> bool {
        let ranks: Option<Vec<usize>> =
            inputs.iter().map(|&i| self.s.m.node(n).input(i).and_then(|v| self.dims(v)).map(|d| d.len())).collect();
        let Some(ranks) = ranks.filter(|all| all.iter().all(|&r| r <= rank)) else { return false };
        for (&i, r) in inputs.iter().zip(ranks) {
            if r < rank {
                self.unsqueeze_input(n, i, rank - r);
            }
        }
        true
    }

    /// Before opset 13 the axis cut the dims in two, and none may move to the other part.
    fn softmax(&self, n: NodeId, perm: &[usize]) -> bool {
        let (new, rank) = (self.opset() >= 13, perm.len());
        let Some(cut) = axis(self.s.m.node(n).int("axis").unwrap_or(if new { -1 } else { 1 }), rank) else {
            return false;
        };
        new || perm.iter().enumerate().all(|(i, &p)| (i < cut) == (p < cut))
    }

    fn reduced(&mut self, n: NodeId, perm: &[usize]) -> Option<Vec<usize>> {
        let node = self.s.m.node(n);
        let keeps = node.int("keepdims").unwrap_or(1) != 0;
        let since = if node.op_type == "ReduceSum" { 13 } else { 18 };
        let written = if self.opset() < since { node.attr("axes").is_some() } else { node.input(1).is_some() };
        if !written {
            let idle = node.int("noop_with_empty_axes").unwrap_or(0) != 0;
            return Some(if keeps || idle { perm.to_vec() } else { Vec::new() });
        }
        let axes = self.file_axes(n, perm.len(), since)?;
        let moved = self.moved(n, &axes, perm);
        Some(if keeps { perm.to_vec() } else { without(perm, &moved) })
    }

    fn unsqueezed(&self, n: NodeId, perm: &[usize]) -> Option<Vec<usize>> {
        let written = self.written_axes(n, 13)?;
        let rank = perm.len() + written.len();
        let added: Vec<usize> = written.iter().map(|&a| axis(a, rank)).collect::<Option<_>>()?;
        let kept: Vec<usize> = (0..rank).filter(|i| !added.contains(i)).collect();
        let mut order = perm.iter().map(|&p| kept.get(p).copied());
        (0..rank).map(|i| if added.contains(&i) { Some(i) } else { order.next().flatten() }).collect()
    }

    /// Poolings take channels in the second place or in the last one.
    fn pooled(&mut self, n: NodeId, perm: &[usize]) -> bool {
        let last = self.channels_last.contains(&n) != (self.s.m.node(n).int("channels_last").unwrap_or(0) != 0);
        let order = last_to_second(perm.len());
        let fits = if last { inverse(perm) == order } else { perm == order };
        if fits && !self.channels_last.remove(&n) {
            self.channels_last.insert(n);
        }
        fits && perm.len() >= 2
    }

    /// The axes of a node as they are now, from the file if no Transpose moved past it.
    fn file_axes(&self, n: NodeId, rank: usize, since: i64) -> Option<Vec<usize>> {
        let written = || self.written_axes(n, since)?.iter().map(|&a| axis(a, rank)).collect();
        self.axes.get(&n).cloned().or_else(written)
    }

    fn written_axes(&self, n: NodeId, since: i64) -> Option<Vec<i64>> {
        let node = self.s.m.node(n);
        match self.opset() < since {
            true => node.ints("axes").map(<[i64]>::to_vec),
            false => self.s.types().known_ints(node.input(1)?),
        }
    }

    fn moved(&mut self, n: NodeId, axes: &[usize], perm: &[usize]) -> Vec<usize> {
        let moved: Vec<usize> = axes.iter().filter_map(|&a| perm.get(a).copied()).collect();
        self.axes.insert(n, moved.clone());
        moved
    }

    fn opset(&self) -> i64 {
        self.s.m.opset("").unwrap_or(1)
    }

    fn is_scalar(&self, v: Option<ValueId>) -> bool {
        v.and_then(|v| self.dims(v).or_else(|| self.s.tensor(v).map(|t| t.dims().iter().map(|&d| Some(d)).collect())))
            .is_some_and(|dims| dims.is_empty())
    }

    fn is_codes(&self, v: Option<ValueId>) -> bool {
        v.and_then(|v| self.s.dtype(v)).is_some_and(|t| matches!(t, DType::Uint8 | DType::Int8))
    }

    /// Linear interpolation of images of codes is faster with the channels at the end.
    fn is_fast_last(&self, n: NodeId) -> bool {
        let node = self.s.m.node(n);
        let images = node.input(0).and_then(|v| self.dims(v)).is_some_and(|d| d.len() == 4);
        images && self.is_codes(node.input(0)) && node.string("mode") == Some("linear")
    }

    /// Whether a float pooling computes on blocks of channels, which nothing moves past.
    fn is_blocked(&self, n: NodeId) -> bool {
        let x = self.s.m.node(n).input(0);
        let channels = x.and_then(|v| self.dims(v)).filter(|d| d.len() == 4).and_then(|d| d[1]);
        let block = self.s.target.layout.channel_block;
        self.chosen && block > 0 && !self.is_codes(x) && channels.is_some_and(|c| c % block == 0)
    }
}

/// What integer operators and kernels do.
fn integer_kind(name: &str) -> Option<Kind> {
    Some(match name {
        "QuantizeLinear" | "DequantizeLinear" => Kind::Conversion,
        "QLinearAdd" | "QLinearMul" => Kind::Broadcast,
        "QLinearConcat" => Kind::Axis,
        "QLinearAveragePool" | "QLinearGlobalAveragePool" => Kind::Pool,
        "QLinearLeakyRelu" | "QLinearSigmoid" => Kind::Simple,
        "QLinearReduceMean" => Kind::Reduce,
        "QLinearSoftmax" => Kind::Softmax,
        _ => return None,
    })
}

/// An axis counted from the front.
fn axis(axis: i64, rank: usize) -> Option<usize> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_front).ok().filter(|&a| a < rank)
}

/// The order of what is left without these axes of what it puts in order.
fn without(perm: &[usize], axes: &[usize]) -> Vec<usize> {
    let kept: Vec<usize> = (0..perm.len()).filter(|i| !axes.contains(i)).collect();
    let place = |p: &usize| kept.iter().position(|k| k == p);
    perm.iter().filter_map(place).collect()
}
