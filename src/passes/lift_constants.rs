//! Makes initializers of Constant nodes, in every graph, under the same names.
//!
//! ```text
//! before: c = Constant<value_float = 2.0>(); y = Mul(x, c)      after: float c = {2.0}; y = Mul(x, c)
//! ```
//!
//! Some stay nodes: sparse constants, those that the graph itself hands out (an output that is an initializer is legal,
//! but runtimes differ), and those in the bodies of functions, which have no initializers.

use super::Context;
use crate::{analysis::constants::constant_tensor, error::Result, ir::Model};

/// See the module's documentation.
pub fn run(model: &mut Model, _: &mut Context) -> Result<usize> {
    let mut lifted = 0;
    let bodies: Vec<_> = model.functions.iter().map(|f| f.graph).collect();
    for g in model.graph_ids().into_iter().filter(|g| !bodies.contains(g)) {
        for n in model.nodes(g) {
            let node = model.node(n);
            let (Some(tensor), Some(v)) = (constant_tensor(node), node.output(0)) else { continue };
            let value = model.value(v);
            if value.is_graph_output() {
                continue;
            }
            let (name, doc) = (value.name().to_owned(), value.doc_string.clone());
            let lifted_value = model.add_initializer(g, &name, tensor);
            model.replace_all_uses(v, lifted_value);
            model.remove_node(n);
            model.rename(lifted_value, &name);
            model.value_mut(lifted_value).doc_string = doc;
            lifted += 1;
        }
    }
    Ok(lifted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{NodeSpec, Place};

    #[test]
    fn constants_become_initializers_under_their_names() {
        let mut m = Model::new(8);
        let g = m.main();
        let x = m.declare_value(g, "x");
        m.add_input(x);
        let c = m.insert(NodeSpec::new("Constant").output("c").attr("value_floats", vec![2.0f32, 3.0]), Place::End(g));
        let handed = m.insert(NodeSpec::new("Constant").output("k").attr("value_float", 1.0f32), Place::End(g));
        let (c, k) = (m.node(c).output(0).unwrap(), m.node(handed).output(0).unwrap());
        let y = m.insert(NodeSpec::new("Mul").input(x).input(c).output("y"), Place::End(g));
        let y_value = m.node(y).output(0).unwrap();
        m.add_output(g, y_value);
        m.add_output(g, k);
        assert_eq!(run(&mut m, &mut Context::default()).unwrap(), 1);
        m.verify().unwrap();
        let c = m.node(y).input(1).unwrap();
        assert_eq!(m.value(c).name(), "c");
        assert_eq!(m.value(c).constant().unwrap().to_f32().unwrap(), [2.0, 3.0]);
        assert!(m.producer(k).is_some(), "a constant that the graph hands out stays");
    }
}
