//! How each operator takes factors in or hands them on.

use super::{Port, Power, Refusal, Search, Take};
use crate::{
    analysis::types::Types,
    ir::{DType, Model, NodeId, ValueId},
};

/// The most nodes between a value and the layer that makes it, where it is to be chosen.
const LONGEST: usize = 8;

/// The axis of a layer's data along which its input channels lie; `None` where the node is no layer with a constant weight.
pub fn data_axis(model: &Model, types: &Types, node: NodeId) -> Option<usize> {
    let n = model.node(node);
    is_layer(model, node).then_some(())?;
    match n.op_type.as_str() {
        "MatMul" => types.rank(n.input(0)?)?.checked_sub(1),
        "Gemm" if n.int("transA").unwrap_or(0) != 0 => None,
        _ => Some(1),
    }
}

/// The axis of what a layer makes along which its output channels lie.
pub(super) fn output_axis(model: &Model, types: &Types, node: NodeId) -> Option<usize> {
    let n = model.node(node);
    match n.op_type.as_str() {
        _ if !is_layer(model, node) => None,
        "MatMul" => types.rank(n.output(0)?)?.checked_sub(1),
        _ => Some(1),
    }
}

/// What takes factors of a layer's data in: its weight.
pub fn data_take(model: &Model, node: NodeId) -> Option<Take> {
    let n = model.node(node);
    let weight = n.input(1).filter(|&v| model.value(v).uses().len() == 1)?;
    let rank = model.value(weight).constant()?.rank();
    let (axis, groups) = match n.op_type.as_str() {
        "Conv" => (1, groups(model, node)?),
        "ConvTranspose" => (0, 1),
        "Gemm" => (usize::from(n.int("transB").unwrap_or(0) != 0), 1),
        "MatMul" => (rank.checked_sub(2)?, 1),
        _ => return None,
    };
    Some(Take { node, input: 1, axes: vec![axis], groups, power: Power::Times })
}

fn groups(model: &Model, node: NodeId) -> Option<usize> {
    let outs = *model.constant_input(node, 1)?.dims().first()?;
    let groups = usize::try_from(model.node(node).int("group").unwrap_or(1)).ok()?;
    (groups > 0 && outs % groups == 0).then_some(groups)
}

/// Whether a node is a layer whose weight is a constant that nobody can override.
fn is_layer(model: &Model, node: NodeId) -> bool {
    let n = model.node(node);
    let named = matches!(n.op_type.as_str(), "Conv" | "ConvTranspose" | "Gemm" | "MatMul") && n.in_onnx_domain();
    let weight = model.constant_input(node, 1).filter(|t| t.dtype() == DType::Float);
    named && weight.is_some_and(|t| t.rank() >= if n.is("Conv") || n.is("ConvTranspose") { 3 } else { 2 })
}

impl Search<'_> {
    /// Hands the factors of the value at `port` on, or lets constants of the node take them in.
    pub(super) fn visit(&mut self, node: NodeId, port: Port, axes: &[usize]) -> Result<(), Refusal> {
        let n = self.model.node(node);
        if !n.in_onnx_domain() {
            return Err("not an operator of ONNX".into());
        }
        match n.op_type.as_str() {
            "Shape" | "Size" => Ok(()),
            _ if is_layer(self.model, node) => self.layer(node, port, axes),
            "MatMul" => self.product(node, port, axes),
            "BatchNormalization" | "InstanceNormalization" | "LayerNormalization" | "RMSNormalization" => {
                self.normalization(node, port, axes)
            }
            "Add" | "Sub" | "Mul" | "Div" => self.arithmetic(node, port, axes),
            "Clip" | "Relu" | "Max" | "Min" => {
                let out = n.output(0).ok_or("it makes nothing")?;
                self.bound(node, out)?;
                self.hand_on(node, port, axes.to_vec())
            }
            "LeakyRelu" | "PRelu" | "Identity" => self.hand_on(node, port, axes.to_vec()),
            "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" | "MaxPool" | "Resize" if axes == [1] => {
                match (n.outputs().len(), n.string("coordinate_transformation_mode")) {
                    (1, None) => self.hand_on(node, port, axes.to_vec()),
                    (1, Some(mode)) if mode != "tf_crop_and_resize" => self.hand_on(node, port, axes.to_vec()),
                    _ => Err("it makes more than moved or averaged numbers".into()),
                }
            }
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" if n.int("keepdims").unwrap_or(1) != 0 => {
                self.hand_on(node, port, axes.to_vec())
            }
            "Slice" => match self.constant(node, 4).map(|t| t.to_i64()) {
                None if n.input(4).is_some() => Err("its steps are not constants".into()),
                Some(steps) if !steps.as_ref().is_ok_and(|s| s.iter().all(|&s| s > 0)) => Err("it turns around".into()),
                _ => self.hand_on(node, port, axes.to_vec()),
            },
            "Pad" => self.pad(node, port, axes),
            "Transpose" => self.transpose(node, port, axes),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => self.reshape(node, port, axes),
            _ => Err("it computes something else from divided numbers".into()),
        }
    }

    /// From input 0 to output 0 or back; `axes` are those at the other end.
    fn hand_on(&mut self, node: NodeId, port: Port, axes: Vec<usize>) -> Result<(), Refusal> {
        let n = self.model.node(node);
        let other = match port {
            Port::Output => n.input(0),
            Port::Input(0) => n.output(0),
            Port::Input(_) => return Err("it is a parameter there".into()),
        };
        self.join(other.ok_or("it reads or makes nothing")?, axes)
    }

    fn layer(&mut self, node: NodeId, port: Port, axes: &[usize]) -> Result<(), Refusal> {
        let n = self.model.node(node);
        let (model, types) = (self.model, self.types);
        let own = match port {
            Port::Output => output_axis(model, types, node),
            Port::Input(_) => data_axis(model, types, node),
        };
        if own.is_none_or(|own| axes != [own]) {
            return Err("its channels lie along another axis".into());
        }
        if port != Port::Output {
            let data = port == Port::Input(0);
            let take = data_take(model, node)
                .filter(|_| data)
                .ok_or("its weight cannot take factors in, or others read it too")?;
            return self.take(take);
        }
        let rank = self.constant(node, 1).map_or(0, |t| t.rank());
        let (axis, groups) = match n.op_type.as_str() {
            "Conv" => (0, 1),
            "ConvTranspose" => (1, usize::try_from(n.int("group").unwrap_or(1)).map_err(|_| "it has no groups")?),
            "Gemm" => (usize::from(n.int("transB").unwrap_or(0) == 0), 1),
            _ => (rank - 1, 1),
        };
        self.take(Take { node, input: 1, axes: vec![axis], groups, power: Power::Over })?;
        match n.input(2) {
            None => Ok(()),
            Some(_) => {
                let last =
                    self.constant(node, 2).and_then(|t| t.rank().checked_sub(1)).ok_or("its bias is computed")?;
                self.take(Take { node, input: 2, axes: vec![last], groups: 1, power: Power::Over })
            }
        }
    }

    /// Of two computed matrices.
    fn product(&mut self, node: NodeId, port: Port, axes: &[usize]) -> Result<(), Refusal> {
        let n = self.model.node(node);
        let (Some(a), Some(b), Some(y)) = (n.input(0), n.input(1), n.output(0)) else {
            return Err("it reads or makes nothing".into());
        };
        let rank = self.rank(y).filter(|r| *r >= 2 && self.rank(a) == Some(*r) && self.rank(b) == Some(*r));
        let rank = rank.ok_or("its sides have other ranks")?;
        let (rows, columns) = (axes.contains(&(rank - 2)), axes.contains(&(rank - 1)));
        let side = match port {
            Port::Input(0) if !columns => 0,
            Port::Input(1) if !rows => 1,
            Port::Input(_) => return Err("it adds up along the channels".into()),
            Port::Output if columns && !rows => 1,
            Port::Output if rows && !columns => 0,
            Port::Output => return Err("it is not clear which side makes the channels".into()),
        };
        self.divide_one(node, side, axes)
    }

    /// Divides what the node makes and one of the two values that it makes it of.
    fn divide_one(&mut self, node: NodeId, side: usize, axes: &[usize]) -> Result<(), Refusal> {
        let n = self.model.node(node);
        if n.input(0) == n.input(1) || *self.divided.entry(node).or_insert(side) != side {
            return Err("both of its sides would be divided".into());
        }
        let (input, out) = n.input(side).zip(n.output(0)).ok_or("it reads or makes nothing")?;
        self.join(input, axes.to_vec())?;
        self.join(out, axes.to_vec())
    }

    fn normalization(&mut self, node: NodeId, port: Port, axes: &[usize]) -> Result<(), Refusal> {
        let n = self.model.node(node);
        if port != Port::Output {
            return Err("it would undo the division".into());
        }
        let out = n.output(0).ok_or("it makes nothing")?;
        let last = self.rank(out).and_then(|r| r.checked_sub(1)).ok_or("its rank is not known")?;
        let own = match n.op_type.as_str() {
            "LayerNormalization" | "RMSNormalization" => {
                let axis = n.int("axis").unwrap_or(-1);
                (axis == -1 || usize::try_from(axis) == Ok(last)).then_some(last)
            }
            _ => Some(1),
        };
        if own.is_none_or(|own| axes != [own]) {
            return Err("its channels lie along another axis".into());
        }
        for input in (1..3).filter(|&i| n.input(i).is_some()) {
            self.take(Take { node, input, axes: vec![0], groups: 1, power: Power::Over })?;
        }
        Ok(())
    }

    fn arithmetic(&mut self, node: NodeId, port: Port, axes: &[usize]) -> Result<(), Refusal> {
        let n = self.model.node(node);
        let (Some(a), Some(b), Some(y)) = (n.input(0), n.input(1), n.output(0)) else {
            return Err("it reads or makes nothing".into());
        };
        let (adds, divides) = (n.is("Add") || n.is("Sub"), n.is("Div"));
        let rank = self.rank(y).ok_or("its rank is not known")?;
        let constant = [0, 1].into_iter().find(|&i| self.constant(node, i).is_some());
        let Some(constant) = constant else {
            let same = |v: ValueId| self.rank(v) == Some(rank);
            if adds && same(a) && same(b) {
                return [a, b, y].into_iter().try_for_each(|v| self.join(v, axes.to_vec()));
            }
            let side = match port {
                Port::Input(i) => i,
                Port::Output if divides => 0,
                Port::Output => self.better_side(node),
            };
            return match same(if side == 0 { a } else { b }) && !adds && (side == 0 || !divides) {
                true => self.divide_one(node, side, axes),
                false => Err("its sides have other ranks, or it divides by the value".into()),
            };
        };
        let x = if constant == 0 { b } else { a };
        if (divides && constant == 0) || self.rank(x) != Some(rank) {
            return Err("its sides have other ranks, or it divides by the value".into());
        }
        let other = if port == Port::Output { x } else { y };
        let Some(t) = self.constant(node, constant) else { return Err("it reads nothing".into()) };
        let shorter = rank.checked_sub(t.rank()).ok_or("its constant has a higher rank")?;
        let dims: Vec<usize> = axes.iter().map(|&a| a.checked_sub(shorter).map_or(1, |a| t.dims()[a])).collect();
        let each = dims.iter().product::<usize>() == self.group.channels && axes.iter().all(|&a| a >= shorter);
        let shared = n.input(constant).is_some_and(|v| self.is_shared(v, t));
        let own = axes.iter().map(|a| a.wrapping_sub(shorter)).collect();
        let take = |power| Take { node, input: constant, axes: own, groups: 1, power };
        if adds {
            let zero = || t.to_f32().is_ok_and(|t| t.iter().all(|&x| x == 0.0));
            if each {
                self.take(take(Power::Over))?;
            } else if !zero() {
                return Err("it adds the same to all channels".into());
            }
            return self.join(other, axes.to_vec());
        }
        if each && !shared && self.group.channels > 1 {
            let made = port == Port::Output;
            return self.take(take(if made != divides { Power::Over } else { Power::Times }));
        }
        if dims.iter().any(|&d| d != 1) && !each {
            return Err("its constant has numbers for some of the channels' axes".into());
        }
        self.join(other, axes.to_vec())
    }

    /// The side of a product, element by element, that a layer makes and nothing else reads.
    fn better_side(&self, node: NodeId) -> usize {
        let score = |side: usize| {
            let Some(mut v) = self.model.node(node).input(side) else { return 0 };
            let sole = usize::from(self.model.sole_reader(v).is_some());
            for _ in 0..LONGEST {
                let Some(maker) = self.model.producer(v) else { break };
                if is_layer(self.model, maker) {
                    return 2 + sole;
                }
                let n = self.model.node(maker);
                let plain = matches!(n.op_type.as_str(), "Add" | "Relu" | "Clip" | "Reshape" | "Transpose");
                let Some(next) = n.inputs().iter().flatten().find(|v| self.model.value(**v).initializer().is_none())
                else {
                    break;
                };
                if !plain {
                    break;
                }
                v = *next;
            }
            sole
        };
        usize::from(score(1) >= score(0))
    }

    fn pad(&mut self, node: NodeId, port: Port, axes: &[usize]) -> Result<(), Refusal> {
        let n = self.model.node(node);
        let value = self.constant(node, 2).map(|t| t.scalar_f32());
        let zero = match n.input(2) {
            None => n.float("value").is_none_or(|v| v == 0.0),
            Some(_) => value == Some(Some(0.0)),
        };
        if !zero && n.string("mode").is_none_or(|m| m == "constant") {
            return Err("it adds numbers other than 0".into());
        }
        // Channels that are cut or added are seen when the value joins; both at once are not.
        let pads = self.constant(node, 1).and_then(|t| t.to_i64().ok()).or_else(|| n.ints("pads").map(<[i64]>::to_vec));
        let pads = pads.filter(|_| n.input(3).is_none()).ok_or("its pads are not constants")?;
        let half = pads.len() / 2;
        let free = |a: &usize| *a < half && pads[*a] == 0 && pads[a + half] == 0;
        match axes.iter().all(free) {
            true => self.hand_on(node, port, axes.to_vec()),
            false => Err("it pads the channels".into()),
        }
    }

    fn transpose(&mut self, node: NodeId, port: Port, axes: &[usize]) -> Result<(), Refusal> {
        let n = self.model.node(node);
        let rank = n.output(0).and_then(|y| self.rank(y)).ok_or("its rank is not known")?;
        let perm: Vec<usize> = match n.ints("perm") {
            Some(perm) => perm.iter().map(|&p| usize::try_from(p).unwrap_or(usize::MAX)).collect(),
            None => (0..rank).rev().collect(),
        };
        let moved: Option<Vec<usize>> = match port {
            Port::Output => axes.iter().map(|&a| perm.get(a).copied()).collect(),
            Port::Input(_) => axes.iter().map(|a| perm.iter().position(|p| p == a)).collect(),
        };
        self.hand_on(node, port, moved.ok_or("its order makes no sense")?)
    }

    fn reshape(&mut self, node: NodeId, port: Port, axes: &[usize]) -> Result<(), Refusal> {
        let n = self.model.node(node);
        let (Some(x), Some(y)) = (n.input(0), n.output(0)) else { return Err("it reads or makes nothing".into()) };
        let (from, to) = if port == Port::Output { (y, x) } else { (x, y) };
        let shapes = self.types.shape(from).zip(self.types.shape(to));
        let (from, to) = shapes.ok_or("its rank is not known")?;
        let first = *axes.first().ok_or("it has no channels")?;
        if !axes.iter().enumerate().all(|(i, &a)| a == first + i) {
            return Err("its channels do not lie side by side".into());
        }
        // What stands behind the channels must be as many on both sides for every size of the other dims.
        let behind = from.get(first + axes.len()..).unwrap_or_default();
        let behind = behind.iter().try_fold(1usize, |n, d| n.checked_mul(d.known()?));
        let behind = behind.ok_or("what lies behind its channels is not known")?;
        let (mut end, mut inner) = (to.len(), 1usize);
        while end > 0 && inner < behind {
            end -= 1;
            inner = inner.saturating_mul(to[end].known().unwrap_or(usize::MAX));
        }
        let (mut begin, mut channels) = (end, 1usize);
        while begin > 0 && channels < self.group.channels {
            begin -= 1;
            channels = channels.saturating_mul(to[begin].known().unwrap_or(usize::MAX));
        }
        // So that a channel's place has one name only.
        let wide = |&a: &usize| self.group.channels == 1 || to[a].known() != Some(1);
        match inner == behind && channels == self.group.channels {
            true => self.hand_on(node, port, (begin..end).filter(wide).collect()),
            false => Err("it mixes channels with other elements".into()),
        }
    }
}
