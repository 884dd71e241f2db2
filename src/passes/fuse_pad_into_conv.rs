//! Fuses a Pad with zeros into the padding of the Conv or pooling behind it.
//!
//! ```text
//! before: p = Pad(x, [0,0,1,1,0,0,1,1]); y = Conv<pads = [0,0,0,0]>(p, W)      after: y = Conv<pads = [1,1,1,1]>(x, W)
//! ```
//!
//! Only spatial dims, nothing cropped, and the reader's `auto_pad` not in use. Pad never has an integer kernel.
//! - AveragePool: padded zeros count, so it gets `count_include_pad = 1`; not if it has padding that does not count, or
//!   rounds its output size up.
//! - MaxPool pads with the lowest number, not with 0: that is the same where x is known to be >= 0 (behind a Relu or a
//!   Clip) and each window sees at least one element of x.

use super::{
    Context,
    support::{clamp::Clamp, walk},
};
use crate::{
    analysis::types::{Types, infer},
    error::Result,
    ir::{Attr, Model, NodeId, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let types = &infer(model);
    let mut changes = 0;
    for node in model.all_nodes() {
        let Some((x, pads)) = zero_pad(model, types, node) else { continue };
        let Some(out) = model.node(node).output(0) else { continue };
        let readers: Vec<_> = model.value(out).readers().filter(|&(_, i)| i == 0).collect();
        for (reader, _) in readers {
            let Some(sum) = padding_with(model, types, reader, x, &pads) else { continue };
            let attributes = &mut model.node_mut(reader).attributes;
            attributes.retain(|a| !matches!(a.name.as_str(), "pads" | "auto_pad"));
            attributes.push(Attr::new("pads", sum));
            if model.node(reader).is("AveragePool") {
                let attributes = &mut model.node_mut(reader).attributes;
                attributes.retain(|a| a.name != "count_include_pad");
                attributes.push(Attr::new("count_include_pad", 1));
            }
            model.set_input(reader, 0, Some(x));
            changes += 1;
        }
        if model.value(out).uses().is_empty() {
            model.remove_node(node);
        }
    }
    Ok(changes)
}

/// The input and the pads (all starts, then all ends, of each axis) of a Pad with zeros at certain widths.
fn zero_pad(model: &Model, types: &Types, node: NodeId) -> Option<(ValueId, Vec<i64>)> {
    let n = model.node(node);
    if !n.is("Pad") || n.string("mode").is_some_and(|m| m != "constant") {
        return None;
    }
    let pads = match n.ints("pads") {
        Some(pads) => pads.to_vec(),
        None => model.constant_input(node, 1)?.to_i64().ok()?,
    };
    // +0 or -0 is the same to a sum.
    let value = match n.input(2) {
        Some(_) => model.constant_input(node, 2)?.scalar_f32()?,
        None => n.float("value").unwrap_or(0.0),
    };
    if value != 0.0 || pads.iter().any(|&p| p < 0) || pads.len() % 2 != 0 {
        return None;
    }
    let x = n.input(0)?;
    if n.input(3).is_none() {
        return Some((x, pads));
    }
    // Since opset 18 the pads may name their axes.
    let axes = model.constant_input(node, 3)?.to_i64().ok()?;
    let rank = walk::rank(model, types, x)?;
    let mut all = vec![0; 2 * rank];
    for (i, &axis) in axes.iter().enumerate() {
        let axis = usize::try_from(if axis < 0 { axis + i64::try_from(rank).ok()? } else { axis }).ok()?;
        *all.get_mut(axis).filter(|_| axis < rank)? = *pads.get(i)?;
        *all.get_mut(rank + axis)? = *pads.get(axes.len() + i)?;
    }
    Some((x, all))
}

/// The reader's padding with that of the Pad in front of it added, if it can take it over.
fn padding_with(model: &Model, types: &Types, reader: NodeId, x: ValueId, pads: &[i64]) -> Option<Vec<i64>> {
    let n = model.node(reader);
    let rank = pads.len() / 2;
    let spatial = rank.checked_sub(2).filter(|&s| s > 0)?;
    let (starts, ends) = pads.split_at(rank);
    let explicit = matches!(n.string("auto_pad"), None | Some("NOTSET" | "VALID"));
    if !n.in_onnx_domain() || !explicit || [starts[0], starts[1], ends[0], ends[1]] != [0; 4] {
        return None;
    }
    let own = match n.ints("pads").filter(|_| n.string("auto_pad") != Some("VALID")) {
        Some(own) => own.to_vec(),
        None => vec![0; 2 * spatial],
    };
    let added: Vec<i64> = starts[2..].iter().chain(&ends[2..]).copied().collect();
    if own.len() != added.len() {
        return None;
    }
    let sum: Vec<i64> = own.iter().zip(&added).map(|(a, b)| a.checked_add(*b)).collect::<Option<_>>()?;
    let unpadded = own.iter().all(|&p| p == 0);
    let floor = n.int("ceil_mode").unwrap_or(0) == 0;
    let plain = n.ints("dilations").is_none_or(|d| d.iter().all(|&d| d == 1));
    let narrow = || {
        let kernel = n.ints("kernel_shape")?;
        (kernel.len() == spatial && sum.iter().enumerate().all(|(i, &p)| p < kernel[i % spatial])).then_some(())
    };
    let takes = match n.op_type.as_str() {
        "Conv" => true,
        "AveragePool" => {
            let counts = n.int("count_include_pad").unwrap_or(0) != 0;
            floor && plain && (counts || unpadded) && narrow().is_some()
        }
        "MaxPool" => floor && plain && n.outputs().len() == 1 && narrow().is_some() && not_negative(model, types, x),
        _ => false,
    };
    takes.then_some(sum)
}

fn not_negative(model: &Model, types: &Types, x: ValueId) -> bool {
    model.producer(x).and_then(|n| Clamp::of(model, types, n)).is_some_and(|c| c.lo >= 0.0)
}

#[cfg(test)]
mod tests {
    use super::{super::support::testing::after, run};
    use crate::ir::testing::model;

    const PAD: &str = "
        float[1,1,4,4] x
        float[1,1,2,2] w = {1, 2, 3, 4}
        int64[8] pads = {0, 0, 1, 0, 0, 0, 2, 1}
        float[] zero = {0}
    ";

    fn attributes_of_last(text: &str) -> (Vec<i64>, Option<i64>) {
        let mut m = model(&format!("{PAD}{text}\nreturn y"));
        run(&mut m, &mut Default::default()).unwrap();
        m.verify().unwrap();
        let last = m.node(m.graph(m.main()).last().unwrap());
        (last.ints("pads").unwrap_or_default().to_vec(), last.int("count_include_pad"))
    }

    #[test]
    fn pads_add_up() {
        let conv = "p = Pad(x, pads, zero)\ny = Conv <pads = [1, 1, 1, 1]> (p, w)";
        assert_eq!(attributes_of_last(conv), (vec![2, 1, 3, 2], None));
        assert_eq!(after(run, &format!("{PAD}{conv}\nreturn y")), "y = Conv(x, [1.0, 2.0, 3.0, 4.0])");
        let pool = "p = Pad(x, pads)\ny = AveragePool <kernel_shape = [3, 3]> (p)";
        assert_eq!(attributes_of_last(pool), (vec![1, 0, 2, 1], Some(1)));
        let axes = "int64[2] few = {1, 1}\nint64[1] axes = {-1}\np = Pad(x, few, zero, axes)\ny = Conv(p, w)";
        assert_eq!(attributes_of_last(axes), (vec![0, 1, 0, 1], None));
        let relu = "r = Relu(x)\np = Pad(r, pads)\ny = MaxPool <kernel_shape = [3, 3]> (p)";
        assert_eq!(attributes_of_last(relu), (vec![1, 0, 2, 1], None));
    }

    #[test]
    fn not_what_would_change_the_result() {
        let stays = |text: &str| assert!(after(run, &format!("{PAD}{text}\nreturn y")).contains("Pad("), "{text}");
        stays("float[] one = {1}\np = Pad(x, pads, one)\ny = Conv(p, w)");
        stays("p = Pad <mode = \"reflect\"> (x, pads)\ny = Conv(p, w)");
        stays("int64[8] channels = {0, 1, 0, 0, 0, 0, 0, 0}\np = Pad(x, channels)\ny = Conv(p, w)");
        stays("int64[8] crop = {0, 0, -1, 0, 0, 0, 0, 0}\np = Pad(x, crop)\ny = Conv(p, w)");
        stays("p = Pad(x, pads)\ny = Conv <auto_pad = \"SAME_UPPER\"> (p, w)");
        stays("p = Pad(x, pads)\ny = MaxPool <kernel_shape = [3, 3]> (p)");
        stays("r = Relu(x)\np = Pad(r, pads)\ny = MaxPool <kernel_shape = [2, 2]> (p)");
        stays("p = Pad(x, pads)\ny = AveragePool <kernel_shape = [3, 3], ceil_mode = 1> (p)");
    }
}
