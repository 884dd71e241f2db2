//! What `bench` measured, for people.

use std::fmt::Write;

use super::terminal::{bytes, count, percent, short};
use crate::bench::{Bench, Interval, Kernel, Profile, Speed};

/// Nodes of a profile that are named unless everything is asked for.
const SHOWN: usize = 10;

/// The measurements as text. `all` names every node of the profiles.
pub fn render(bench: &Bench, all: bool) -> String {
    let mut out = String::new();
    // Writing into a string cannot fail.
    let _ = writeln!(
        out,
        "ONNX Runtime {}, {}, batch {}, {} in turns",
        bench.onnxruntime,
        count(bench.threads, "thread"),
        bench.batch,
        count(bench.rounds, "round")
    );
    let (what, tensors) = bench.inputs.split_first().map_or((String::new(), &[][..]), |(w, t)| (w.clone(), t));
    let inputs = if tensors.is_empty() { "none".to_owned() } else { format!("{what}: {}", tensors.join(", ")) };
    let _ = writeln!(out, "inputs: {inputs}\n");
    let width = bench.models.iter().map(|m| m.model.chars().count()).max().unwrap_or(0).clamp(5, 60);
    let head = format!(
        "{:width$}  {:>9}  {:>11}  {:>19}  {:>7}  {:>14}",
        "model", "size", "median", "quartiles", "speed", "95 % certain"
    );
    let _ = writeln!(out, "{}", head.trim_end());
    for (i, m) in bench.models.iter().enumerate() {
        let line = format!("{:width$}  {:>9}  {}", m.model, bytes(m.bytes), figures(m, i == 0));
        let _ = writeln!(out, "{}", line.trim_end());
    }
    for m in &bench.models {
        if let Some(p) = &m.profile {
            profile(&mut out, m, p, if all { usize::MAX } else { SHOWN });
        }
    }
    out
}

fn figures(m: &Speed, first: bool) -> String {
    let Interval { median, low, high } = m.milliseconds;
    let certain = if first { String::new() } else { format!("{:.2} to {:.2}", m.speed.low, m.speed.high) };
    let range = format!("{} to {}", short(low), short(high));
    format!("{:>8} ms  {range:>19}  {:>6.2}x  {certain:>14}", short(median), m.speed.median)
}

fn profile(out: &mut String, m: &Speed, p: &Profile, limit: usize) {
    let _ = writeln!(out, "\n{}: {} us in a profiled run", m.model, short(p.microseconds));
    let share = |us: f64| percent(us / p.microseconds.max(f64::MIN_POSITIVE));
    let width = p.kernels.iter().map(|k| k.op.chars().count()).max().unwrap_or(0).clamp(6, 40);
    let _ = writeln!(out, "  {:width$}  {:10}  {:>5}  {:>9}  {:>8}", "kernel", "in", "nodes", "us", "share");
    for Kernel { op, kind, nodes, microseconds } in &p.kernels {
        let (us, share) = (short(*microseconds), share(*microseconds));
        let _ = writeln!(out, "  {op:width$}  {:10}  {nodes:>5}  {us:>9}  {share:>8}", kind.word());
    }
    let shown = p.nodes.len().min(limit);
    let _ = writeln!(out, "  the slowest {}:", count(shown, "node"));
    for n in &p.nodes[..shown] {
        let (us, share) = (short(n.microseconds), share(n.microseconds));
        let _ = writeln!(out, "  {us:>9}  {share:>8}  {} ({}, {})", n.name, n.op, n.kind.word());
    }
    if p.nodes.len() > shown {
        let _ = writeln!(out, "  {} more (-v shows all)", p.nodes.len() - shown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Kind, NodeTime};

    #[test]
    fn a_table_with_a_profile() {
        let of = |median: f64| Interval { median, low: 0.9 * median, high: 1.1 * median };
        let nodes = (0..12).map(|i| NodeTime {
            name: format!("conv{i}"),
            op: "QLinearConv".into(),
            kind: Kind::Integer,
            microseconds: 100.0 - f64::from(i),
        });
        let profile = Profile {
            microseconds: 2000.0,
            kernels: vec![Kernel { op: "QLinearConv".into(), kind: Kind::Integer, nodes: 12, microseconds: 1500.0 }],
            nodes: nodes.collect(),
        };
        let model = |name: &str, ms, speed, profile| Speed {
            model: name.into(),
            bytes: 3_200_000,
            milliseconds: of(ms),
            speed: of(speed),
            profile,
        };
        let bench = Bench {
            onnxruntime: "1.32.0".into(),
            threads: 1,
            batch: 1,
            inputs: vec!["the first sample of the data".into(), "x float[1, 3]".into()],
            rounds: 15,
            models: vec![model("a.onnx", 5.0, 1.0, None), model("b.onnx", 2.5, 2.0, Some(profile))],
        };
        let text = render(&bench, false);
        let want = "\
ONNX Runtime 1.32.0, 1 thread, batch 1, 15 rounds in turns
inputs: the first sample of the data: x float[1, 3]

model        size       median            quartiles    speed    95 % certain
a.onnx    3.20 MB      5.00 ms         4.50 to 5.50    1.00x
b.onnx    3.20 MB      2.50 ms         2.25 to 2.75    2.00x    1.80 to 2.20

b.onnx: 2000 us in a profiled run
  kernel       in          nodes         us     share
  QLinearConv  integer        12       1500   75.00 %
  the slowest 10 nodes:
        100    5.00 %  conv0 (QLinearConv, integer)
";
        assert!(text.starts_with(want), "{text}");
        assert!(text.ends_with("  2 more (-v shows all)\n"), "{text}");
        assert!(!render(&bench, true).contains("more"));
    }
}
