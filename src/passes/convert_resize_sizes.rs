//! Gives Resize constant scales where its sizes are computed from shapes, but are known multiples of them.
//!
//! ```text
//! before: s = Shape(x: [b,8,20,20]); t = Concat(Slice(s, 0, 2), [40, 40]); y = Resize(x, , , t)
//! after:  y = Resize(x, , [1, 1, 2, 2])
//! ```
//!
//! Only where the scale is the number that a runtime computes from the sizes, so that every element stays what it was.

use super::Context;
use crate::{
    analysis::types::{self, SymDim, SymInt, Types},
    error::Result,
    ir::{Model, NodeId, Tensor},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut types = types::infer(model);
    let bodies: Vec<_> = model.functions.iter().map(|f| f.graph).collect();
    let mut converted = 0;
    for n in model.all_nodes() {
        let Some(scales) = scales(model, &mut types, n).filter(|_| !bodies.contains(&model.node(n).graph())) else {
            continue;
        };
        let name = model.node(n).output(0).map_or_else(String::new, |v| format!("{}_scales", model.value(v).name()));
        let constant = model.add_initializer(model.main(), &name, Tensor::from_f32(&[scales.len()], &scales));
        model.set_input(n, 2, Some(constant));
        model.truncate_inputs(n, 3);
        converted += 1;
    }
    Ok(converted)
}

fn scales(model: &Model, types: &mut Types, n: NodeId) -> Option<Vec<f32>> {
    let node = model.node(n);
    let sizes = node.input(3).filter(|&v| model.value(v).constant().is_none())?;
    let stretch = node.string("keep_aspect_ratio_policy").is_none_or(|p| p == "stretch");
    let crop = node.string("coordinate_transformation_mode") == Some("tf_crop_and_resize");
    if !node.is("Resize") || model.opset("")? < 11 || !stretch || crop || node.ints("axes").is_some() {
        return None;
    }
    let from = types.shape(node.input(0)?)?.to_vec();
    let to = types.ints(sizes)?.to_vec();
    if from.len() != to.len() {
        return None;
    }
    from.into_iter().zip(to).map(|(from, to)| scale(types, from, to)).collect()
}

fn scale(types: &mut Types, from: SymDim, to: SymInt) -> Option<f32> {
    match (from, to) {
        (SymDim::Known(a), SymInt::Known(b)) if a > 0 && b > 0 => {
            let scale = b as f32 / a as f32;
            ((a as f32 * scale) as i64 == b).then_some(scale)
        }
        (from, to) => match types.quotient(to, from.into())? {
            // A whole number of times: exact for every dim.
            SymInt::Known(n @ 1..=1024) => Some(n as f32),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::testing::{check, check_skipped};

    #[test]
    fn batch_by_name_and_known_pictures() {
        check(
            run,
            "(float[b,8,20,h] x) => (y) <int64[1] zero = {0}, int64[1] two = {2}, int64[1] three = {3}, int64[1] forty = {40}> {
                s = Shape(x)
                head = Slice(s, zero, two)
                h = Gather(s, three)
                h2 = Mul(h, two)
                sizes = Concat <axis = 0> (head, forty, h2)
                y = Resize <mode = \"nearest\"> (x, , , sizes)
             }",
            "(float[b,8,20,h] x) => (y) <float[4] y_scales = {1, 1, 2, 2}> { y = Resize <mode = \"nearest\"> (x, , y_scales) }",
        );
    }

    #[test]
    fn sizes_of_another_picture_stay() {
        check_skipped(
            run,
            "(float[1,8,h,w] x, float[1,8,u,v] z) => (y) { sizes = Shape(z) y = Resize (x, , , sizes) }",
            "",
        );
    }
}
