//! What a run did, in numbers: for tools as JSON ([`json`]), for people as text ([`terminal`]).

mod advice;
mod conversion;
mod dequantization;
mod difference;
mod halves;
pub mod inspect;
pub mod json;
pub mod lint;
mod saturation;
pub mod sensitivity;
pub mod speed;
pub mod terminal;
pub mod tune;

use std::collections::BTreeMap;

use serde::Serialize;

pub use self::{
    conversion::{Conversion, NOTHING_QUANTIZED},
    dequantization::Dequantization,
    difference::{DifferenceReport, Sort},
    halves::Halves,
    saturation::Saturation,
};
use crate::{
    bench::Measured,
    diagnostics::Diagnostic,
    kernels,
    plan::{FOR_THE_ANSWERS, Form, Plan},
    validate::Part,
};

/// Everything that is said of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Version of qonvert.
    pub version: &'static str,
    /// The file that was read.
    pub model: String,
    /// The file that was written.
    pub output: Option<String>,
    /// What it comes to; see [`Report::judge`].
    pub verdict: Verdict,
    /// What became of the nodes.
    pub nodes: Nodes,
    /// What is in 16-bit floats, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub halves: Option<Halves>,
    /// What was done against saturating sums, where the processor has them.
    pub saturation: Option<Saturation>,
    /// What was measured, if `never_slower` was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// How mode `auto` came to its plan; `None` where there was nothing to judge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto: Option<Auto>,
    /// What the runtime makes of the written file, as predicted: integer kernels, and conversions that run each time.
    pub kernels: Option<kernels::Summary>,
    /// Whether weights in few bits were asked for, and nothing else.
    #[serde(skip)]
    pub for_size: bool,
    /// Weights of the original that are NaN or infinite, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub broken_weights: Vec<String>,
    /// Concats in the fastest plan that give parts of very different ranges one scale.
    #[serde(skip)]
    pub uneven_concats: usize,
    /// Bytes of model and weights.
    pub size: Size,
    /// What calibration saw; `None` if the plan was given.
    pub calibration: Option<Calibration>,
    /// How the written model answers beside the original; `None` if no proof was asked for.
    pub proof: Option<Proof>,
    /// What to know and what to try, in words: at most five sentences, the most useful first.
    pub advice: Vec<String>,
    /// What was noticed, the most useful first.
    pub diagnostics: Vec<Diagnostic>,
    /// Seconds that each stage took, in their order.
    pub stages: Vec<Stage>,
    /// The most memory that the process held at a time, bytes; 0 where the system does not say.
    pub peak_memory: u64,
}

/// How mode `auto` came to its plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Auto {
    /// Samples that plans were judged on.
    pub samples: usize,
    /// The SQNR that each output was to keep, dB; 13 dB less for outputs that hold vectors.
    pub aim: f64,
    /// The same for each output, with 13 dB less for vectors where that is.
    pub aims: Vec<f64>,
    /// The share of right answers that might be lost, or what stands for it.
    pub max_loss: f64,
    /// The gate on the share of the same answers, where one is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least_agreement: Option<f64>,
    /// The setting that allows least of what the fastest plan loses: `max_loss`, `min_sqnr`, `min_agreement` or `max_drop`.
    pub limit: &'static str,
    /// The signal to noise ratio of the fastest plan, dB, on the scale of the aim; `None` without noise.
    pub before: Option<f64>,
    /// The same of the plan that was chosen.
    pub after: Option<f64>,
    /// What the fastest plan keeps.
    pub kept_before: Kept,
    /// What the plan keeps that was chosen.
    pub kept_after: Kept,
    /// The share of what may be lost that the fastest plan loses.
    pub used_before: f64,
    /// The same of the plan that was chosen.
    pub used_after: f64,
    /// The least `max_loss` that would allow a plan with all these nodes in integers, as far as plans were measured.
    pub enough: Option<f64>,
    /// The least that would allow the plan that was chosen, where it loses too much.
    pub enough_after: Option<f64>,
    /// What was done for the answers, step by step.
    pub cures: Vec<Cure>,
    /// Whether weights were rounded by what their layers read.
    pub fitted: bool,
    /// Values whose ranges were chosen narrower, by the answers.
    pub narrowed: usize,
    /// Nodes that have ranges from calibration in the fastest plan, and quantize their data at run time in the one that was
    /// chosen.
    pub at_run_time: usize,
    /// Nodes that are integer in the fastest plan, and float in the one that was chosen.
    pub floated: usize,
    /// Whether the search ended because its time was over.
    pub out_of_time: bool,
}

/// What a plan keeps of the original's answers, on the samples that plans are judged on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Kept {
    /// Signal to noise of the output that suffers most, dB, on the scale of the aim; `None` without noise.
    pub sqnr: Option<f64>,
    /// The share of the same answers, where a gate asks for some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// Right answers as a share of the original's, where there are enough labels for these to decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub right: Option<f64>,
}

/// A step on the way to better answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cure {
    /// What was done, as the subject of a sentence.
    pub name: String,
    /// What the plan before kept, dB.
    pub before: Option<f64>,
    /// What the plan keeps with it.
    pub after: Option<f64>,
}

impl Auto {
    /// Whether more is lost than was allowed.
    pub fn too_much(&self) -> bool {
        self.used_after > 1.0
    }

    /// What the fastest plan keeps by what decides, whatever that is, as if it were noise: to compare plans by, dB.
    pub fn rank_before(&self) -> Option<f64> {
        (self.used_before > 0.0).then(|| self.aim - 10.0 * self.used_before.log10())
    }
}

/// The outcome in one word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Written; nothing was proven.
    #[default]
    Unproven,
    /// Written, and all gates hold.
    Good,
    /// Written, but a gate that the user set does not hold.
    GateFailed,
    /// Written, but an output is under the floor: the model is of no use.
    Collapsed,
    /// Written, but the original itself answers NaN or infinity, so nothing can be said of the result.
    OriginalBroken,
}

/// What became of the nodes of the main graph, and of those of subgraphs that the plan speaks of.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Nodes {
    /// Compute in integers.
    pub integer: usize,
    /// Those of them that quantize their data at run time.
    pub dynamic: usize,
    /// Compute on float data, with weights in few bits.
    #[serde(skip_serializing_if = "is_zero")]
    pub weight_only: usize,
    /// Stand between conversions to and from floats of 8 bits.
    #[serde(skip_serializing_if = "is_zero")]
    pub float8: usize,
    /// Compute in integers or on codes, as the file had them before.
    #[serde(skip_serializing_if = "is_zero")]
    pub already: usize,
    /// Vanished into the node before.
    pub absorbed: usize,
    /// Stay float.
    pub float: usize,
    /// The integer kernels and how many nodes become each.
    pub kernels: BTreeMap<String, usize>,
    /// Why nodes stay float, the most frequent first.
    pub reasons: Vec<FloatReason>,
}

/// Nodes of one operator that stay float for one reason.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FloatReason {
    /// Operator.
    pub op: String,
    /// Why.
    pub reason: String,
    /// Their names, in the plan's order.
    pub nodes: Vec<String>,
    /// Whether they would be integer but for the answers.
    #[serde(skip)]
    pub for_answers: bool,
}

/// How a node is that a file has in its quantized form already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Already {
    /// In integers, or on codes.
    Integer,
    /// Part of another node that is.
    Absorbed,
    /// It converts to or from them: none of the nodes that compute.
    Converts,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Nodes {
    /// Counts the nodes of a plan; of those that it leaves as they are, some are quantized already, by the names of their
    /// outputs.
    pub fn of(plan: &Plan, already: &BTreeMap<String, Already>) -> Self {
        let mut nodes = Self::default();
        let mut reasons: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
        for (output, node) in &plan.nodes {
            match node.becomes {
                Form::Integer | Form::Dynamic => {
                    nodes.integer += 1;
                    nodes.dynamic += usize::from(node.becomes == Form::Dynamic);
                    let kernel = node.kernel.as_deref().unwrap_or(&node.op);
                    *nodes.kernels.entry(kernel.to_owned()).or_default() += 1;
                }
                Form::WeightOnly => {
                    nodes.weight_only += 1;
                    let kernel = node.kernel.as_deref().unwrap_or(&node.op);
                    *nodes.kernels.entry(kernel.to_owned()).or_default() += 1;
                }
                Form::Absorbed => nodes.absorbed += 1,
                Form::Half => {} // see `Halves`
                Form::Float8 => nodes.float8 += 1,
                Form::Float if already.contains_key(output) => {
                    nodes.already += usize::from(already[output] == Already::Integer);
                    nodes.absorbed += usize::from(already[output] == Already::Absorbed);
                }
                Form::Float => {
                    nodes.float += 1;
                    let reason = node.reason.as_deref().unwrap_or("the plan says so");
                    let name = node.name.as_ref().unwrap_or(output);
                    reasons.entry((&node.op, reason)).or_default().push(name.clone());
                }
            }
        }
        nodes.reasons = reasons
            .into_iter()
            .map(|((op, reason), nodes)| FloatReason {
                op: op.to_owned(),
                reason: reason.to_owned(),
                nodes,
                for_answers: reason.starts_with(FOR_THE_ANSWERS),
            })
            .collect();
        nodes.reasons.sort_by_key(|r| std::cmp::Reverse(r.nodes.len())); // stable: then by operator
        nodes
    }
}

/// Bytes on disk, external data included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Of the original.
    pub before: u64,
    /// Of what was written.
    pub after: u64,
}

/// What calibration did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Calibration {
    /// Samples that it saw.
    pub samples: usize,
    /// Values that it observed.
    pub values: usize,
    /// The method that chose the ranges where no rule names another.
    pub observer: String,
}

/// Seconds of one stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// Wall clock.
    pub seconds: f64,
}

/// How the written model answers beside the original.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Proof {
    /// Samples that both ran on.
    pub samples: usize,
    /// How many of them calibration had not seen.
    pub unseen: usize,
    /// Each output.
    pub outputs: Vec<OutputScore>,
    /// Share of right answers, if the data has labels.
    pub accuracy: Option<Accuracy>,
    /// The SQNR under which an output counts as lost, dB.
    pub floor: f64,
    /// What the user asked for.
    pub gates: Vec<Gate>,
    /// Where the damage comes from, if an output is lost.
    pub collapse: Option<Collapse>,
}

/// One output of both models.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct OutputScore {
    /// Its name.
    pub name: String,
    /// Signal to quantization noise, dB; `None` (JSON `null`) where there is no noise at all.
    pub sqnr: Option<f64>,
    /// Cosine of the angle between both answers.
    pub cosine: f64,
    /// Of an output that mixes numbers of very different size, as boxes beside scores: the channels with the least SQNR.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// The SQNR of the sample with the least.
    pub worst_sqnr: Option<f64>,
    /// That sample.
    pub worst_sample: Option<usize>,
    /// The largest difference, in the output's units.
    pub max_error: f64,
    /// Share of positions (all axes but the last) whose greatest element is the same; `None` where that makes no sense.
    pub agreement: Option<f64>,
    /// Whether the floor applies: it holds floating point numbers, and there were some to compare.
    pub graded: bool,
    /// Numbers of the original that are NaN or infinite.
    pub original_not_finite: u64,
    /// Whether they are why both cannot be compared: the result has others in their place, or there are no finite ones.
    pub broken: bool,
}

/// Share of right answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    /// Of the original, 0 to 1.
    pub before: f64,
    /// Of the written model.
    pub after: f64,
    /// Labelled samples.
    pub samples: usize,
}

/// A limit that the user set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gate {
    /// Its name in the configuration: `min_sqnr`, `min_agreement`, `max_drop`.
    pub name: &'static str,
    /// The limit.
    pub limit: f64,
    /// What was measured; `None` if there was nothing to measure (then the gate fails) or no noise.
    pub value: Option<f64>,
    /// Whether it holds.
    pub passed: bool,
}

/// Why outputs are lost.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Collapse {
    /// The regions that cause it, the worst first; empty if none does so alone.
    pub regions: Vec<Region>,
    /// Samples that each region was tried on.
    pub samples: usize,
    /// Rules that keep them in float, as YAML for `--config`.
    pub yaml: String,
}

/// Nodes that were quantized alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Region {
    /// Their names.
    pub nodes: Vec<String>,
    /// SQNR of the worst output with only this region quantized, dB.
    pub sqnr: Option<f64>,
}

impl Report {
    /// Sets the verdict from the proof, and the advice from all.
    pub fn judge(&mut self) {
        self.verdict = match &self.proof {
            None => Verdict::Unproven,
            Some(_) if !self.broken_weights.is_empty() => Verdict::OriginalBroken,
            Some(p) if p.broken().next().is_some() => Verdict::OriginalBroken,
            Some(p) if p.lost().next().is_some() => Verdict::Collapsed,
            Some(p) if p.gates.iter().any(|g| !g.passed) => Verdict::GateFailed,
            Some(p) if p.samples == 0 => Verdict::Unproven,
            Some(_) => Verdict::Good,
        };
        self.advice = advice::advice(self);
    }

    /// Whether the file is what the user asked for: no gate failed and nothing collapsed.
    pub fn passed(&self) -> bool {
        matches!(self.verdict, Verdict::Good | Verdict::Unproven)
    }
}

impl OutputScore {
    /// Its SQNR, dB: of the part with the least, where there are parts; `None` without noise.
    pub fn least(&self) -> Option<f64> {
        let part = self.part.as_ref().map(|p| p.sqnr_db.max(-100.0)).filter(|s| *s < f64::INFINITY);
        match (self.sqnr, part) {
            (Some(whole), Some(part)) => Some(whole.min(part)),
            (whole, _) => whole,
        }
    }
}

impl Proof {
    /// The outputs that the original itself has no numbers for.
    pub fn broken(&self) -> impl Iterator<Item = &OutputScore> {
        self.outputs.iter().filter(|o| o.broken)
    }

    /// The outputs under the floor.
    pub fn lost(&self) -> impl Iterator<Item = &OutputScore> {
        self.outputs.iter().filter(|o| o.graded && o.least().is_some_and(|s| s.is_nan() || s < self.floor))
    }

    /// The output that suffers most; `None` if no output has any noise.
    pub fn worst(&self) -> Option<&OutputScore> {
        let noisy = self.outputs.iter().filter(|o| o.graded && o.least().is_some());
        noisy.min_by(|a, b| a.least().unwrap_or(f64::INFINITY).total_cmp(&b.least().unwrap_or(f64::INFINITY)))
    }

    /// Checks the limits that the user set against the outputs and the accuracy.
    pub fn check(&mut self, min_sqnr: Option<f64>, min_agreement: Option<f64>, max_drop: Option<f64>) {
        self.gates.clear();
        if let Some(limit) = min_sqnr {
            let value = self.worst().and_then(OutputScore::least);
            let exact = self.samples > 0 && !self.outputs.is_empty() && self.outputs.iter().all(|o| o.sqnr.is_none());
            let passed = value.map_or(exact, |v| v >= limit);
            self.gates.push(Gate { name: "min_sqnr", limit, value, passed });
        }
        if let Some(limit) = min_agreement {
            let value = self.outputs.iter().filter_map(|o| o.agreement).min_by(f64::total_cmp);
            self.gates.push(Gate { name: "min_agreement", limit, value, passed: value.is_some_and(|v| v >= limit) });
        }
        if let Some(limit) = max_drop {
            let value = self.accuracy.map(|a| a.before - a.after);
            self.gates.push(Gate { name: "max_drop", limit, value, passed: value.is_some_and(|v| v <= limit) });
        }
    }
}

/// The most memory that this process held at a time, bytes; 0 where the system does not say.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(sqnr: Option<f64>, agreement: Option<f64>) -> OutputScore {
        OutputScore {
            name: "y".to_owned(),
            sqnr,
            cosine: 1.0,
            max_error: 0.1,
            agreement,
            graded: true,
            ..OutputScore::default()
        }
    }

    #[test]
    fn gates_and_verdicts() {
        let mut r = Report::default();
        r.judge();
        assert_eq!((r.verdict, r.passed()), (Verdict::Unproven, true));

        let mut p = Proof {
            samples: 8,
            outputs: vec![output(Some(30.0), Some(0.98)), output(None, None)],
            floor: 5.0,
            ..Proof::default()
        };
        p.check(Some(25.0), Some(0.95), None);
        assert!(p.gates.iter().all(|g| g.passed));
        r.proof = Some(p.clone());
        r.judge();
        assert_eq!(r.verdict, Verdict::Good);

        p.check(Some(35.0), None, Some(0.01));
        assert_eq!(p.gates.iter().map(|g| g.passed).collect::<Vec<_>>(), [false, false]); // no labels: no proof
        r.proof = Some(p.clone());
        r.judge();
        assert_eq!((r.verdict, r.passed()), (Verdict::GateFailed, false));

        p.outputs[0].sqnr = Some(f64::NAN); // NaN in the answer is no better than noise
        r.proof = Some(p.clone());
        r.judge();
        assert_eq!(r.verdict, Verdict::Collapsed);

        (p.outputs[0].broken, p.outputs[0].original_not_finite) = (true, 12);
        r.proof = Some(p);
        r.judge();
        assert_eq!((r.verdict, r.passed()), (Verdict::OriginalBroken, false));
        let text = terminal::verdict(&r);
        assert!(text.contains("the original itself answers NaN or infinity in 12 numbers of output \"y\""), "{text}");
    }

    #[test]
    fn no_sample_is_no_proof() {
        let mut p = Proof { outputs: vec![output(None, None)], ..Proof::default() };
        let mut r = Report { proof: Some(p.clone()), ..Report::default() };
        r.judge();
        assert_eq!(r.verdict, Verdict::Unproven);
        assert_eq!(terminal::verdict(&r), "written: the model (not proved: no finite sample was left)");
        p.check(Some(20.0), None, Some(0.01));
        r.proof = Some(p);
        r.judge();
        assert_eq!(r.verdict, Verdict::GateFailed);
        let text = terminal::verdict(&r);
        assert!(text.contains("min_sqnr cannot be checked: no finite sample was left"), "{text}");
        assert!(!text.contains("labels"), "{text}");
    }

    #[test]
    fn dynamic_nodes_count_among_those_in_integers() {
        let plan = Plan::from_yaml(
            "target: t\nactivations: {}\nnodes:\n  a: {op: Conv, becomes: integer, kernel: QLinearConv}\n  \
             b: {op: LSTM, becomes: dynamic, kernel: DynamicQuantizeLSTM}\n  c: {op: Exp, becomes: float, reason: r}\n",
        )
        .unwrap();
        assert_eq!(Plan::from_yaml(&plan.to_yaml().unwrap()).unwrap(), plan);
        let nodes = Nodes::of(&plan, &BTreeMap::new());
        assert_eq!((nodes.integer, nodes.dynamic, nodes.float, plan.integer_nodes()), (2, 1, 1, 2));
        assert_eq!(nodes.kernels["DynamicQuantizeLSTM"], 1);
        let text = terminal::render(&Report { nodes, ..Report::default() }, false);
        assert!(text.contains("2 of 3 compute in integers (1 on data quantized at run time); 1 stay float"), "{text}");
    }

    #[test]
    fn what_is_quantized_already_is_not_float() {
        let plan = Plan::from_yaml(
            "target: t\nactivations: {}\nnodes:\n  q: {op: QuantizeLinear, becomes: float, reason: r}\n  \
             a: {op: Conv, becomes: float, reason: r}\n  b: {op: Exp, becomes: float, reason: r}\n",
        )
        .unwrap();
        let already = [("q".to_owned(), Already::Converts), ("a".to_owned(), Already::Integer)].into();
        let said = |plan: &Plan| {
            let nodes = Nodes::of(plan, &already);
            terminal::render(&Report { nodes, ..Report::default() }, false)
        };
        let text = said(&plan);
        assert!(text.contains("1 of 2 compute in integers, as the file had them; 1 stay float"), "{text}");
        let mut more = plan.clone();
        more.nodes.insert("c".into(), serde_yaml::from_str("{op: Conv, becomes: integer}").unwrap());
        let text = said(&more);
        assert!(text.contains("2 of 3 compute in integers, 1 of them as the file had it; 1 stay float"), "{text}");
    }

    #[test]
    fn this_process_takes_memory() {
        if cfg!(target_os = "linux") {
            assert!(peak_memory() > 100_000);
        }
    }
}
