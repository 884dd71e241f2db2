//! What each operator makes of its inputs' types: one file per family of operators.

use std::{collections::HashMap, sync::OnceLock};

use super::cx::{Cx, Dims, Rule};
use crate::ir::Node;

macro_rules! families {
    ($($name:ident),*) => {
        $(mod $name;)*

        const FAMILIES: &[&[(&[&str], Rule)]] = &[$($name::RULES),*];
    };
}

families! {
    elementwise, reduce, matmul, conv, resize, layout, index, join, shape, recurrent, quantized, transformer, signal
}

/// The rule for a node's operator. Rules name operators of com.microsoft as such (`com.microsoft.Gelu`).
pub(super) fn find(node: &Node) -> Option<Rule> {
    static RULES: OnceLock<HashMap<&'static str, Rule>> = OnceLock::new();
    let rules = RULES.get_or_init(|| {
        let pairs = FAMILIES.iter().flat_map(|f| f.iter()).flat_map(|(ops, rule)| ops.iter().map(|&op| (op, *rule)));
        pairs.collect()
    });
    if node.in_onnx_domain() {
        return rules.get(node.op_type.as_str()).copied();
    }
    let name = format!("{}.{}", node.domain.as_deref().unwrap_or_default(), node.op_type);
    rules.get(name.as_str()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_operator_has_two_rules() {
        let mut names: Vec<&str> =
            FAMILIES.iter().flat_map(|f| f.iter()).flat_map(|(ops, _)| ops.iter().copied()).collect();
        names.sort_unstable();
        let twice: Vec<_> = names.windows(2).filter(|w| w[0] == w[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }
}
