//! Layers whose sums could saturate on the processor that the plan is for.

use serde::Serialize;

use crate::plan::{Form, Plan};

/// What was done so that no sum saturates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Saturation {
    /// The processor.
    pub cpu: String,
    /// Layers that compute in integers with a weight.
    pub layers: usize,
    /// Those of them whose sums could saturate, by name: channels of theirs have fewer codes.
    pub narrowed: Vec<String>,
}

impl Saturation {
    /// Of a plan; `None` where it is for the target's own processor, on which nothing saturates.
    pub fn of(plan: &Plan) -> Option<Self> {
        let mut found = Self { cpu: plan.cpu.clone()?, ..Self::default() };
        for (output, node) in &plan.nodes {
            let Some(weight) = node.weight.as_ref().filter(|_| matches!(node.becomes, Form::Integer | Form::Dynamic))
            else {
                continue;
            };
            found.layers += 1;
            if !weight.pair_axes.is_empty() {
                found.narrowed.push(node.name.as_ref().unwrap_or(output).clone());
            }
        }
        Some(found)
    }

    /// In words, with at most so many names.
    pub(super) fn text(&self, limit: usize) -> String {
        let (cpu, layers, narrowed) = (&self.cpu, self.layers, self.narrowed.len());
        match narrowed {
            0 => format!("{cpu}: no sum of the {layers} layers with weights can saturate"),
            _ => {
                let names = self.narrowed.iter().take(limit).map(String::as_str).collect::<Vec<_>>().join(", ");
                let rest = match narrowed.saturating_sub(limit) {
                    0 => String::new(),
                    n => format!(" and {n} more (-v shows all)"),
                };
                format!(
                    "{cpu}: {narrowed} of {layers} layers could saturate; fewer codes for their channels that would: \
                     {names}{rest}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_layers() {
        let plan = |cpu: &str| {
            let text = format!(
                "target: t\n{cpu}activations: {{}}\nnodes:\n  a: {{op: Conv, becomes: integer, weight: {{dtype: int8, symmetric: true, \
                 pair_axes: [2, 1]}}}}\n  b: {{op: MatMul, name: m, becomes: dynamic, weight: {{dtype: int8, symmetric: true, \
                 pair_axes: [0]}}}}\n  c: {{op: Conv, becomes: integer, weight: {{dtype: int8, symmetric: true}}}}\n  \
                 d: {{op: Exp, becomes: float, reason: r}}\n"
            );
            Plan::from_yaml(&text).unwrap()
        };
        assert_eq!(Saturation::of(&plan("")), None);
        let mut found = Saturation::of(&plan("cpu: avx2\n")).unwrap();
        assert_eq!((found.layers, &found.narrowed[..]), (3, &["a".to_owned(), "m".to_owned()][..]));
        insta::assert_snapshot!(found.text(8), @"avx2: 2 of 3 layers could saturate; fewer codes for their channels that would: a, m");
        insta::assert_snapshot!(found.text(1), @"avx2: 2 of 3 layers could saturate; fewer codes for their channels that would: a and 1 more (-v shows all)");
        found.narrowed.clear();
        insta::assert_snapshot!(found.text(8), @"avx2: no sum of the 3 layers with weights can saturate");
    }
}
