//! What the runtime notes of each node when it profiles: one list of events, in JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::stats;
use crate::error::{Error, Result};

/// What a model's kernels take, per run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Profile {
    /// Microseconds of a run while it was profiled, which takes a little longer.
    pub microseconds: f64,
    /// By operator, the slowest first.
    pub kernels: Vec<Kernel>,
    /// Every node, the slowest first.
    pub nodes: Vec<NodeTime>,
}

/// All nodes of one operator.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kernel {
    /// The operator, as the runtime calls it.
    pub op: String,
    /// What it computes in.
    pub kind: Kind,
    /// How many nodes.
    pub nodes: usize,
    /// Their microseconds in a run.
    pub microseconds: f64,
}

/// One node of the graph that the runtime made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeTime {
    /// The name that the runtime gives it.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// What it computes in.
    pub kind: Kind,
    /// Its microseconds in a run.
    pub microseconds: f64,
}

/// What a kernel computes in, by the types of its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It reads 8-bit numbers.
    Integer,
    /// It makes 8-bit numbers of floats, or floats of them.
    Conversion,
    /// All else.
    Float,
}

impl Kind {
    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Conversion => "conversion",
            Self::Float => "float",
        }
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Args,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    op_name: String,
    #[serde(default)]
    input_type_shape: Vec<BTreeMap<String, serde_json::Value>>,
}

impl Args {
    fn kind(&self) -> Kind {
        if matches!(self.op_name.as_str(), "QuantizeLinear" | "DequantizeLinear" | "DynamicQuantizeLinear") {
            return Kind::Conversion;
        }
        let bytes = |t: &String| matches!(t.as_str(), "int8" | "uint8");
        if self.input_type_shape.iter().any(|i| i.keys().any(bytes)) { Kind::Integer } else { Kind::Float }
    }
}

/// What ends the name of a node's event that is the kernel itself.
const KERNEL: &str = "_kernel_time";

/// Sums events by node and run; the figure of a node is its median over the runs, without the first, which allocates.
pub(super) fn parse(json: &str) -> Result<Profile> {
    let events: Vec<Event> = serde_json::from_str(json)
        .map_err(|e| Error::runtime("the profile that ONNX Runtime wrote cannot be read").source(e))?;
    let mut runs: Vec<(f64, f64)> = Vec::new();
    for e in events.iter().filter(|e| e.cat == "Session" && e.name == "model_run") {
        runs.push((e.ts, e.dur));
    }
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    if runs.len() < 2 {
        return Err(Error::runtime("the profile that ONNX Runtime wrote has no runs"));
    }
    let mut nodes: BTreeMap<(&str, &str), (Kind, Vec<f64>)> = BTreeMap::new();
    for e in events.iter().filter(|e| e.cat == "Node") {
        let Some(name) = e.name.strip_suffix(KERNEL) else { continue };
        let Some(run) = runs.iter().rposition(|(ts, _)| *ts <= e.ts) else { continue };
        let fresh = || (e.args.kind(), vec![0.0; runs.len()]);
        nodes.entry((name, &e.args.op_name)).or_insert_with(fresh).1[run] += e.dur;
    }
    let mut profile = Profile {
        microseconds: stats::quartiles(&runs[1..].iter().map(|r| r.1).collect::<Vec<_>>()).median,
        ..Profile::default()
    };
    let mut kernels: BTreeMap<(&str, Kind), (usize, f64)> = BTreeMap::new();
    for ((name, op), (kind, times)) in &nodes {
        let microseconds = stats::quartiles(&times[1..]).median;
        let sum = kernels.entry((op, *kind)).or_default();
        *sum = (sum.0 + 1, sum.1 + microseconds);
        profile.nodes.push(NodeTime { name: (*name).to_owned(), op: (*op).to_owned(), kind: *kind, microseconds });
    }
    profile.nodes.sort_by(|a, b| b.microseconds.total_cmp(&a.microseconds)); // stable: then by name
    let kernel = |((op, kind), (nodes, microseconds)): ((&str, Kind), _)| Kernel {
        op: op.to_owned(),
        kind,
        nodes,
        microseconds,
    };
    profile.kernels = kernels.into_iter().map(kernel).collect();
    profile.kernels.sort_by(|a, b| b.microseconds.total_cmp(&a.microseconds));
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_medians_by_node_and_sums_by_operator() {
        let mut events = vec![r#"{"cat":"Session","name":"session_initialization","ts":0,"dur":9}"#.to_owned()];
        for run in 0..4 {
            let start = 100 * (run + 1);
            let node = |name: &str, op: &str, ty: &str, at: i32, dur: i32| {
                format!(
                    r#"{{"cat":"Node","name":"{name}_kernel_time","ts":{},"dur":{dur},
                        "args":{{"op_name":"{op}","input_type_shape":[{{"{ty}":[1,3]}},{{"float":[]}}]}}}}"#,
                    start + at
                )
            };
            events.push(node("c", "QLinearConv", "uint8", 1, if run == 0 { 90 } else { 20 + run }));
            events.push(node("d", "QLinearConv", "int8", 2, 5));
            events.push(node("q", "QuantizeLinear", "float", 3, 2));
            events.push(node("t", "Tanh", "float", 4, 7));
            events.push(r#"{"cat":"Node","name":"t_fence_before","ts":1,"dur":99,"args":{"op_name":"Tanh"}}"#.into());
            events.push(format!(r#"{{"cat":"Session","name":"model_run","ts":{start},"dur":{}}}"#, 40 + run));
        }
        let profile = parse(&format!("[{}]", events.join(","))).unwrap();
        assert_eq!(profile.microseconds, 42.0);
        let kernels: Vec<_> =
            profile.kernels.iter().map(|k| (k.op.as_str(), k.kind, k.nodes, k.microseconds)).collect();
        let want = [
            ("QLinearConv", Kind::Integer, 2, 27.0),
            ("Tanh", Kind::Float, 1, 7.0),
            ("QuantizeLinear", Kind::Conversion, 1, 2.0),
        ];
        assert_eq!(kernels, want);
        assert_eq!((profile.nodes[0].name.as_str(), profile.nodes[0].microseconds), ("c", 22.0));
        assert!(parse("[]").is_err());
        assert!(parse("{").is_err());
    }
}
