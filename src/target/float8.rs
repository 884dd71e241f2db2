//! What a runtime does with floats of 8 bits.

use serde::Deserialize;

use super::Target;
use crate::ir::{DType, Model, Node, NodeId};

/// What a runtime does with operators between conversions to and from these floats.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Float8Facts {
    /// Operators to put between conversions.
    pub operators: Vec<String>,
    /// The types that it takes; all of them if there are none here.
    pub types: Vec<DType>,
    /// Whether it has kernels that compute in them; else operators compute in 32 bits, between conversions that run each time.
    pub computes: bool,
    /// Whether QuantizeLinear has its type from a zero point, as it must before opset 21; else from an attribute.
    pub zero_points: bool,
    /// Whether convolutions in groups are worth it, depthwise ones among them.
    pub groups: bool,
    /// Convolutions of more taps are not.
    pub most_taps: usize,
    /// Products with fewer inputs or outputs to each sum are not.
    pub least_channels: usize,
}

impl Default for Float8Facts {
    fn default() -> Self {
        let operators = ["Conv", "Gemm", "MatMul"].map(str::to_owned).into();
        Self {
            operators,
            types: Vec::new(),
            computes: true,
            zero_points: true,
            groups: false,
            most_taps: 32,
            least_channels: 16,
        }
    }
}

impl Float8Facts {
    /// Whether conversions stand around such a node.
    pub fn takes(&self, node: &Node) -> bool {
        self.operators.iter().any(|op| node.is(op))
    }

    /// Why such a node gains nothing by its form, as far as its weight tells that.
    pub fn slow(&self, model: &Model, id: NodeId) -> Option<String> {
        let node = model.node(id);
        let dims = model.constant_input(id, 1)?.dims();
        let (outs, ins) = match (node.op_type.as_str(), dims) {
            ("Conv", [outs, ins, kernel @ ..]) => {
                let taps: usize = kernel.iter().product();
                if !self.groups && node.int("group").unwrap_or(1) > 1 {
                    return Some("convolutions in groups gain nothing from floats of 8 bits".to_owned());
                }
                if taps > self.most_taps {
                    return Some(format!(
                        "convolutions of more than {} taps gain nothing from floats of 8 bits: it has {taps}",
                        self.most_taps
                    ));
                }
                (*outs, *ins)
            }
            ("Gemm", [outs, ins]) if node.int("transB").unwrap_or(0) != 0 => (*outs, *ins),
            (_, [.., ins, outs]) => (*outs, *ins),
            _ => return None,
        };
        let least = self.least_channels;
        (outs.min(ins) < least).then(|| {
            format!("products of fewer than {least} channels gain nothing from floats of 8 bits: {ins} by {outs}")
        })
    }

    /// Whether it takes a type.
    pub fn has(&self, dtype: DType) -> bool {
        self.types.is_empty() || self.types.contains(&dtype)
    }
}

impl Target {
    /// Whether it is described for floats of 8 bits alone.
    pub fn is_for_float8(&self) -> bool {
        self.kernels.is_empty() && self.dynamic.is_empty() && self.weight_only.is_empty() && self.float8.computes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::testing::{find, model};

    #[test]
    fn forms_that_gain_nothing() {
        let weight = |dims: &str, count: usize| format!("float[{dims}] w = {{{}}}", vec!["1"; count].join(", "));
        for (weight, call, why) in [
            (weight("16,16,3,3", 16 * 16 * 9), "Conv(x, w)", None),
            (weight("16,16,6,6", 16 * 16 * 36), "Conv(x, w)", Some("more than 32 taps")),
            (weight("16,3,1,1", 48), "Conv(x, w)", Some("3 by 16")),
            (weight("16,1,3,3", 16 * 9), "Conv <group = 16> (x, w)", Some("in groups")),
            (weight("2,16,16", 512), "MatMul(x, w)", None),
            (weight("16,9", 144), "Gemm(x, w)", Some("16 by 9")),
        ] {
            let m = model(&format!("float[1,16] x \n {weight} \n y = {call} \n return y"));
            let said = Float8Facts::default().slow(&m, m.producer(find(&m, "y")).unwrap());
            match why {
                Some(why) => assert!(said.as_ref().is_some_and(|s| s.contains(why)), "{call}: {said:?}"),
                None => assert_eq!(said, None, "{call}"),
            }
        }
    }
}
