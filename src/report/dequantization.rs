//! What `qonvert dequantize` did.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use super::{
    Conversion, NOTHING_QUANTIZED, Report,
    terminal::{self, bytes, count},
};
use crate::{
    difference::short,
    ir::Model,
    passes::remove_quantization::{Clamped, Clamps, Removed, is_quantization},
};

/// A quantized model written in 32-bit floats.
#[derive(Debug, Clone, Serialize)]
pub struct Dequantization {
    /// Operators of which the file that was read has another number than the one that was written: both numbers.
    pub operators: BTreeMap<String, (usize, usize)>,
    /// What went, and what came back.
    pub removed: Removed,
    /// Which clamps were to come back.
    pub clamps: Clamps,
    /// Operators of quantization that are left, and how many.
    pub left: BTreeMap<String, usize>,
    /// Files, proof and diagnostics.
    pub report: Report,
}

/// So many clamps are named.
const NAMED: usize = 4;

impl Dequantization {
    /// Counts what differs between two models.
    pub fn between(before: &Model, after: &Model, removed: Removed, clamps: Clamps, report: Report) -> Self {
        let Conversion { operators, report, .. } = Conversion::between("float", before, after, report);
        let mut left: BTreeMap<String, usize> = BTreeMap::new();
        for n in after.all_nodes().into_iter().filter(|&n| is_quantization(after.node(n))) {
            *left.entry(after.node(n).op_type.clone()).or_default() += 1;
        }
        Self { operators, removed, clamps, left, report }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let file = self.report.output.as_deref().unwrap_or("the model");
        // Writing into a string cannot fail.
        if self.report.diagnostics.iter().any(|d| d.code == NOTHING_QUANTIZED) {
            let _ = writeln!(out, "written: {file}, as it was");
            return out + &terminal::comparison(&self.report);
        }
        let whole = if self.left.is_empty() { "in 32-bit floats" } else { "partly in 32-bit floats" };
        let size = &self.report.size;
        let _ = writeln!(out, "written: {file} {whole}, {} -> {}", bytes(size.before), bytes(size.after));
        let r = &self.removed;
        let parts = [
            (r.weights, "quantized constant became float", "quantized constants became float"),
            (r.quantizers, "quantizer of a value removed", "quantizers of values removed"),
            (r.widened, "constant of 16-bit floats became 32-bit", "constants of 16-bit floats became 32-bit"),
            (r.casts, "Cast removed", "Casts removed"),
        ];
        for (n, one, many) in parts.iter().filter(|(n, ..)| *n > 0) {
            let _ = writeln!(out, "  {n} {}", if *n == 1 { one } else { many });
        }
        self.clamp_lines(&mut out);
        if !r.kept.is_empty() {
            let ends: Vec<String> = r.kept.iter().map(|(name, t)| format!("{name} {t}")).collect();
            let _ = writeln!(
                out,
                "  types that callers know are kept: {} (--io float32 makes them float32)",
                ends.join(", ")
            );
        }
        let width = self.operators.keys().map(String::len).max().unwrap_or(0);
        for (op, (before, after)) in &self.operators {
            let _ = writeln!(out, "  {op:width$}  {before} -> {after}");
        }
        out + &terminal::comparison(&self.report)
    }

    fn clamp_lines(&self, out: &mut String) {
        let clamps = &self.removed.clamps;
        if clamps.is_empty() {
            return;
        }
        let named: Vec<String> = clamps.iter().take(NAMED).map(words).collect();
        let more = if clamps.len() > NAMED { ", …" } else { "" };
        let at_zero = clamps.iter().filter(|c| c.lo == Some(0.0) || c.hi == Some(0.0)).count();
        let why = "the quantizers did that, and a Relu or another clamp may have been left out for it";
        let zero = if at_zero > 0 { format!(" ({at_zero} at 0, as a Relu)") } else { String::new() };
        let _ = writeln!(out, "  {} put back{zero}: {why}", count(clamps.len(), "clamp"));
        let _ = writeln!(out, "    {}{more}", named.join(", "));
        if self.clamps == Clamps::Keep {
            let _ = writeln!(out, "    (--clamps relu puts back what is at 0 alone, as Relu; none puts back none)");
        }
    }
}

fn words(c: &Clamped) -> String {
    match (c.lo, c.hi) {
        (Some(lo), Some(hi)) => format!("{} {}..{}", c.value, short(lo), short(hi)),
        (Some(lo), None) => format!("{} from {}", c.value, short(lo)),
        (None, Some(hi)) => format!("{} to {}", c.value, short(hi)),
        (None, None) => c.value.clone(),
    }
}
