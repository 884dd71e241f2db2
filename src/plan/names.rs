//! What the names in a plan stand for.

use std::collections::{HashMap, HashSet};

use crate::ir::{Model, ValueId};

/// Every value that a plan can name: those of the main graph, and those of subgraphs whose name no other value bears.
pub fn named_values(model: &Model) -> HashMap<String, ValueId> {
    let (mut main, mut inner) = (HashMap::new(), HashMap::new());
    let mut twice = HashSet::new();
    for v in model.value_ids() {
        let name = model.value(v).name().to_owned();
        if model.value(v).graph() == model.main() {
            main.insert(name, v);
        } else if let Some(old) = inner.insert(name, v) {
            twice.insert(model.value(old).name().to_owned());
        }
    }
    inner.retain(|name, _| !twice.contains(name));
    inner.extend(main);
    inner
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    #[test]
    fn names_of_the_main_graph_come_first() {
        let model = text::parse(
            "(bool c, float[2] x) => (y) {
                z = Neg(x)
                y = If (c) <then_branch = t () => (a) { z = Abs(x) b = Neg(z) a = Neg(b) },
                            else_branch = e () => (a) { only = Exp(x) a = Neg(only) }>
            }",
        )
        .unwrap();
        let names = named_values(&model);
        assert_eq!(model.value(names["z"]).graph(), model.main());
        assert_ne!(model.value(names["only"]).graph(), model.main());
        assert!(!names.contains_key("a"));
    }
}
