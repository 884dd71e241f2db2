//! Shapes without a sample: what follows from the graph, with a number in the place of each dim that callers choose.
//!
//! The numbers only weigh what a kernel gains: 1 for the first axis, the batch; 224 for height and width of images (inputs of
//! four dims); 64 for every other axis, such as the words of a sentence.

use std::collections::BTreeMap;

use super::{placement::Shapes, types};
use crate::ir::{Dim, Model, Shape, Type};

const BATCH: usize = 1;
const PIXELS: usize = 224;
const STEPS: usize = 64;

/// The shapes, and the numbers that were taken, by name: that of the dim, or `input[axis]` where it has none.
pub fn shapes(model: &Model) -> (Shapes, BTreeMap<String, usize>) {
    let (filled, taken) = filled(model);
    let types = types::infer(&filled);
    let known = |v| Some((v, (types.dtype(v)?, types.known_shape(v)?)));
    (Shapes(filled.value_ids().into_iter().filter_map(known).collect()), taken)
}

/// The model with the numbers in the shapes of its inputs, and the numbers.
pub fn filled(model: &Model) -> (Model, BTreeMap<String, usize>) {
    let mut taken = BTreeMap::new();
    let mut filled = model.clone();
    for v in model.required_inputs() {
        let value = model.value(v);
        let (Some(dtype), Some(shape)) = (value.dtype(), value.shape()) else { continue };
        let rank = shape.dims.len();
        let dim = |(axis, dim): (usize, &Dim)| {
            let number = match (axis, rank) {
                (0, _) => BATCH,
                (2.., 4) => PIXELS,
                _ => STEPS,
            };
            let name = match dim {
                Dim::Known(n) if *n > 0 => return dim.clone(),
                Dim::Named(name) if !name.is_empty() => name.clone(),
                _ => format!("{}[{axis}]", value.name()),
            };
            Dim::Known(*taken.entry(name).or_insert(number) as i64)
        };
        let dims = shape.dims.iter().enumerate().map(dim).collect();
        filled.value_mut(v).ty = Some(Type::tensor(dtype, Some(Shape::new(dims))));
    }
    (filled, taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    #[test]
    fn a_name_is_one_number() {
        let model = text::parse(
            "<ir_version: 8, opset_import: [\"\" : 17]>
            g (int64[batch, words] ids, float[batch, words, 8] x, float[?, 3, h, 32] image) => (float y)
            <float[8, 4] w = {0}> { y = MatMul(x, w) z = Relu(image) }"
                .replace("float[8, 4] w = {0}", &format!("float[8, 4] w = {{{}}}", ["0"; 32].join(",")))
                .replace('?', "")
                .replace("float[, 3", "float[n, 3")
                .as_str(),
        )
        .unwrap();
        let (shapes, taken) = shapes(&model);
        let of = |name: &str| shapes.dims(model.find_value(model.main(), name).unwrap()).unwrap().to_vec();
        assert_eq!(of("y"), [1, 64, 4]);
        assert_eq!(of("z"), [1, 3, 224, 32]);
        let taken: Vec<_> = taken.iter().map(|(n, &d)| (n.as_str(), d)).collect();
        assert_eq!(taken, [("batch", 1), ("h", 224), ("n", 1), ("words", 64)]);
    }
}
