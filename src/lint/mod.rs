//! What is wrong with a model that is quantized already, by whatever tool, and how to mend it: one rule for each file.
//!
//! A rule looks at a model in Q/DQ form ([`Context`]): at what each node becomes in the runtime, at scales, zero points and
//! codes. Each thing that it finds is told with its cost, and may carry a repair, which is tried on a copy and kept only if
//! the prediction says that the model becomes no slower ([`repair`]). Rules have no data: what needs any is told, not mended.
//!
//! Each file documents its rule with an example that a test runs: `before:` must be found, and repairs must make `after:` of it;
//! where there is no `after:`, the rule has no repair.

mod context;
mod names;
mod repair;
pub mod support;
#[cfg(test)]
mod testing;
mod times;

use std::collections::HashSet;

use serde::Serialize;

pub use context::{Context, Form};
pub use names::{Names, Spot};
pub use repair::{Fixed, Withheld, repair};
pub use times::Times;

use crate::{
    error::Result,
    ir::{Model, NodeId, ValueId},
};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; costs little or nothing.
    Note,
    /// Costs time, memory or accuracy.
    Warning,
    /// Runtimes refuse the file, or compute something else than it says.
    Error,
}

impl Severity {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A rule.
pub struct Lint {
    /// The file's name.
    pub name: &'static str,
    /// What is the matter, in one sentence.
    pub what: &'static str,
    /// What to do about it, by hand or by repair.
    pub cure: &'static str,
    /// Looks for it.
    pub find: fn(&Context<'_>) -> Result<Vec<Finding>>,
    /// Its file, which has its example.
    #[cfg(test)]
    text: &'static str,
}

/// One place where a rule found something.
pub struct Finding {
    /// How much it matters here.
    pub severity: Severity,
    /// The node that it speaks of.
    pub node: Option<NodeId>,
    /// The value that it speaks of.
    pub value: Option<ValueId>,
    /// The fact with its figures.
    pub fact: String,
    /// Time of a run that this costs by the target's cost model, nanoseconds; 0 where it costs none or that is not known.
    pub time: f64,
    /// Bytes of the file that this costs.
    pub bytes: u64,
    /// How to mend it.
    pub repair: Option<Repair>,
}

impl Finding {
    /// A finding about a node, without costs and repair.
    pub fn at(severity: Severity, node: NodeId, fact: impl Into<String>) -> Self {
        Self { severity, node: Some(node), value: None, fact: fact.into(), time: 0.0, bytes: 0, repair: None }
    }

    /// A finding about a value.
    pub fn of(severity: Severity, value: ValueId, fact: impl Into<String>) -> Self {
        Self { severity, node: None, value: Some(value), fact: fact.into(), time: 0.0, bytes: 0, repair: None }
    }

    /// Says what it costs in time.
    #[must_use]
    pub fn costs(self, time: f64) -> Self {
        Self { time, ..self }
    }

    /// Says which value it is about.
    #[must_use]
    pub fn on(self, value: ValueId) -> Self {
        Self { value: Some(value), ..self }
    }

    /// Adds a repair.
    #[must_use]
    pub fn mend(self, changes: Changes, run: impl Fn(&mut Model) -> Result<bool> + 'static) -> Self {
        Self { repair: Some(Repair { changes, run: Box::new(run) }), ..self }
    }
}

/// A change of a model: whether there was anything left to do.
pub type Mend = dyn Fn(&mut Model) -> Result<bool>;

/// What mends a finding.
pub struct Repair {
    /// What it does to numbers.
    pub changes: Changes,
    /// Carries it out; returns false where there is nothing left to do. Earlier repairs may have removed what it speaks of.
    pub run: Box<Mend>,
}

/// What a repair does to the numbers that the model computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "numbers", content = "how")]
pub enum Changes {
    /// They stay the same.
    Nothing,
    /// Roundings go: they come nearer to those of the float model.
    FewerRoundings,
    /// They change as this says.
    As(String),
}

impl Changes {
    /// In words.
    pub fn words(&self) -> &str {
        match self {
            Self::Nothing => "the same numbers",
            Self::FewerRoundings => "changes numbers: fewer roundings, nearer to the float model",
            Self::As(how) => how,
        }
    }
}

macro_rules! lints {
    ($($name:ident),* $(,)?) => {
        $(mod $name;)*

        /// Every rule, in the order in which they look and mend.
        pub const LINTS: &[Lint] = &[$(Lint {
            name: stringify!($name),
            what: $name::WHAT,
            cure: $name::CURE,
            find: $name::find,
            #[cfg(test)]
            text: include_str!(concat!(stringify!($name), ".rs")),
        }),*];
    };
}

// What keeps a model from loading first, then what keeps kernels away, then what is left over.
lints! {
    unused_constants, old_opset, bad_zero_points, bad_scales, contrib_pairs, wrong_axis, scales_of_data, int8_activations, constant_types, slow_weights, pairs_around_clamps,
    symmetric_clamps, unequal_scales, turned_weights, mixed_readers, bias_scales, idle_pairs, slow_kernels,
    weights_at_run_time, saturating_sums, saturated_codes, few_codes, leftovers, lost_kernels, refused,
}

/// The rule of this name.
pub fn by_name(name: &str) -> Option<&'static Lint> {
    LINTS.iter().find(|l| l.name == name)
}

/// Rules that go by what becomes of Q/DQ pairs: of integer operators on int8, raised to such pairs, that is not what runs.
const PREDICTED: &[&str] = &[
    "constant_types",
    "pairs_around_clamps",
    "symmetric_clamps",
    "unequal_scales",
    "mixed_readers",
    "idle_pairs",
    "slow_kernels",
    "weights_at_run_time",
    "lost_kernels",
];

/// What some rules find in a model, in their order.
pub fn look(cx: &Context<'_>, rules: &[&'static Lint]) -> Vec<(&'static Lint, Finding)> {
    let mut all = Vec::new();
    let mut explained: HashSet<NodeId> = HashSet::new();
    let mut int8 = false;
    if let (Form::Qoperator, Some(lint)) = (cx.form, by_name("int8_activations")) {
        int8 = (lint.find)(cx).is_ok_and(|found| !found.is_empty());
    }
    for lint in rules.iter().filter(|l| !(int8 && PREDICTED.contains(&l.name))) {
        // Odd files may have constants that a rule cannot make sense of; what is wrong with those is another's to tell.
        let found = (lint.find)(cx).unwrap_or_else(|e| {
            log::info!("{}: {e}", lint.name);
            Vec::new()
        });
        // Another rule has said what the matter is.
        let told = lint.name == "refused" && all.iter().any(|(_, f): &(_, Finding)| f.severity == Severity::Error);
        for finding in found.into_iter().filter(|_| !told) {
            // Another rule has said already why there is no kernel.
            if lint.name == "lost_kernels" && finding.node.is_some_and(|n| explained.contains(&n)) {
                continue;
            }
            explained.extend(finding.node);
            all.push((*lint, finding));
        }
    }
    all
}

/// Whether a model has anything quantized in it.
pub fn is_quantized(model: &Model) -> bool {
    let on_codes = |n: NodeId| {
        let op = model.node(n).op_type.as_str();
        let words =
            ["QuantizeLinear", "DequantizeLinear", "Integer", "NBits", "DynamicQuantize", "QLinear", "Quantized"];
        words.iter().any(|w| op.contains(w)) || matches!(op, "QGemm" | "QAttention" | "QMoE" | "MatMulBnb4")
    };
    model.all_nodes().into_iter().any(on_codes)
}
