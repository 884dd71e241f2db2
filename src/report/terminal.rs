//! The report for people: the verdict in words first, then figures.

use std::{collections::BTreeSet, fmt::Write};

use super::{Halves, Kept, Proof, Report, Verdict};
pub use crate::diagnostics::count;
use crate::{diagnostics::Severity, kernels, plan::NO_FLOAT8};

/// Lines of reasons and of diagnostics that are shown unless everything is asked for.
const SHOWN: usize = 8;

/// The report as text. `all` shows every reason and diagnostic.
pub fn render(report: &Report, all: bool) -> String {
    let mut out = String::new();
    let limit = if all { usize::MAX } else { SHOWN };
    // Writing into a string cannot fail.
    let _ = writeln!(out, "{}", verdict(report));
    collapse(&mut out, report);
    out.push('\n');
    nodes(&mut out, report, limit);
    if let Some(text) = report.kernels.as_ref().and_then(kernels::Summary::line) {
        row(&mut out, "kernels", &text);
    }
    if let Some(s) = &report.saturation {
        row(&mut out, "cpu", &s.text(limit));
    }
    measured(&mut out, report, limit);
    auto(&mut out, report);
    let s = &report.size;
    if s.before > 0 && s.after > 0 {
        let share = 100.0 * s.after as f64 / s.before as f64;
        row(&mut out, "size", &format!("{} -> {} ({share:.0} %)", bytes(s.before), bytes(s.after)));
    }
    if let Some(c) = &report.calibration {
        let method = if c.observer.is_empty() { "given" } else { &c.observer };
        if c.values > 0 {
            let (values, samples) = (count(c.values, "value"), count(c.samples, "sample"));
            row(&mut out, "ranges", &format!("{values} on {samples}, {method}"));
        }
    }
    if let Some(p) = &report.proof {
        outputs(&mut out, p);
    }
    for (i, sentence) in report.advice.iter().enumerate() {
        row(&mut out, if i == 0 { "advice" } else { "" }, sentence);
    }
    diagnostics(&mut out, report, limit);
    time(&mut out, report);
    out
}

/// A comparison of two models as text.
pub fn comparison(report: &Report) -> String {
    let mut out = String::new();
    if let Some(p) = &report.proof {
        let file = report.output.as_deref().unwrap_or("the model");
        let _ = writeln!(out, "{file} against {} on {}", report.model, count(p.samples, "sample"));
        outputs(&mut out, p);
        for (i, g) in p.gates.iter().filter(|g| !g.passed).enumerate() {
            row(&mut out, if i == 0 { "failed" } else { "" }, &gate(g, p));
        }
    }
    diagnostics(&mut out, report, usize::MAX);
    out
}

/// One line: what the run comes to.
pub fn verdict(report: &Report) -> String {
    let file = report.output.as_deref().unwrap_or("the model");
    let Some(p) = &report.proof else { return format!("written: {file} (not compared with the original)") };
    if p.samples == 0 && report.verdict == Verdict::Unproven {
        return format!("written: {file} (not proved: no finite sample was left)");
    }
    let seen = match p.unseen {
        n if n == p.samples => "",
        0 => ", which calibration saw too",
        _ => ", some of which calibration saw too",
    };
    let on = format!("{}{seen}", count(p.samples, "sample"));
    match report.verdict {
        Verdict::OriginalBroken if !report.broken_weights.is_empty() => {
            let more = match report.broken_weights.len() {
                1 => String::new(),
                n => format!(" (and so in {})", count(n - 1, "other node")),
            };
            format!(
                "NOT COMPARABLE: {file} is written, but the original has no answers to compare with: {}{more}",
                report.broken_weights[0]
            )
        }
        Verdict::OriginalBroken => {
            let broken: Vec<_> =
                p.broken().map(|o| format!("{} numbers of output {:?}", o.original_not_finite, o.name)).collect();
            format!(
                "NOT COMPARABLE: {file} is written, but the original itself answers NaN or infinity in {}: check the model and \
                 the data before quantizing",
                broken.join(", ")
            )
        }
        Verdict::Collapsed => {
            let lost: Vec<_> = p.lost().map(|o| format!("{:?} ({})", o.name, decibel(o.least()))).collect();
            let cause = match p.collapse.as_ref().and_then(|c| c.regions.first()) {
                Some(r) => format!("; caused by {}", names(&r.nodes)),
                None => String::new(),
            };
            let outputs = if lost.len() == 1 { "output" } else { "outputs" };
            format!(
                "COLLAPSED: {file} is of no use: {outputs} {} under the floor of {} dB{cause}",
                lost.join(", "),
                p.floor
            )
        }
        Verdict::GateFailed => {
            let failed: Vec<_> = p.gates.iter().filter(|g| !g.passed).map(|g| gate(g, p)).collect();
            format!("gate failed: {file} is written, but {}", failed.join("; "))
        }
        Verdict::Unproven | Verdict::Good
            if report.nodes.integer + report.nodes.weight_only + report.nodes.float8 == 0
                && report.halves.is_none() =>
        {
            let smaller = report.size.after * 20 < report.size.before * 19;
            let gained = if smaller { "smaller, but not faster" } else { "nothing gained" };
            let why = match report.auto.as_ref().filter(|a| a.floated > 0) {
                Some(a) => format!("integers would cost more of the answers than {} allows", a.limit),
                None if report.for_size => "no kernel reads its weights as codes".to_owned(),
                None => "no node of this model gains from integers".to_owned(),
            };
            format!("{gained}: {file} is written, but {why}")
        }
        Verdict::Unproven | Verdict::Good => {
            let Some(worst) = p.worst() else {
                let same = p.outputs.iter().filter_map(|o| o.agreement).min_by(f64::total_cmp).filter(|a| *a < 1.0);
                return match same {
                    Some(share) => format!("done: {file} gives the original's answers in {} ({on})", percent(share)),
                    None => format!("done: {file} gives exactly the original's answers on {on}"),
                };
            };
            let agree = p.outputs.iter().filter_map(|o| o.agreement).min_by(f64::total_cmp);
            let agree = agree.map(|a| format!(", same top answer in {}", percent(a))).unwrap_or_default();
            let like = match worst.least() {
                Some(s) if s < 10.0 => "answers only loosely like the original",
                Some(s) if s < 20.0 => "answers roughly like the original",
                _ => "answers like the original",
            };
            format!("done: {file} {like}: SQNR {}{agree} ({on})", decibel(worst.least()))
        }
    }
}

fn gate(g: &super::Gate, p: &Proof) -> String {
    let Some(value) = g.value else {
        return match g.name {
            name if p.samples == 0 => format!("{name} cannot be checked: no finite sample was left"),
            "max_drop" => "max_drop cannot be checked: the data has no labels".to_owned(),
            name => format!("{name} cannot be checked: no output fits it"),
        };
    };
    match g.name {
        "min_sqnr" => format!("SQNR is {value:.1} dB, min_sqnr asks for {} dB", g.limit),
        "min_agreement" => {
            format!("top answers agree in {}, min_agreement asks for {}", percent(value), percent(g.limit))
        }
        "max_drop" => {
            format!("accuracy drops by {:.2} points, max_drop allows {:.2}", 100.0 * value, 100.0 * g.limit)
        }
        name => format!("{name} is {value}, the limit is {}", g.limit),
    }
}

fn collapse(out: &mut String, report: &Report) {
    let Some(c) = report.proof.as_ref().and_then(|p| p.collapse.as_ref()) else { return };
    if c.regions.is_empty() {
        let try_this = match report.nodes.weight_only {
            0 => "try another observer, more samples, or check the calibration data",
            _ => "try more bits, smaller blocks, calibration data, or weight_only.others: float16 if it is bits",
        };
        let _ = writeln!(out, "  no region causes it alone; {try_this}");
        return;
    }
    let _ = writeln!(out, "  SQNR with one region quantized alone ({}):", count(c.samples, "sample"));
    for r in c.regions.iter().take(SHOWN) {
        let _ = writeln!(out, "  {:>8}  {}", decibel(r.sqnr), names(&r.nodes));
    }
    if !c.yaml.is_empty() {
        let _ = writeln!(out, "  to keep them in float, save this and pass it with --config:");
        for line in c.yaml.lines() {
            let _ = writeln!(out, "    {line}");
        }
    }
}

fn nodes(out: &mut String, report: &Report, limit: usize) {
    let n = &report.nodes;
    let integer = n.integer + n.already;
    if let Some(halves) = report.halves.as_ref().filter(|_| integer + n.weight_only == 0) {
        row(out, "nodes", &halves.text());
        let lines = Halves::reasons(&n.reasons);
        // That the runtime has no operators of a type is said below.
        if halves.nodes > 0 || lines.len() > n.reasons.iter().map(|r| &r.op).collect::<BTreeSet<_>>().len() {
            reasons(out, lines, limit);
        }
        return;
    }
    if n.float8 > 0 {
        let total = n.float8 + n.float;
        row(out, "nodes", &format!("{} of {total} between floats of 8 bits; {} as they were", n.float8, n.float));
        let could: Vec<_> = n.reasons.iter().filter(|r| r.reason != NO_FLOAT8).cloned().collect();
        reasons(out, Halves::reasons(&could), limit);
        return;
    }
    let integer = n.integer + n.already;
    let half = report.halves.as_ref().filter(|h| h.nodes > 0);
    let total = integer + n.weight_only + n.absorbed + n.float + half.map_or(0, |h| h.nodes);
    let halves = half.map_or(String::new(), |h| format!("; {} in {}", h.nodes, h.dtype));
    let file = match (n.already, n.integer) {
        (0, _) => String::new(),
        (_, 0) => ", as the file had them".to_owned(),
        (1, _) => ", 1 of them as the file had it".to_owned(),
        (already, _) => format!(", {already} of them as the file had them"),
    };
    let dynamic = if n.dynamic > 0 { format!(" ({} on data quantized at run time)", n.dynamic) } else { String::new() };
    let absorbed = if n.absorbed > 0 { format!(", {} absorbed into them", n.absorbed) } else { String::new() };
    let kernels: Vec<_> = n.kernels.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let text = match (n.weight_only, integer) {
        (0, 0) if report.for_size => format!("none of {total} reads weights in few bits"),
        (0, _) => {
            format!("{integer} of {total} compute in integers{file}{dynamic}{absorbed}{halves}; {} stay float", n.float)
        }
        (few, 0) => {
            let rest =
                if n.float == 1 { "1 stays as it is".to_owned() } else { format!("{} stay as they are", n.float) };
            format!("{few} of {total} read weights in few bits ({}){halves}; {rest}", kernels.join(", "))
        }
        (few, _) => format!(
            "{integer} of {total} compute in integers{file}{dynamic}{absorbed}{halves}; {few} read weights in few bits; {} stay float",
            n.float
        ),
    };
    row(out, "nodes", &text);
    for r in n.reasons.iter().take(limit) {
        row(out, "", &format!("  {} × {}: {}", r.nodes.len(), r.op, r.reason));
    }
    if n.reasons.len() > limit {
        let rest: usize = n.reasons[limit..].iter().map(|r| r.nodes.len()).sum();
        row(out, "", &format!("  {rest} more for {} (-v shows all)", count(n.reasons.len() - limit, "other reason")));
    }
}

/// Lines of reasons, with how many are left out.
fn reasons(out: &mut String, lines: Vec<String>, limit: usize) {
    let rest = lines.len().saturating_sub(limit);
    lines.into_iter().take(limit).for_each(|line| row(out, "", &format!("  {line}")));
    if rest > 0 {
        row(out, "", &format!("  {rest} more (-v shows all)"));
    }
}

/// Whether the model was brought into 16-bit floats as a whole.
fn only_halves(report: &Report) -> bool {
    report.halves.is_some() && report.nodes.integer + report.nodes.weight_only == 0
}

fn auto(out: &mut String, report: &Report) {
    let Some(a) = report.auto.as_ref().filter(|a| a.kept_before != a.kept_after || a.too_much()) else { return };
    let first = if only_halves(report) { "with all that fits in 16 bits" } else { "in the fastest plan" };
    let cures = [
        a.fitted.then(|| "weights rounded by what layers read".to_owned()),
        (a.narrowed > 0).then(|| format!("{} narrower", count(a.narrowed, "range"))),
        (a.at_run_time > 0).then(|| format!("the data of {} quantized at run time", count(a.at_run_time, "node"))),
        (a.floated > 0).then(|| match only_halves(report) {
            true => format!("{} left in 32 bits", count(a.floated, "node")),
            false => format!("{} left in float", count(a.floated, "node")),
        }),
    ];
    let cures: Vec<String> = cures.into_iter().flatten().collect();
    let by = if cures.is_empty() { String::new() } else { format!(": {}", cures.join(", ")) };
    let (before, after) = (a.kept_before, a.kept_after);
    let shares = |of: fn(&Kept) -> Option<f64>| of(&before).zip(of(&after));
    let mut asked = false;
    if let Some(((was, is), least)) = shares(|k| k.agreement).zip(a.least_agreement) {
        let (was, is, least) = (percent(was), percent(is), percent(least));
        row(out, "answers", &format!("{was} the same {first}, {is} in this one{by} ({least} are asked for)"));
        asked = true;
    }
    if let Some((was, is)) = shares(|k| k.right) {
        let (label, by) = if asked { ("", "") } else { ("answers", &by[..]) };
        let text =
            format!("{} as many right ones as the original {first}, {} in this one{by}", percent(was), percent(is));
        row(out, label, &format!("{text} ({} are to be kept)", percent(1.0 - a.max_loss)));
        asked = true;
    }
    let (was, is) = (decibel(before.sqnr), decibel(after.sqnr));
    match asked {
        true => row(out, "", &format!("SQNR {was} {first}, {is} in this one")),
        false => {
            let aim = a.aim;
            row(out, "answers", &format!("{was} {first}, {is} in this one{by} ({aim:.0} dB are aimed at)"));
        }
    }
    if a.too_much() {
        row(out, "", &format!("  MORE IS LOST than {} allows", a.limit));
    }
}

fn measured(out: &mut String, report: &Report, limit: usize) {
    let Some(m) = &report.measured else { return };
    let speed = |s: &crate::bench::Interval| format!("{:.2}x ({:.2} to {:.2})", s.median, s.low, s.high);
    row(out, "speed", &format!("{} that of the original, measured", speed(&m.whole)));
    if let Some(slower) = &m.slower {
        row(out, "", &format!("  SLOWER THAN FLOAT with integers: {}; all nodes are float again", speed(slower)));
    }
    for back in m.put_back.iter().take(limit) {
        row(out, "", &format!("  put back into float: {}: {} in integers", names(&back.nodes), speed(&back.speed)));
    }
    if m.put_back.len() > limit {
        row(out, "", &format!("  {} more (-v shows all)", m.put_back.len() - limit));
    }
}

fn outputs(out: &mut String, p: &Proof) {
    let width = p.outputs.iter().map(|o| o.name.chars().count()).max().unwrap_or(0).clamp(6, 40);
    row(
        out,
        "outputs",
        &format!("{:width$}  {:>9}  {:>8}  {:>10}  {:>11}", "", "SQNR", "cosine", "max error", "same argmax"),
    );
    for o in &p.outputs {
        let agreement = o.agreement.map_or("-".to_owned(), percent);
        let figures = format!("{:>9}  {:>8.5}  {:>10}  {agreement:>11}", decibel(o.sqnr), o.cosine, short(o.max_error));
        row(out, "", &format!("{:width$}  {figures}", o.name));
        if let Some(part) = &o.part {
            let sqnr = decibel(Some(part.sqnr_db).filter(|s| s.is_finite()));
            row(out, "", &format!("{:width$}  {sqnr:>9}  in {} alone", "", part.words()));
        }
    }
    if let Some(a) = &p.accuracy {
        let change = 100.0 * (a.after - a.before);
        let samples = count(a.samples, "labelled sample");
        row(
            out,
            "accuracy",
            &format!("{} -> {} ({change:+.2} points, {samples})", percent(a.before), percent(a.after)),
        );
    }
}

fn diagnostics(out: &mut String, report: &Report, limit: usize) {
    let mut sorted: Vec<_> = report.diagnostics.iter().collect();
    sorted.sort_by_key(|d| std::cmp::Reverse(d.severity)); // stable: what came first stays first
    for (i, d) in sorted.iter().take(limit).enumerate() {
        let kind = if d.severity == Severity::Warning { "warning: " } else { "" };
        row(out, if i == 0 { "noticed" } else { "" }, &format!("{kind}{d}"));
    }
    if sorted.len() > limit {
        row(out, "", &format!("{} more (-v shows all)", sorted.len() - limit));
    }
}

fn time(out: &mut String, report: &Report) {
    let total: f64 = report.stages.iter().map(|s| s.seconds).sum();
    let mut stages: Vec<(&str, f64)> = Vec::new();
    for s in &report.stages {
        match stages.iter_mut().find(|(name, _)| *name == s.name) {
            Some((_, seconds)) => *seconds += s.seconds,
            None => stages.push((s.name, s.seconds)),
        }
    }
    stages.retain(|(_, seconds)| *seconds >= 0.05);
    stages.sort_by(|a, b| b.1.total_cmp(&a.1));
    let parts: Vec<_> = stages.iter().take(3).map(|(name, seconds)| format!("{name} {seconds:.1}")).collect();
    let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
    let memory =
        if report.peak_memory > 0 { format!(", peak memory {}", bytes(report.peak_memory)) } else { String::new() };
    if !report.stages.is_empty() {
        row(out, "time", &format!("{total:.1} s{parts}{memory}"));
    }
}

pub(super) fn row(out: &mut String, label: &str, text: &str) {
    let line = format!("{label:<10}{text}");
    let _ = writeln!(out, "{}", line.trim_end());
}

/// Bytes in units of 1000.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        _ if n >= 1e9 => format!("{:.2} GB", n / 1e9),
        _ if n >= 1e6 => format!("{:.2} MB", n / 1e6),
        _ if n >= 1e3 => format!("{:.1} kB", n / 1e3),
        _ => format!("{n} bytes"),
    }
}

/// Signal to noise in words.
pub fn decibel(sqnr: Option<f64>) -> String {
    match sqnr {
        None => "exact".to_owned(),
        Some(s) if s.is_nan() => "not a number".to_owned(),
        Some(s) => format!("{s:.1} dB"),
    }
}

/// A share in percent.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Three significant digits.
pub fn short(x: f64) -> String {
    match x.abs() {
        a if a == 0.0 || !a.is_finite() => format!("{x}"),
        a if (1e-3..1e5).contains(&a) => {
            let digits = (2 - a.log10().floor() as i32).clamp(0, 6) as usize;
            format!("{x:.digits$}")
        }
        _ => format!("{x:.2e}"),
    }
}

/// Names of nodes, the first few.
fn names(nodes: &[String]) -> String {
    match nodes {
        [] => "no node".to_owned(),
        [one] => format!("node {one:?}"),
        [first, .., last] => format!("the {} nodes from {first:?} to {last:?}", nodes.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;

    fn report() -> Report {
        let reason = |op: &str, reason: &str, n: usize| FloatReason {
            op: op.to_owned(),
            reason: reason.to_owned(),
            for_answers: false,
            nodes: (0..n).map(|i| format!("{op}_{i}")).collect(),
        };
        let output = |name: &str, sqnr, agreement| OutputScore {
            name: name.to_owned(),
            sqnr,
            cosine: 0.99971,
            max_error: 0.431_23,
            agreement,
            graded: true,
            ..OutputScore::default()
        };
        let mut report = Report {
            version: "0.1.0",
            model: "m.onnx".to_owned(),
            output: Some("m.int8.onnx".to_owned()),
            nodes: Nodes {
                integer: 48,
                dynamic: 0,
                weight_only: 0,
                float8: 0,
                already: 0,
                absorbed: 20,
                float: 14,
                kernels: [("QLinearConv".to_owned(), 48)].into(),
                reasons: vec![
                    reason("HardSwish", "no integer kernel", 12),
                    reason("Softmax", "it joins no two integer kernels", 2),
                ],
            },
            size: Size { before: 1_882_113, after: 521_000 },
            calibration: Some(Calibration { samples: 36, values: 50, observer: "auto".to_owned() }),
            proof: Some(Proof {
                samples: 64,
                unseen: 64,
                outputs: vec![output("logits", Some(32.14), Some(0.984_375)), output("boxes", Some(41.0), None)],
                accuracy: Some(Accuracy { before: 0.6111, after: 0.6085, samples: 64 }),
                floor: 5.0,
                ..Proof::default()
            }),
            diagnostics: vec![
                Diagnostic::note("dead", "always 0 in the data").on("relu_3"),
                Diagnostic::warning("few_samples", "36 samples are few").help("100 or more give steadier ranges"),
            ],
            stages: vec![Stage { name: "calibration", seconds: 2.14 }, Stage { name: "proof", seconds: 0.83 }],
            peak_memory: 181_000_000,
            ..Report::default()
        };
        report.judge();
        report
    }

    #[test]
    fn a_good_model() {
        insta::assert_snapshot!(render(&report(), false), @r#"
        done: m.int8.onnx answers like the original: SQNR 32.1 dB, same top answer in 98.44 % (64 samples)

        nodes     48 of 82 compute in integers, 20 absorbed into them; 14 stay float
                    12 × HardSwish: no integer kernel
                    2 × Softmax: it joins no two integer kernels
        size      1.88 MB -> 521.0 kB (28 %)
        ranges    50 values on 36 samples, auto
        outputs                SQNR    cosine   max error  same argmax
                  logits    32.1 dB   0.99971       0.431      98.44 %
                  boxes     41.0 dB   0.99971       0.431            -
        accuracy  61.11 % -> 60.85 % (-0.26 points, 64 labelled samples)
        noticed   warning: 36 samples are few (100 or more give steadier ranges)
                  "relu_3": always 0 in the data
        time      3.0 s (calibration 2.1, proof 0.8), peak memory 181.00 MB
        "#);
    }

    #[test]
    fn a_gate_that_fails() {
        let mut r = report();
        r.proof.as_mut().unwrap().check(Some(40.0), Some(0.99), Some(0.001));
        r.judge();
        insta::assert_snapshot!(verdict(&r), @"gate failed: m.int8.onnx is written, but SQNR is 32.1 dB, min_sqnr asks for 40 dB; top answers agree in 98.44 %, min_agreement asks for 99.00 %; accuracy drops by 0.26 points, max_drop allows 0.10");
    }

    #[test]
    fn a_collapse_says_what_to_do() {
        let mut r = report();
        let p = r.proof.as_mut().unwrap();
        p.outputs[0].sqnr = Some(-1.25);
        p.collapse = Some(Collapse {
            regions: vec![
                Region { nodes: vec!["conv_0".to_owned(), "conv_1".to_owned()], sqnr: Some(0.4) },
                Region { nodes: vec!["head".to_owned()], sqnr: Some(12.0) },
            ],
            samples: 4,
            yaml: "rules:\n- nodes: [conv_0, conv_1]\n  precision: float\n".to_owned(),
        });
        r.judge();
        let text = render(&r, false);
        insta::assert_snapshot!(text.split("\n\n").next().unwrap(), @r#"
        COLLAPSED: m.int8.onnx is of no use: output "logits" (-1.2 dB) under the floor of 5 dB; caused by the 2 nodes from "conv_0" to "conv_1"
          SQNR with one region quantized alone (4 samples):
            0.4 dB  the 2 nodes from "conv_0" to "conv_1"
           12.0 dB  node "head"
          to keep them in float, save this and pass it with --config:
            rules:
            - nodes: [conv_0, conv_1]
              precision: float
        "#);
    }

    #[test]
    fn a_model_that_gains_nothing() {
        let mut r = report();
        r.nodes.integer = 0;
        insta::assert_snapshot!(verdict(&r), @"smaller, but not faster: m.int8.onnx is written, but no node of this model gains from integers");
        r.size.after = r.size.before;
        assert!(verdict(&r).starts_with("nothing gained: "));
        r.auto = Some(crate::report::Auto { floated: 2, limit: "max_loss", ..Default::default() });
        assert!(verdict(&r).ends_with("integers would cost more of the answers than max_loss allows"));
    }

    #[test]
    fn numbers() {
        assert_eq!(
            [0.0, 0.431_23, 12.345, 123_456.0, 0.000_012].map(short),
            ["0", "0.431", "12.3", "1.23e5", "1.20e-5"]
        );
        assert_eq!([999, 1500, 2_000_000, 3_210_000_000].map(bytes), ["999 bytes", "1.5 kB", "2.00 MB", "3.21 GB"]);
        assert_eq!(decibel(None), "exact");
    }
}
