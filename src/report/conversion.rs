//! What `qonvert convert` did.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use super::{Report, terminal};
use crate::ir::Model;

/// The code of the diagnostic that there was nothing to convert.
pub const NOTHING_QUANTIZED: &str = "nothing_quantized";

/// A model written in another form.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Conversion {
    /// The form.
    pub format: &'static str,
    /// Operators of which the file that was read has another number than the one that was written: both numbers.
    pub operators: BTreeMap<String, (usize, usize)>,
    /// Files, proof and diagnostics.
    pub report: Report,
}

impl Conversion {
    /// Counts what differs between two models.
    pub fn between(format: &'static str, before: &Model, after: &Model, report: Report) -> Self {
        let mut operators: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for n in before.all_nodes() {
            operators.entry(before.node(n).op_type.clone()).or_default().0 += 1;
        }
        for n in after.all_nodes() {
            operators.entry(after.node(n).op_type.clone()).or_default().1 += 1;
        }
        operators.retain(|_, (a, b)| a != b);
        Self { format, operators, report }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let file = self.report.output.as_deref().unwrap_or("the model");
        // Writing into a string cannot fail.
        let nothing = self.report.diagnostics.iter().any(|d| d.code == NOTHING_QUANTIZED);
        let _ = match self.operators.is_empty() {
            true if nothing => writeln!(out, "written: {file}, nothing in another form"),
            true => writeln!(out, "written: {file} (it was in the form {} already)", self.format),
            false => writeln!(out, "written: {file} in the form {}", self.format),
        };
        let width = self.operators.keys().map(String::len).max().unwrap_or(0);
        for (op, (before, after)) in &self.operators {
            let _ = writeln!(out, "  {op:width$}  {before} -> {after}");
        }
        out + &terminal::comparison(&self.report)
    }
}
