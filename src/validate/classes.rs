//! Along which axis an output holds one number for each class.
//!
//! The largest number along this axis is the model's answer; whether two models give the same answer is what users ask
//! of a classifier. The axis is the one that the operator behind the output computes classes along: the axis of a
//! Softmax, the channels of a Conv, the last axis of a MatMul or Gemm. Between that operator and the output may stand
//! element-wise operators, Transpose, reductions and Squeeze; a Sigmoid ends the search, since masks are no classes. An output of unknown origin with two axes (batch and
//! classes) is taken by its last.

use crate::ir::{Model, Node, NodeId, ValueId};

/// The class axis of an output, counted from the front if not negative; `None` if it does not look like classes.
/// `rank` is the output's.
pub fn class_axis(model: &Model, output: ValueId, rank: usize) -> Option<usize> {
    // From the output back to the operator behind it: what has to be done to that one's axis on the way forth.
    let mut way: Vec<NodeId> = Vec::new();
    let mut value = output;
    let found = loop {
        let Some((n, 0)) = model.value(value).producer() else { break None };
        let node = model.node(n);
        if way.len() > 32 {
            break None;
        }
        match origin(model, node) {
            Step::Classes(axis) => break Some(axis),
            Step::Through(input) => {
                way.push(n);
                let Some(v) = node.input(input) else { break None };
                value = v;
            }
            Step::Unknown => break None,
        }
    };
    let Some(axis) = found else { return (rank == 2).then_some(1) };
    let mut axis = axis;
    for n in way.into_iter().rev() {
        axis = carry(model, n, axis)?;
    }
    let last = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis + last } else { axis };
    (0..last).contains(&axis).then_some(axis as usize)
}

enum Step {
    Classes(i64),
    Through(usize),
    Unknown,
}

fn origin(model: &Model, node: &Node) -> Step {
    if !node.in_onnx_domain() {
        return Step::Unknown;
    }
    let softmax_default = if model.opset("").is_some_and(|v| v >= 13) { -1 } else { 1 };
    match node.op_type.as_str() {
        "Softmax" | "LogSoftmax" => Step::Classes(node.int("axis").unwrap_or(softmax_default)),
        "Conv" | "ConvTranspose" => Step::Classes(1),
        "MatMul" | "Gemm" => Step::Classes(-1),
        // The side that was computed; constants are biases.
        "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Pow" => {
            let constant = node.input(0).is_some_and(|v| model.value(v).initializer().is_some());
            Step::Through(usize::from(constant))
        }
        "Relu" | "LeakyRelu" | "HardSwish" | "Clip" | "Identity" | "Cast" | "Dropout" | "BatchNormalization"
        | "Tanh" | "Elu" | "QuantizeLinear" | "DequantizeLinear" | "MaxPool" | "AveragePool" | "GlobalAveragePool"
        | "GlobalMaxPool" | "Transpose" | "ReduceMean" | "ReduceMax" | "ReduceSum" | "Squeeze" | "Flatten" => {
            Step::Through(0)
        }
        _ => Step::Unknown,
    }
}

/// Where an axis of the node's input lies in its output; negative axes count from the end.
fn carry(model: &Model, n: NodeId, axis: i64) -> Option<i64> {
    let node = model.node(n);
    match node.op_type.as_str() {
        "Transpose" => {
            let perm = node.ints("perm")?;
            let rank = i64::try_from(perm.len()).ok()?;
            let from = if axis < 0 { axis + rank } else { axis };
            perm.iter().position(|&p| p == from).and_then(|at| i64::try_from(at).ok())
        }
        "ReduceMean" | "ReduceMax" | "ReduceSum" | "Squeeze" => {
            let axes = match node.ints("axes") {
                Some(axes) => axes.to_vec(),
                None => model.constant_input(n, 1)?.to_i64().ok()?,
            };
            if axes.contains(&axis) {
                return None;
            }
            let kept = node.op_type != "Squeeze" && node.int("keepdims").unwrap_or(1) != 0;
            if kept {
                return Some(axis);
            }
            // Counting from different ends, one cannot tell without the rank.
            if axes.iter().any(|&a| (a < 0) != (axis < 0)) {
                return if axis == 1 && axes.iter().all(|&a| a == -1 || a == -2) { Some(1) } else { None };
            }
            let before = axes.iter().filter(|&&a| if axis < 0 { a > axis } else { a < axis }).count() as i64;
            Some(if axis < 0 { axis + before } else { axis - before })
        }
        "Flatten" => (node.int("axis").unwrap_or(1) == 1 && axis == 1).then_some(1),
        _ => Some(axis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::testing::model;

    fn axis(text: &str, rank: usize) -> Option<usize> {
        let m = model(text);
        class_axis(&m, m.graph(m.main()).outputs()[0], rank)
    }

    #[test]
    fn follows_the_operators() {
        assert_eq!(
            axis("float[n,4] x \n float[4,2] w = {1,2,3,4,5,6,7,8} \n y = MatMul(x, w) \n return y", 2),
            Some(1)
        );
        assert_eq!(axis("float[n,t,4] x \n y = Softmax <axis = 2>(x) \n return y", 3), Some(2));
        let conv = "float[n,3,h,w] x \n float[5,3,1,1] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6} \n c = Conv(x, w) \n ";
        assert_eq!(axis(&format!("{conv} return c"), 4), Some(1));
        let mean = format!("{conv} y = ReduceMean <axes = [2,3], keepdims = 0>(c) \n return y");
        assert_eq!(axis(&mean, 2), Some(1));
        let moved = format!("{conv} r = Relu(c) \n y = Transpose <perm = [0,2,3,1]>(r) \n return y");
        assert_eq!(axis(&moved, 4), Some(3));
        assert_eq!(axis(&format!("{conv} int64[2] s = {{0,-1}} \n y = Reshape(c, s) \n return y"), 2), Some(1));
        assert_eq!(axis(&format!("{conv} int64[3] s = {{0,5,-1}} \n y = Reshape(c, s) \n return y"), 3), None);
    }

    #[test]
    fn a_squeezed_class_axis_is_none() {
        let text = "float[n,1] x \n float[1,1] w = {1} \n y = MatMul(x, w) \n z = Squeeze <axes = [-1]>(y) \n return z";
        assert_eq!(axis(text, 1), None);
    }
}
