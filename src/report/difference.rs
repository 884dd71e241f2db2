//! What `qonvert diff` found.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use super::{
    Size,
    terminal::{bytes, count},
};
use crate::difference::{Difference, How, Lone, Pair, Quantizer, Scaled, Weight, WeightDifference, short};

/// Two models side by side.
#[derive(Debug, Clone, Serialize)]
pub struct DifferenceReport {
    /// Version of qonvert.
    pub version: &'static str,
    /// The first file.
    pub a: String,
    /// The second.
    pub b: String,
    /// Whose kernels are told.
    pub target: String,
    /// Bytes of both.
    pub size: Size,
    /// What differs.
    pub difference: Difference,
}

/// The order of the layers in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    /// The biggest changes first.
    #[default]
    Change,
    /// As they stand in the first model.
    Graph,
}

/// So many nodes without counterpart are named for each operator.
const NAMED: usize = 3;

impl DifferenceReport {
    /// For people; `all` lists the layers that are the same, too.
    pub fn text(&self, sort: Sort, all: bool) -> String {
        let mut out = String::new();
        let d = &self.difference;
        // Writing into a string cannot fail.
        let _ = writeln!(out, "{} -> {}", self.a, self.b);
        if d.is_none() {
            let _ = writeln!(out, "no difference: {}", same(d.layers.len()));
            if all {
                self.layers(&mut out, sort, all);
            }
            return out;
        }
        self.summary(&mut out);
        self.layers(&mut out, sort, all);
        lone(&mut out, "gone", &d.gone);
        lone(&mut out, "new", &d.new);
        out
    }

    fn summary(&self, out: &mut String) {
        let d = &self.difference;
        let [before, after] = [self.size.before, self.size.after].map(bytes);
        row(out, "size", &changed(&before, &after));
        if d.forms[0] != d.forms[1] {
            row(out, "form", &format!("{} -> {}", d.forms[0], d.forms[1]));
        } else {
            row(out, "form", &d.forms[0]);
        }
        for (what, a, b) in &d.model {
            row(out, what, &format!("{a} -> {b}"));
        }
        let changes = d.layers.iter().filter(|p| !p.is_same()).count();
        let mut layers =
            format!("{} in both: {changes} changed, {} the same", d.layers.len(), d.layers.len() - changes);
        for (n, words) in [(d.gone.len(), "gone"), (d.new.len(), "new")] {
            if n > 0 {
                layers += &format!("; {n} {words}");
            }
        }
        row(out, "layers", &layers);
        let by = |how: How| d.layers.iter().filter(|p| p.matched_by == how).count();
        for (how, words) in [
            (How::Weight, "matched by the numbers of their weights"),
            (How::Neighbours, "matched by what stands around them, a guess (~)"),
        ] {
            if by(how) > 0 {
                row(out, "", &format!("{} {words}", by(how)));
            }
        }
        if d.only_form() {
            row(out, "", "only the form and what stands above differ: each layer is quantized as it was");
        }
        tally(out, "precision", d, |p| [p.before.precision.clone(), p.after.precision.clone()]);
        let kernel = |k: &Option<String>| k.clone().unwrap_or_else(|| "float".to_owned());
        tally(out, "kernels", d, |p| [kernel(&p.before.kernel), kernel(&p.after.kernel)]);
    }

    fn layers(&self, out: &mut String, sort: Sort, all: bool) {
        let mut shown: Vec<&Pair> = self.difference.layers.iter().filter(|p| all || !p.is_same()).collect();
        if shown.is_empty() {
            return;
        }
        if sort == Sort::Change {
            shown.sort_by(|a, b| rank(b).partial_cmp(&rank(a)).unwrap_or(std::cmp::Ordering::Equal));
        }
        let changes = self.difference.layers.iter().filter(|p| !p.is_same()).count();
        let _ = writeln!(
            out,
            "\n{}{}:",
            count(changes, "changed layer"),
            if all { ", and those that are the same" } else { "" }
        );
        // Layers of which the same is said share a line.
        let mut lines: Vec<(Vec<String>, String)> = Vec::new();
        for p in shown {
            let guess = if p.matched_by == How::Neighbours { "~ " } else { "" };
            let (name, words) = (format!("{guess}{}", p.before.name), words(p));
            match lines.iter_mut().find(|(_, known)| *known == words) {
                Some((names, _)) => names.push(name),
                None => lines.push((vec![name], words)),
            }
        }
        let name = |names: &[String]| match names {
            [one] => one.clone(),
            [first, .., last] if names.len() > 2 => format!("{first} … {last} ({})", names.len()),
            _ => names.join(", "),
        };
        let width = lines.iter().map(|(names, _)| name(names).chars().count()).max().unwrap_or(0).min(40);
        for (names, words) in lines {
            let _ = writeln!(out, "{}", format!("{:width$}  {words}", name(&names)).trim_end());
        }
    }
}

/// Precision first, then the error of the weight, then the rest.
fn rank(p: &Pair) -> (u8, f64, u64) {
    let kind = match () {
        () if p.before.precision != p.after.precision => 3,
        () if p.before.op != p.after.op || p.weight_difference.is_some() => 2,
        () if !p.is_same() => 1,
        () => 0,
    };
    (kind, p.weight_error(), p.before.bytes.abs_diff(p.after.bytes))
}

/// One layer on one line.
fn words(p: &Pair) -> String {
    let (a, b) = (&p.before, &p.after);
    let mut parts = vec![if a.op == b.op { a.op.clone() } else { format!("{} -> {}", a.op, b.op) }];
    if p.is_same() {
        parts.push(format!("the same, {}", a.precision));
        return parts.join("  ");
    }
    if a.name != b.name && p.matched_by != How::Name {
        parts.push(format!("as {}", b.name));
    }
    let mut told = Vec::new();
    // What a weight is stored as says it already.
    let stored = |l: &crate::difference::Layer| l.precision.contains(", weight ");
    if a.precision == b.precision || (!a.precision.contains(" x ") && stored(b)) {
        told.push(a.precision.split(',').next().unwrap_or_default().to_owned());
    } else {
        told.push(format!("{} -> {}", a.precision, b.precision));
    }
    for (name, x, y) in &p.attributes {
        told.push(format!("{name} {x} -> {y}"));
    }
    told.extend(weight(p));
    if a.quantizer != b.quantizer {
        told.push(quantizers(a.quantizer.as_ref(), b.quantizer.as_ref()));
    }
    if a.kernel != b.kernel {
        let kernel = |k: &Option<String>| k.clone().unwrap_or_else(|| "float".to_owned());
        told.push(match (&a.kernel, &b.kernel) {
            (None, Some(kernel)) => kernel.clone(),
            (x, y) => format!("{} -> {}", kernel(x), kernel(y)),
        });
    }
    if a.bytes != b.bytes {
        told.push(changed(&bytes(a.bytes), &bytes(b.bytes)));
    }
    parts.push(told.join("; "));
    parts.join("  ")
}

fn weight(p: &Pair) -> Option<String> {
    let (a, b) = (&p.before.weight, &p.after.weight);
    let apart = p.weight_difference.map_or_else(String::new, |d| format!(" {}", far(&d)));
    let stored = |w: &Option<Weight>| w.as_ref().map_or_else(|| "none".to_owned(), Weight::words);
    let scales = |w: &Option<Weight>| {
        let scales = w.as_ref().and_then(|w| w.scales);
        scales.map_or_else(String::new, |(lo, hi)| format!("{}..{}", short(lo), short(hi)))
    };
    match (stored(a), stored(b)) {
        (x, y) if x != y => {
            // The types stand in front.
            let told = p.before.precision != p.after.precision && p.after.precision.contains(" x ");
            let plain = a.as_ref().is_some_and(|w| w.granularity.is_empty());
            match b.as_ref().filter(|_| told && plain) {
                Some(w) => Some(format!("weight {}{apart}", y.trim_start_matches(&w.dtype).trim_start())),
                None => Some(format!("weight {x} -> {y}{apart}")),
            }
        }
        (x, _) if !apart.is_empty() => Some(format!("weight {x}{apart}")),
        (x, _) if a != b => Some(format!("weight {x}, scales {} -> {}", scales(a), scales(b))),
        _ => None,
    }
}

/// How far two weights are apart, in words.
fn far(d: &WeightDifference) -> String {
    let max = d.max.map_or_else(String::new, |m| format!("max {}", short(m as f32)));
    match (d.sqnr, d.scaled) {
        (Some(sqnr), Scaled::Channels) => format!("{sqnr:.1} dB, channels scaled"),
        (Some(sqnr), Scaled::By(factor)) if sqnr > 100.0 => format!("scaled by {}", short(factor)),
        (Some(sqnr), Scaled::By(factor)) => format!("{sqnr:.1} dB, scaled by {}", short(factor)),
        (Some(sqnr), Scaled::No) => format!("{sqnr:.1} dB, {max}"),
        (None, _) if d.max.is_some() => max,
        (None, _) => "of another shape".to_owned(),
    }
}

fn quantizers(a: Option<&Quantizer>, b: Option<&Quantizer>) -> String {
    let words = |q: Option<&Quantizer>| q.map_or_else(|| "float".to_owned(), Quantizer::words);
    match (a, b) {
        (None, Some(b)) => format!("out {}", b.words()),
        (Some(x), Some(y)) if x.words() == y.words() => {
            let scale = |q: &Quantizer| q.scale.map_or_else(|| "none".to_owned(), |s| s.to_string());
            format!("out scale {} -> {}", scale(x), scale(y))
        }
        _ => format!("out {} -> {}", words(a), words(b)),
    }
}

/// How many layers changed from what to what, the most frequent first.
fn tally(out: &mut String, label: &str, d: &Difference, of: impl Fn(&Pair) -> [String; 2]) {
    /// More kinds of change are counted together.
    const MOST: usize = 6;
    let mut counts: BTreeMap<[String; 2], usize> = BTreeMap::new();
    for change in d.layers.iter().map(of).filter(|[a, b]| a != b) {
        *counts.entry(change).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n)); // stable: then by name
    for (i, ([a, b], n)) in counts.iter().take(MOST).enumerate() {
        row(out, if i == 0 { label } else { "" }, &format!("{n}: {a} -> {b}"));
    }
    if counts.len() > MOST {
        let rest: usize = counts[MOST..].iter().map(|(_, n)| n).sum();
        row(out, "", &format!("{rest}: others"));
    }
}

/// Nodes that only one model has, by operator.
fn lone(out: &mut String, label: &str, nodes: &[Lone]) {
    if nodes.is_empty() {
        return;
    }
    let mut by_op: BTreeMap<&str, Vec<&Lone>> = BTreeMap::new();
    for node in nodes {
        by_op.entry(&node.op).or_default().push(node);
    }
    let mut by_op: Vec<_> = by_op.into_iter().collect();
    by_op.sort_by_key(|(_, nodes)| std::cmp::Reverse(nodes.len()));
    let _ = writeln!(out, "\n{label}:");
    for (op, nodes) in by_op {
        let named: Vec<String> = nodes
            .iter()
            .take(NAMED)
            .map(|n| match &n.within {
                Some(host) => format!("{} (behind {host})", n.name),
                None => n.name.clone(),
            })
            .collect();
        let more = if nodes.len() > NAMED { ", …" } else { "" };
        let _ = writeln!(out, "  {} {op}: {}{more}", nodes.len(), named.join(", "));
    }
}

fn changed(a: &str, b: &str) -> String {
    if a == b { a.to_owned() } else { format!("{a} -> {b}") }
}

fn row(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "{}", format!("{label:<10} {text}").trim_end());
}

/// That so many layers are the same.
fn same(layers: usize) -> String {
    match layers {
        1 => "the only layer is the same".to_owned(),
        n => format!("{} are the same", count(n, "layer")),
    }
}
