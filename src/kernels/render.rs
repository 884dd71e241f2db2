//! A prediction as text.

use std::{collections::BTreeMap, fmt::Write};

use super::{Becomes, NodeKernel, Prediction, Summary};

/// How many reasons the summary tells.
const REASONS: usize = 12;

impl Summary {
    /// The counts, a line each: what is there.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let total = |counts: &BTreeMap<String, usize>| counts.values().sum::<usize>();
        // Writing into a string cannot fail.
        for (label, words, counts) in [
            ("integer", "compute in integers", &self.integer),
            ("on codes", "move 8-bit numbers as they are", &self.moves),
            ("conversions", "at every run", &self.conversions),
        ] {
            let list: Vec<_> = by_count(counts).into_iter().map(|(k, n)| format!("{k} {n}")).collect();
            let list = if list.is_empty() { String::new() } else { format!("  {words}: {}", list.join(", ")) };
            let _ = writeln!(out, "{label:<12}{:>5}{list}", total(counts));
        }
        let _ = writeln!(out, "{:<12}{:>5}", "float", self.float);
        for s in self.stays.iter().take(REASONS) {
            let _ = writeln!(out, "            {:>5}  {}: {}", s.nodes, s.op, s.reason);
        }
        if self.stays.len() > REASONS {
            let more = self.stays.len() - REASONS;
            let _ = writeln!(out, "                   and {more} more reasons; --nodes tells all");
        }
        for (label, count, words) in [
            ("parts", self.parts, "done by other nodes' kernels"),
            ("folded", self.folded, "computed when the file is loaded"),
        ] {
            if count > 0 {
                let _ = writeln!(out, "{label:<12}{count:>5}  {words}");
            }
        }
        out
    }
}

impl Summary {
    /// Kernels and conversions in one line; `None` where there are neither.
    pub fn line(&self) -> Option<String> {
        let list = |counts: &BTreeMap<String, usize>| -> Vec<String> {
            by_count(counts).into_iter().map(|(k, n)| format!("{k} {n}")).collect()
        };
        let moves: usize = self.moves.values().sum();
        let mut parts = Vec::new();
        if !self.integer.is_empty() {
            parts.push(list(&self.integer).join(", "));
        }
        if moves > 0 {
            parts.push(format!("{moves} more move codes"));
        }
        if !self.conversions.is_empty() {
            parts.push(format!("conversions at every run: {}", list(&self.conversions).join(", ")));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// The most frequent first, then by name.
fn by_count(counts: &BTreeMap<String, usize>) -> Vec<(&str, usize)> {
    let mut list: Vec<_> = counts.iter().map(|(k, &n)| (k.as_str(), n)).collect();
    list.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
    list
}

impl Prediction {
    /// Every node, a line each.
    pub fn render_nodes(&self) -> String {
        let width = |f: fn(&NodeKernel) -> usize| self.nodes.iter().map(f).max().unwrap_or(0).min(60);
        let (names, ops) = (width(|n| n.name.len()), width(|n| n.op.len()));
        let mut out = String::new();
        for n in &self.nodes {
            let line = format!("{:names$}  {:ops$}  {}", n.name, n.op, n.words());
            let _ = writeln!(out, "{}{}", if n.inner { "  " } else { "" }, line.trim_end());
        }
        out
    }
}

impl NodeKernel {
    /// What becomes of it, in words.
    pub fn words(&self) -> String {
        let kernel = self.kernel.as_deref().unwrap_or_default();
        let reason = self.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
        match self.becomes {
            Becomes::Integer => format!("{kernel}{reason}"),
            Becomes::Moves => format!("{kernel} on codes"),
            Becomes::Float => format!("float{reason}"),
            Becomes::Conversion => format!("conversion{reason}"),
            Becomes::Part => match &self.within {
                Some(name) => format!("part of {kernel} {name:?}"),
                None => format!("part of {kernel}"),
            },
            Becomes::Folded => "computed when the file is loaded".to_owned(),
            Becomes::Gone => "vanishes".to_owned(),
            Becomes::Other => "neither numbers nor codes".to_owned(),
        }
    }
}
