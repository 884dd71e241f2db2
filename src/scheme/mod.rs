//! The configuration resolved: checked, its target loaded, its patterns compiled ([`Settings`]), and then laid over a
//! model ([`Resolved`]).

mod outline;
mod select;
mod target;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use self::{
    outline::{Entry, Outline},
    select::Selector,
    target::{check_target, on_cpu},
};
use crate::{
    analysis::placement::Wishes,
    calibrate::{
        Observer,
        observers::{self, Method},
    },
    config::{self, Config, FloatWeights, Format, Mode, Precision, Rule, WeightOnly},
    diagnostics::Diagnostic,
    error::{Error, Result},
    ir::{DType, Model, NodeId, ValueId},
    ops::{Class, OPS},
    plan::{self, AsUint8},
    quant::{QuantTarget, Range},
    target::Target,
};

/// A target on one of its processors, by name; errors name those that it knows.
pub fn target_on(name: &str, cpu: Option<&str>) -> Result<Target> {
    on_cpu(Target::load(name)?, cpu)
}

/// A configuration that is known to make sense, ready for any model.
#[derive(Debug, Clone)]
pub struct Settings {
    /// As written.
    pub config: Config,
    /// What runs the model.
    pub target: Target,
    rules: Vec<(Selector, Rule)>,
}

/// How a range is chosen.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// The method.
    pub method: &'static Method,
    /// Its numbers.
    pub options: observers::Options,
}

impl Choice {
    /// An observer that has seen nothing.
    pub fn observer(&self) -> Observer {
        Observer::new(self.method, self.options)
    }
}

/// What the settings come to for one model.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the user wants of the placement.
    pub wishes: Wishes,
    /// Types and forms.
    pub scheme: plan::Scheme,
    /// The method that chooses ranges where nothing else is said.
    pub observer: &'static Method,
    /// Its numbers.
    pub observer_options: observers::Options,
    /// How the ranges of single values are chosen.
    pub observers: BTreeMap<ValueId, Choice>,
    /// Values whose range is given.
    pub ranges: BTreeMap<ValueId, Range>,
    /// What becomes of the weights of float nodes.
    pub float_weights: FloatWeights,
    /// The same for single nodes.
    pub float_weights_of: BTreeMap<NodeId, FloatWeights>,
    /// How weights are stored in few bits, of all nodes that can have them where mode weight-only is.
    pub weight_only: Option<WeightOnly>,
    /// The same for single nodes.
    pub weight_only_of: BTreeMap<NodeId, WeightOnly>,
    /// Nodes that rules bring into 16-bit floats, with the rule in words.
    pub halves_of: BTreeMap<NodeId, (DType, String)>,
    /// Correct biases for what rounding the weights shifts.
    pub correct_bias: bool,
    /// What was noticed: rules that speak of nodes which the Prepare passes folded away.
    pub diagnostics: Vec<Diagnostic>,
}

impl Default for Resolved {
    fn default() -> Self {
        Self {
            wishes: Wishes::default(),
            scheme: plan::Scheme::default(),
            observer: observers::by_name(observers::DEFAULT).expect("the default is a method"),
            observer_options: observers::Options::default(),
            observers: BTreeMap::new(),
            ranges: BTreeMap::new(),
            float_weights: FloatWeights::Int8,
            float_weights_of: BTreeMap::new(),
            weight_only: None,
            weight_only_of: BTreeMap::new(),
            halves_of: BTreeMap::new(),
            correct_bias: true,
            diagnostics: Vec::new(),
        }
    }
}

impl Resolved {
    /// How the range of a value is chosen.
    pub fn choice(&self, value: ValueId) -> Choice {
        let default = Choice { method: self.observer, options: self.observer_options };
        self.observers.get(&value).copied().unwrap_or(default)
    }

    /// Whether the weights of any float nodes are stored in fewer bits.
    pub fn stores_float_weights(&self) -> bool {
        let mut asked = std::iter::once(&self.float_weights).chain(self.float_weights_of.values());
        asked.any(|w| *w != FloatWeights::Keep)
    }

    /// The type that the weights of a node are stored in where it stays float; `None` where they are left as they are. Those
    /// of nodes that rules keep in float are, unless a rule says otherwise.
    pub fn stored_as(&self, model: &Model, node: NodeId) -> Option<DType> {
        // Nodes that shall read codes, and have no kernel that does, are float for want of it.
        let coded = self.weight_only_of.contains_key(&node);
        let kept = || self.wishes.keeps_float(model, node).filter(|_| !coded).map(|_| FloatWeights::Keep);
        self.float_weights_of.get(&node).copied().or_else(kept).unwrap_or(self.float_weights).dtype()
    }

    /// How the weight of a node is stored in few bits, if that is asked for.
    pub fn weight_only(&self, model: &Model, node: NodeId) -> Option<&WeightOnly> {
        let all = || self.weight_only.as_ref().filter(|_| self.wishes.keeps_float(model, node).is_none());
        self.weight_only_of.get(&node).or_else(all)
    }

    /// What a value is quantized to.
    pub fn target(&self, value: ValueId) -> QuantTarget {
        self.scheme.activations.get(&value).copied().unwrap_or(self.scheme.activation)
    }
}

impl Settings {
    /// Checks the configuration, loads its target and compiles its rules.
    pub fn new(mut config: Config) -> Result<Self> {
        config.check()?;
        if config.mode == Mode::WeightOnly && config.everywhere {
            (config.weight_only.others, config.everywhere) = (config::Others::Bits, false);
        }
        let target = on_cpu(Target::load(&config.target)?, config.cpu.as_deref())?;
        check_target(&config, &target)?;
        let compile =
            |(i, rule): (usize, &Rule)| Ok((Selector::new(rule).map_err(|e| in_rule(&e, i, rule))?, rule.clone()));
        let rules = config.rules.iter().enumerate().map(compile).collect::<Result<_>>()?;
        Ok(Self { config, target, rules })
    }

    /// The same in another mode.
    pub fn with_mode(&self, mode: Mode) -> Self {
        let config = Config { mode, ..self.config.clone() };
        Self { config, target: self.target.clone(), rules: self.rules.clone() }
    }

    /// The same with channels evened out wherever that gains.
    pub fn evening_out(&self) -> Self {
        let equalize = self.config.equalize || !self.config.weight.per_channel;
        let config = Config { equalize, smooth: true, ..self.config.clone() };
        Self { config, target: self.target.clone(), rules: self.rules.clone() }
    }

    /// The same with Concats of uneven parts in float wherever that gains.
    pub fn splitting_concats(&self) -> Self {
        let config = Config { split_concats: true, ..self.config.clone() };
        Self { config, target: self.target.clone(), rules: self.rules.clone() }
    }

    /// The same without what the answers ask for beside the fastest plan.
    pub fn fastest(&self) -> Self {
        match self.config.mode {
            _ if self.config.precision.half().is_some() => {
                let config = Config { max_loss: Some(1.0), ..self.config.clone() };
                Self { config, target: self.target.clone(), rules: self.rules.clone() }
            }
            Mode::Auto => self.with_mode(Mode::Static),
            _ => self.clone(),
        }
    }

    /// Lays the settings over a model after its Prepare passes. Rules may name nodes and values as the original has them,
    /// or as the prepared model has them.
    pub fn resolve(&self, original: &Model, model: &Model) -> Result<Resolved> {
        let (original, now) = (&Outline::of(original), Outline::of(model));
        // Nothing is quantized to the activations' type where all of it is quantized at run time.
        let at_run_time = config::Activation::default();
        let a = if self.config.needs_data() { &self.config.activation } else { &at_run_time };
        let float8 = self.config.precision.float8();
        let float8 = float8.map(|dtype| QuantTarget { dtype, symmetric: true, reduce_range: false });
        let mut out = Resolved {
            wishes: Wishes {
                symmetric: a.symmetric,
                ignore_cost: self.config.everywhere,
                wide: a.target().dtype.bits() > 8,
                dynamic: self.config.mode == Mode::Dynamic,
                ..Wishes::default()
            },
            scheme: plan::Scheme {
                activation: float8.unwrap_or(a.target()),
                weight: float8.unwrap_or(self.config.weight.target()),
                per_channel: self.config.weight.per_channel,
                algorithm: self.config.weight.algorithm.clone(),
                as_uint8: match self.config.format {
                    _ if self.target.activation != DType::Uint8 || float8.is_some() => AsUint8::None,
                    Format::Qdq => AsUint8::Shared,
                    Format::Qoperator => AsUint8::All,
                },
                ..plan::Scheme::default()
            },
            observer: observers::by_name(&a.observer)?,
            observer_options: self.config.calibration.options(),
            float_weights: match (self.config.mode, self.config.float_weights) {
                (Mode::WeightOnly, FloatWeights::Int8 | FloatWeights::Float16) => {
                    self.config.weight_only.others.float_weights()
                }
                (_, float_weights) => float_weights,
            },
            weight_only: (self.config.mode == Mode::WeightOnly).then(|| self.config.weight_only.clone()),
            correct_bias: self.config.bias_correction,
            ..Resolved::default()
        };
        let names = Names::of(model, &now);
        let mut applied = Vec::new();
        for (i, (selector, rule)) in self.rules.iter().enumerate() {
            selector.check(&[original, &now]).map_err(|e| in_rule(&e, i, rule))?;
            let (nodes, gone) = names.nodes(selector, original, &now);
            if let Some((label, op)) = gone.first() {
                let others = if gone.len() > 1 { format!(" and {} others", gone.len() - 1) } else { String::new() };
                let selectors = rule.selectors();
                let text =
                    format!("rule {} ({selectors}) has no effect: this {op}{others} was folded away before", i + 1);
                out.diagnostics.push(Diagnostic::warning("rule_on_folded_node", text).on(label));
            }
            self.apply_to_nodes(&mut out, i, rule, &nodes);
            if rule.activation.is_some() {
                let mut values = names.values(selector, original, &now);
                values.extend(nodes.iter().flat_map(|&n| self.quantized_outputs(model, n)));
                self.apply_to_values(&mut out, rule, &values)?;
                applied.push((i, rule, values));
            }
        }
        let mirrored = out.scheme.activations.iter().filter(|(_, t)| t.symmetric).map(|(&v, _)| v);
        out.wishes.symmetric_values = mirrored.collect();
        out.diagnostics.extend(self.config.idle());
        let idle = applied.iter().filter_map(|(i, rule, values)| idle_percentile(&out, *i, rule, values));
        let idle: Vec<_> = idle.collect();
        out.diagnostics.extend(idle);
        check_wide(&mut out, model.opset("").unwrap_or(1), &self.target.name)?;
        let integer = out.scheme.activation.dtype.bits() == 8 && float8.is_none();
        if integer && out.scheme.activation.dtype != self.target.activation {
            let (name, have, want) = (&self.target.name, out.scheme.activation.dtype, self.target.activation);
            let text = match out.scheme.as_uint8 {
                AsUint8::Shared => format!(
                    "{name} computes in {want} and takes {have} only where one node alone reads a value: the others are \
                     written as {want} with a zero point 128 higher, which are the same numbers"
                ),
                AsUint8::All => format!(
                    "{name} has no fast integer operators of {have}: all values are written as {want} with a zero point \
                     128 higher, which are the same numbers"
                ),
                AsUint8::None => {
                    format!("{name} leaves some of the planned kernels in float with activations of type {have}")
                }
            };
            let help = format!("{want} is the type that all of its integer kernels take");
            out.diagnostics.push(Diagnostic::warning("slower_activation_type", text).help(help));
        }
        Ok(out)
    }

    fn apply_to_nodes(&self, out: &mut Resolved, i: usize, rule: &Rule, nodes: &BTreeSet<NodeId>) {
        for &node in nodes {
            if rule.precision.is_some() {
                out.halves_of.remove(&node);
            }
            match rule.precision {
                Some(Precision::Float) => {
                    out.wishes.keep_float.insert(node, format!("rule {} ({}) keeps it float", i + 1, rule.selectors()));
                }
                Some(Precision::WeightOnly) => {
                    out.wishes
                        .keep_float
                        .insert(node, format!("rule {} ({}) keeps its data float", i + 1, rule.selectors()));
                }
                Some(Precision::Fp16 | Precision::Bf16) if self.config.precision.half().is_some() => {
                    out.wishes.keep_float.remove(&node);
                }
                Some(form @ (Precision::Fp16 | Precision::Bf16)) => {
                    let Some(dtype) = form.half() else { continue };
                    let who = format!("rule {} ({})", i + 1, rule.selectors());
                    out.wishes.keep_float.insert(node, format!("{who} brings it into {dtype}"));
                    out.halves_of.insert(node, (dtype, who));
                }
                Some(form) => {
                    out.wishes.keep_float.remove(&node);
                    out.wishes.dynamic_nodes.insert(node, form == Precision::Int8Dynamic);
                }
                None => {}
            }
            match rule.force {
                Some(true) => drop(out.wishes.force.insert(node)),
                Some(false) => drop(out.wishes.force.remove(&node)),
                None => {}
            }
            out.float_weights_of.extend(rule.float_weights.map(|w| (node, w)));
            self.store_in_few_bits(out, rule, node);
            if let Some(w) = &rule.weight {
                let default = (out.scheme.weight, out.scheme.per_channel);
                let (target, per_channel) = out.scheme.weights.entry(node).or_insert(default);
                target.dtype = w.dtype.unwrap_or(target.dtype);
                target.symmetric = w.symmetric.unwrap_or(target.symmetric);
                target.reduce_range = w.reduce_range.unwrap_or(target.reduce_range);
                *per_channel = w.per_channel.unwrap_or(*per_channel);
                out.scheme.algorithms.extend(w.algorithm.clone().map(|name| (node, name)));
            }
        }
    }

    fn store_in_few_bits(&self, out: &mut Resolved, rule: &Rule, node: NodeId) {
        match rule.precision {
            Some(Precision::WeightOnly) => {
                out.weight_only_of.entry(node).or_insert_with(|| self.config.weight_only.clone());
            }
            Some(_) => {
                out.weight_only_of.remove(&node);
            }
            None => {}
        }
        if let Some(w) = &rule.weight_only {
            let all = out.weight_only.clone().filter(|_| !out.wishes.keep_float.contains_key(&node));
            if let Some(now) = out.weight_only_of.get(&node).cloned().or(all) {
                out.weight_only_of.insert(node, now.with(w));
            }
        }
    }

    fn apply_to_values(&self, out: &mut Resolved, rule: &Rule, values: &BTreeSet<ValueId>) -> Result<()> {
        let Some(a) = &rule.activation else { return Ok(()) };
        for &v in values {
            if a.dtype.is_some() || a.symmetric.is_some() || a.reduce_range.is_some() {
                let target = out.scheme.activations.entry(v).or_insert(out.scheme.activation);
                target.dtype = a.dtype.unwrap_or(target.dtype);
                target.symmetric = a.symmetric.unwrap_or(target.symmetric);
                target.reduce_range = a.reduce_range.unwrap_or(target.reduce_range);
            }
            if a.observer.is_some() || a.percentile.is_some() {
                let mut choice = out.choice(v);
                if let Some(name) = &a.observer {
                    choice.method = observers::by_name(name)?;
                }
                choice.options.percentile = a.percentile.unwrap_or(choice.options.percentile);
                out.observers.insert(v, choice);
                out.ranges.remove(&v); // a later observer replaces an earlier fixed range
            }
            if let Some(range) = a.range {
                out.ranges.insert(v, config::range_of(range));
            }
        }
        Ok(())
    }

    /// A node's outputs, and those of the clamps behind it that may vanish into it: there the range stands then.
    fn quantized_outputs(&self, model: &Model, node: NodeId) -> Vec<ValueId> {
        let mut values: Vec<ValueId> = model.node(node).outputs().iter().copied().flatten().collect();
        let mut next = values.first().copied().filter(|_| values.len() == 1);
        while let Some(v) = next.take() {
            if let Some((reader, 0)) = model.sole_reader(v)
                && self.target.is_clamp(&model.node(reader).op_type)
            {
                next = model.node(reader).output(0).filter(|v| !values.contains(v));
                values.extend(next);
            }
        }
        values
    }
}

/// The first opset whose QuantizeLinear makes codes of 16 bits.
const WIDE_OPSET: i64 = 21;

/// Codes of 16 bits: refused where they cannot be written, and a warning where they can.
fn check_wide(out: &mut Resolved, opset: i64, target: &str) -> Result<()> {
    let mut dtypes = std::iter::once(&out.scheme.activation).chain(out.scheme.activations.values()).map(|t| t.dtype);
    let Some(dtype) = dtypes.find(|d| d.bits() > 8) else { return Ok(()) };
    if opset < WIDE_OPSET {
        let text = format!("activations of type {dtype} need opset {WIDE_OPSET}, the model has {opset}");
        return Err(Error::config(text).help("use uint8 or int8, or export the model with a newer opset"));
    }
    let text = format!(
        "{target} has no integer kernels for activations of type {dtype}: the model will be slower than in float"
    );
    out.diagnostics.push(Diagnostic::warning("no_wide_kernels", text).help("uint8 is the fastest"));
    Ok(())
}

/// Says so where a rule sets a percentile for values that another method observes in the end.
fn idle_percentile(out: &Resolved, i: usize, rule: &Rule, values: &BTreeSet<ValueId>) -> Option<Diagnostic> {
    rule.activation.as_ref()?.percentile?;
    let first = out.choice(*values.first()?).method.name;
    if values.iter().any(|&v| out.choice(v).method.name == "percentile") {
        return None;
    }
    let text = format!("no effect of percentile in rule {} ({}): the observer is {first}", i + 1, rule.selectors());
    Some(Diagnostic::warning("settings_without_effect", text).help("set observer: percentile in the rule"))
}

fn in_rule(e: &Error, i: usize, rule: &Rule) -> Error {
    let error = Error::config(format!("rule {} ({}): {}", i + 1, rule.selectors(), e.message()));
    let error = e.help_text().map(str::to_owned).into_iter().fold(error, Error::help);
    std::error::Error::source(e).map(ToString::to_string).into_iter().fold(error, Error::source)
}

/// Finds today's nodes and values by their names in the original.
struct Names<'a> {
    alive: BTreeSet<NodeId>,
    by_label: HashMap<&'a str, NodeId>,
    by_output: HashMap<&'a str, NodeId>,
    values: HashMap<String, ValueId>,
}

impl<'a> Names<'a> {
    fn of(model: &Model, now: &'a Outline) -> Self {
        let main = model.main();
        let values = model.value_ids().into_iter().filter(|&v| model.value(v).graph() == main);
        Self {
            alive: now.nodes.iter().map(|n| n.id).collect(),
            by_label: now.nodes.iter().map(|n| (n.label.as_str(), n.id)).collect(),
            by_output: now.nodes.iter().flat_map(|n| n.outputs.iter().map(|o| (o.as_str(), n.id))).collect(),
            values: values.map(|v| (model.value(v).name().to_owned(), v)).collect(),
        }
    }

    /// The selected nodes, and label and operator of those that are gone without a successor.
    fn nodes(
        &self,
        selector: &Selector,
        original: &Outline,
        now: &Outline,
    ) -> (BTreeSet<NodeId>, Vec<(String, String)>) {
        let mut found: BTreeSet<NodeId> = selector.nodes(now).into_iter().map(|i| now.nodes[i].id).collect();
        let mut gone = Vec::new();
        let was = selector.nodes(original);
        for &i in &was {
            let entry = &original.nodes[i];
            match self.heir(entry).or_else(|| self.heir_of_product(entry, original, now)) {
                Some(id) => drop(found.insert(id)),
                None => gone.push((entry.label.clone(), entry.op.clone())),
            }
        }
        // Constants and the like always go; a rule that still has nodes to speak of needs no warning for them.
        if !found.is_empty() {
            gone.clear();
        }
        (found, gone)
    }

    /// The node itself; or a fused node that kept its name, or that makes the value which it made.
    fn heir(&self, was: &Entry) -> Option<NodeId> {
        let named = || self.by_label.get(was.label.as_str()).copied();
        let makes = || was.outputs.iter().find_map(|o| self.by_output.get(o.as_str()).copied());
        self.alive.get(&was.id).copied().or_else(named).or_else(makes)
    }

    /// A product that took what stands behind it in, and its name: MatMul and Add that became one Gemm.
    fn heir_of_product(&self, was: &Entry, original: &Outline, now: &Outline) -> Option<NodeId> {
        let is_product = |op: &str| OPS.iter().copied().flatten().any(|s| s.name == op && s.class == Class::Product);
        if !is_product(&was.op) {
            return None;
        }
        let mut at = was;
        for _ in 0..original.nodes.len() {
            let [next] = original.readers(at.outputs.first()?)[..] else { return None };
            at = next;
            if let Some(id) = self.heir(at) {
                return now.nodes.iter().find(|n| n.id == id && is_product(&n.op)).map(|n| n.id);
            }
        }
        None
    }

    fn values(&self, selector: &Selector, original: &Outline, now: &Outline) -> BTreeSet<ValueId> {
        let names = selector.values(original).into_iter().chain(selector.values(now));
        names.filter_map(|n| self.values.get(n).copied()).collect()
    }
}

#[cfg(test)]
mod tests;
