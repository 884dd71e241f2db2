//! What `qonvert lint` found in a model, and what it mended.

use std::fmt::Write;

use serde::Serialize;

use super::terminal::{bytes, count};
use crate::lint::{Changes, Finding, Fixed, Form, Lint, Severity, Spot, Withheld};

/// So many places of one rule are named.
const SHOWN: usize = 3;

/// The whole report.
#[derive(Debug, Clone, Serialize)]
pub struct LintReport {
    /// Version of qonvert.
    pub version: &'static str,
    /// The file that was read.
    pub model: String,
    /// The file that was written.
    pub output: Option<String>,
    /// What the model is to run on.
    pub target: String,
    /// The processor, where it is not the target's own.
    pub cpu: Option<String>,
    /// The form of the file.
    pub form: Form,
    /// Whether anything in the model is quantized.
    pub quantized: bool,
    /// What was found (with repairs: what is left), in the order of the rules.
    pub findings: Vec<Told>,
    /// What was mended.
    pub fixed: Vec<Fixed>,
    /// What was tried in vain.
    pub withheld: Vec<Withheld>,
    /// The file as it was read, and as it was written.
    pub before: Figures,
    /// See `before`.
    pub after: Option<Figures>,
    /// Kernels of the loaded graph, in words.
    pub kernels: Option<String>,
    /// Nothing more can be said of the file than this.
    pub notes: Vec<String>,
}

/// A model in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Time of a run by the target's cost model, microseconds: its ratios mean more than itself. Not known of integer operators that the
    /// file spells out.
    pub microseconds: Option<f64>,
    /// Nodes that compute in integers or move codes.
    pub integer: usize,
    /// Conversions at every run.
    pub conversions: usize,
    /// Bytes of constants.
    pub bytes: u64,
}

/// A finding in words.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    /// The rule.
    pub rule: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// Where.
    #[serde(flatten)]
    pub spot: Spot,
    /// The fact.
    pub fact: String,
    /// Microseconds of a run that it costs, by the cost model.
    pub microseconds: f64,
    /// Bytes that it costs.
    pub bytes: u64,
    /// What to do.
    pub cure: &'static str,
    /// What `--fix` would do to numbers; absent where it cannot mend it.
    pub fix: Option<Changes>,
    /// What is the matter, as the rule says it.
    #[serde(skip)]
    pub what: &'static str,
}

impl Told {
    /// A finding of a rule, at a place in the file.
    pub fn of(lint: &'static Lint, finding: &Finding, spot: Spot) -> Self {
        Self {
            rule: lint.name,
            severity: finding.severity,
            spot,
            fact: finding.fact.clone(),
            microseconds: finding.time / 1e3,
            bytes: finding.bytes,
            cure: lint.cure,
            fix: finding.repair.as_ref().map(|r| r.changes.clone()),
            what: lint.what,
        }
    }
}

impl LintReport {
    /// The greatest severity that is left.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|f| f.severity).max()
    }

    /// For people. `all` names every place.
    pub fn text(&self, all: bool) -> String {
        let mut out = String::new();
        // Writing into a string cannot fail.
        let _ = writeln!(out, "{}", self.verdict());
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        self.mended(&mut out, all);
        if !self.fixed.is_empty() && !self.findings.is_empty() {
            let _ = writeln!(out, "\nleft:");
        }
        let limit = if all { usize::MAX } else { SHOWN };
        for group in self.groups() {
            self.group(&mut out, &group, limit);
        }
        if let Some(kernels) = &self.kernels {
            let _ = writeln!(out, "\nkernels   {kernels}");
        }
        out
    }

    /// One sentence: what it comes to.
    fn verdict(&self) -> String {
        if !self.quantized {
            let written = self.output.as_ref().map(|file| format!("; {file} is written")).unwrap_or_default();
            return format!("{}: nothing in this model is quantized{written}", self.model);
        }
        let number = |s: Severity| self.findings.iter().filter(|f| f.severity == s).count();
        let counts: Vec<String> = [Severity::Error, Severity::Warning, Severity::Note]
            .into_iter()
            .filter(|&s| number(s) > 0)
            .map(|s| count(number(s), s.name()))
            .collect();
        let mended: usize = self.fixed.iter().map(|f| f.findings.len()).sum();
        match (&self.output, counts.is_empty()) {
            (Some(file), true) if mended == 0 => {
                format!("{file} is written as {} was: nothing to say against it", self.model)
            }
            (Some(file), true) => format!("{file} is written: {} mended, nothing is left", count(mended, "finding")),
            (Some(file), false) if mended == 0 => {
                format!("{file} is written as {} was: nothing is mended of {}", self.model, counts.join(", "))
            }
            (Some(file), false) => {
                format!("{file} is written: {} mended, {} left", count(mended, "finding"), counts.join(", "))
            }
            (None, true) => format!("{}: nothing to say against it", self.model),
            (None, false) => format!("{}: {}", self.model, counts.join(", ")),
        }
    }

    fn mended(&self, out: &mut String, all: bool) {
        let limit = if all { usize::MAX } else { SHOWN };
        for fixed in &self.fixed {
            let words: Vec<&str> = fixed.changes.iter().map(Changes::words).take(SHOWN).collect();
            let _ = writeln!(
                out,
                "\nmended    {} [{}]: {}",
                count(fixed.findings.len(), "finding"),
                fixed.rule,
                words.join("; ")
            );
            for finding in fixed.findings.iter().take(limit) {
                let _ = writeln!(out, "          {finding}");
            }
            more(out, fixed.findings.len(), limit);
        }
        if let (Some(after), false) = (self.after, self.fixed.is_empty()) {
            let b = self.before;
            let _ = writeln!(out);
            let share = b.microseconds.zip(after.microseconds).filter(|(b, _)| *b > 0.0).map(|(b, a)| a / b);
            // What the cost model does not see is not told.
            if let Some(share) = share.filter(|s| *s < 0.995) {
                let _ = writeln!(out, "time      {share:.2}x of what it was, by the cost model of {}", self.target);
            }
            let _ = writeln!(
                out,
                "integer   {} -> {} nodes, {} -> {} conversions at every run",
                b.integer, after.integer, b.conversions, after.conversions
            );
            if b.bytes != after.bytes {
                let _ = writeln!(out, "weights   {} -> {}", bytes(b.bytes), bytes(after.bytes));
            }
        }
        for w in &self.withheld {
            let _ = writeln!(out, "not mended {} [{}]: {}", count(w.findings, "finding"), w.rule, w.reason);
        }
    }

    /// The findings of each rule, the worst first.
    fn groups(&self) -> Vec<Vec<&Told>> {
        let mut groups: Vec<Vec<&Told>> = Vec::new();
        for finding in &self.findings {
            match groups.iter_mut().find(|g| g[0].rule == finding.rule && g[0].severity == finding.severity) {
                Some(group) => group.push(finding),
                None => groups.push(vec![finding]),
            }
        }
        groups.sort_by_key(|g| std::cmp::Reverse(g[0].severity));
        groups
    }

    fn group(&self, out: &mut String, group: &[&Told], limit: usize) {
        let first = group[0];
        let _ = writeln!(
            out,
            "\n{:<9} [{}] {}: {}",
            first.severity.name(),
            first.rule,
            count(group.len(), "place"),
            first.what
        );
        let mut sorted = group.to_vec();
        sorted.sort_by(|a, b| b.microseconds.total_cmp(&a.microseconds));
        for finding in sorted.iter().take(limit) {
            let _ = writeln!(out, "          {}", finding.spot.sentence(&finding.fact));
        }
        more(out, group.len(), limit);
        let (time, size): (f64, u64) =
            (group.iter().map(|f| f.microseconds).sum(), group.iter().map(|f| f.bytes).sum());
        let total = self.after.unwrap_or(self.before).microseconds.unwrap_or(0.0);
        let share = (time > 0.0 && total > 0.0)
            .then(|| format!("about {:.0} % of the time of a run", 100.0 * (time / total).min(1.0)));
        let room = (size > 0).then(|| format!("{} of the file", bytes(size)));
        let costs: Vec<String> = share.into_iter().chain(room).collect();
        if !costs.is_empty() {
            let _ = writeln!(out, "  costs   {}", costs.join(", "));
        }
        let _ = writeln!(out, "  cure    {}", first.cure);
        let mends = group.iter().filter(|f| f.fix.is_some()).count();
        if self.output.is_none() {
            let how = group.iter().find_map(|f| f.fix.as_ref()).map_or("", Changes::words);
            let _ = match mends {
                0 => Ok(()),
                n if n == group.len() => writeln!(out, "  --fix   can do that: {how}"),
                n => writeln!(out, "  --fix   can do that for {n} of them: {how}"),
            };
        }
    }
}

fn more(out: &mut String, all: usize, limit: usize) {
    if all > limit {
        let _ = writeln!(out, "          and {} more (-v names all)", all - limit);
    }
}
