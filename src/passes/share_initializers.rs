//! Keeps one of several initializers of a graph that hold the same.
//!
//! ```text
//! before: y = Add(x, a); z = Mul(y, b)      after: y = Add(x, a); z = Mul(y, a)      where a and b hold the same
//! ```
//!
//! The same means type, shape and every bit. Initializers that callers may override, or that a graph hands out, stay.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

use super::Context;
use crate::{
    error::Result,
    ir::{Model, Tensor, TensorData, ValueId},
};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut shared = 0;
    for graph in model.graph_ids() {
        // Values by hash; equality is checked, and the first of the file is kept.
        let mut kept: HashMap<u64, Vec<ValueId>> = HashMap::new();
        for v in model.graph(graph).initializers().to_vec() {
            let value = model.value(v);
            let Some(t) = value.constant().filter(|_| !value.is_graph_output()) else { continue };
            let alike = kept.entry(hash(t)).or_default();
            let same = |&k: &ValueId| model.value(k).constant().is_some_and(|k| k.same_content(t));
            match alike.iter().copied().find(same) {
                None => alike.push(v),
                Some(first) => {
                    model.replace_all_uses(v, first);
                    model.remove_value(v);
                    shared += 1;
                }
            }
        }
    }
    Ok(shared)
}

/// A hash of type, shape and elements (of large tensors: of some).
fn hash(t: &Tensor) -> u64 {
    let mut h = DefaultHasher::new();
    (t.dtype(), t.dims()).hash(&mut h);
    match t.data() {
        // Reading all of a large file just to find that its weights differ would cost more than it gains: both ends tell
        // nearly all apart, and what they do not is compared.
        TensorData::Bytes(b) if b.len() > 8192 => (&b[..4096], &b[b.len() - 4096..]).hash(&mut h),
        TensorData::Bytes(b) => b.hash(&mut h),
        TensorData::Strings(s) => s.hash(&mut h),
        TensorData::Deferred(_) => {}
    }
    h.finish()
}

#[cfg(test)]
mod tests {
    use super::run;
    use crate::ir::testing::{find, model};

    #[test]
    fn equal_constants_become_one() {
        let text = "
            float[2] x
            float[2] a = {1, 2}
            float[2] b = {1, 2}
            float[2] other = {1, 3}
            float[1,2] shape = {1, 2}
            float[2] out = {1, 2}
            c = Add(x, b)
            d = Mul(c, a)
            e = Add(d, other)
            y = Mul(e, shape)
            return y, out
        ";
        let mut m = model(text);
        assert_eq!(run(&mut m, &mut Default::default()).unwrap(), 1);
        m.verify().unwrap();
        assert_eq!(m.value(find(&m, "a")).uses().len(), 2);
        assert!(m.find_value(m.main(), "b").is_none() && m.find_value(m.main(), "out").is_some());
        assert_eq!(run(&mut m, &mut Default::default()).unwrap(), 0);
    }
}
