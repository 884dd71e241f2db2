//! How a point is made: what is written as its configuration. A point is what `quantize` makes of that, nothing else.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    config::{Config, FloatWeights, Mode, Precision, Rule},
    diagnostics::count,
};

/// Where ranges of data come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ranges {
    /// From calibration.
    Static,
    /// Those of matrix products from run time, the others from calibration.
    Mixed,
    /// From run time.
    Dynamic,
}

/// What all nodes have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Form {
    pub(super) ranges: Ranges,
    pub(super) algorithm: String,
    pub(super) observer: String,
    pub(super) per_channel: bool,
    pub(super) equalize: bool,
    pub(super) smooth: bool,
    pub(super) everywhere: bool,
}

impl Form {
    /// As the configuration has it.
    pub(super) fn of(config: &Config) -> Self {
        Self {
            ranges: if config.mode == Mode::Dynamic { Ranges::Dynamic } else { Ranges::Static },
            algorithm: config.weight.algorithm.clone(),
            observer: config.activation.observer.clone(),
            per_channel: config.weight.per_channel,
            equalize: config.equalize,
            smooth: config.smooth,
            everywhere: false,
        }
    }

    /// Whether channels are evened out, which changes the model before anything else.
    pub(super) fn evened(&self) -> bool {
        self.equalize || self.smooth
    }

    /// The same as far as ranges of values are concerned.
    pub(super) fn observes_as(&self, other: &Self) -> bool {
        let same = self.observer == other.observer && !self.evened() && !other.evened();
        same && self.ranges != Ranges::Dynamic && other.ranges != Ranges::Dynamic
    }
}

/// Stands for all nodes among those that are kept in float.
pub(super) const EVERYTHING: &str = "*";

/// How a point is made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recipe {
    pub(super) form: Form,
    /// What becomes of the weights of float nodes.
    pub(super) stored: FloatWeights,
    /// Nodes that are kept in float, by their labels.
    pub(super) float: BTreeSet<String>,
    /// Nodes whose weights are stored in another form.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) stored_of: BTreeMap<String, FloatWeights>,
}

impl Recipe {
    /// The fastest of a form.
    pub(super) fn whole(form: &Form, stored: FloatWeights) -> Self {
        Self { form: form.clone(), stored, float: BTreeSet::new(), stored_of: BTreeMap::new() }
    }

    /// Nothing in integers.
    pub(super) fn all_float(form: &Form, stored: FloatWeights) -> Self {
        Self { float: BTreeSet::from([EVERYTHING.to_owned()]), ..Self::whole(form, stored) }
    }

    /// The configuration, on top of what the user has said: rules of the user's win. `products` are the operators of the
    /// model whose data may be quantized at run time.
    pub(super) fn config(&self, user: &Config, products: &[String]) -> Config {
        let mut config = user.clone();
        config.mode = if self.form.ranges == Ranges::Dynamic { Mode::Dynamic } else { Mode::Static };
        config.max_loss = None;
        config.weight.algorithm.clone_from(&self.form.algorithm);
        config.weight.per_channel = self.form.per_channel;
        config.activation.observer.clone_from(&self.form.observer);
        (config.equalize, config.smooth) = (self.form.equalize, self.form.smooth);
        config.everywhere = self.form.everywhere;
        config.float_weights = self.stored;
        let mut rules = Vec::new();
        if self.form.ranges == Ranges::Mixed {
            let precision = Some(Precision::Int8Dynamic);
            rules.push(Rule { ops: products.to_vec(), precision, ..Rule::default() });
        }
        if !self.float.is_empty() {
            let nodes = self.float.iter().map(|label| exact(label)).collect();
            // Without it, what a rule keeps in float keeps its weights, too.
            rules.push(Rule { float_weights: Some(self.stored), ..Rule::keep_all_float(nodes) });
        }
        for form in [FloatWeights::Int8, FloatWeights::Float16, FloatWeights::Keep] {
            let nodes: Vec<String> =
                self.stored_of.iter().filter(|(_, f)| **f == form).map(|(label, _)| exact(label)).collect();
            if !nodes.is_empty() {
                rules.push(Rule { nodes, float_weights: Some(form), ..Rule::default() });
            }
        }
        rules.append(&mut config.rules);
        config.rules = rules;
        config
    }

    /// For people, beside the others of one table.
    pub(super) fn words(&self) -> String {
        let Form { ranges, algorithm, observer, per_channel, equalize, smooth, everywhere } = &self.form;
        let stored = match self.stored {
            FloatWeights::Keep => "float weights as they are",
            FloatWeights::Float16 => "float weights in 16 bits",
            FloatWeights::Int8 if self.stored_of.is_empty() => "float weights in 8 bits",
            FloatWeights::Int8 => "float weights in 8 and 16 bits",
        };
        if self.float.contains(EVERYTHING) {
            return format!("all float, {stored}, {algorithm}");
        }
        let mut parts = vec![match ranges {
            Ranges::Static => "static".to_owned(),
            Ranges::Mixed => "products dynamic".to_owned(),
            Ranges::Dynamic => "dynamic".to_owned(),
        }];
        parts.push(algorithm.clone());
        if *ranges != Ranges::Dynamic && observer != crate::calibrate::observers::DEFAULT {
            parts.push(format!("ranges by {observer}"));
        }
        for (set, name) in
            [(!per_channel, "per tensor"), (*equalize, "equalize"), (*smooth, "smooth"), (*everywhere, "everywhere")]
        {
            if set {
                parts.push(name.to_owned());
            }
        }
        if !self.float.is_empty() {
            parts.push(format!("{} kept in float", count(self.float.len(), "node")));
        }
        parts.push(stored.to_owned());
        parts.join(", ")
    }
}

/// A pattern of a rule that fits this name alone.
pub(in crate::pipeline) fn exact(label: &str) -> String {
    let special =
        label.contains(['*', '?', '[', '{']) || label.len() > 1 && label.starts_with('/') && label.ends_with('/');
    match label {
        EVERYTHING => label.to_owned(),
        _ if special => format!("/^{}$/", regex::escape(label)),
        _ => label.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_reads_as_it_was_written() {
        let user = Config { rules: vec![Rule::keep_float("mine")], mode: Mode::Auto, ..Config::default() };
        let form = Form { ranges: Ranges::Mixed, algorithm: "adaround".into(), ..Form::of(&user) };
        let mut recipe = Recipe::whole(&form, FloatWeights::Int8);
        recipe.float.extend(["a[0]".to_owned(), "/b/".to_owned(), "c".to_owned()]);
        recipe.stored_of.insert("c".into(), FloatWeights::Float16);
        let config = recipe.config(&user, &["MatMul".to_owned()]);
        assert_eq!((config.mode, config.rules.len()), (Mode::Static, 4));
        assert_eq!(config.rules[1].nodes, ["/^/b/$/", "/^a\\[0\\]$/", "c"]);
        // Later rules win, and the user's are the last.
        assert_eq!(config.rules[3], Rule::keep_float("mine"));
        let again = Config::from_yaml(&config.to_yaml().unwrap()).unwrap();
        assert_eq!(again, config);
        config.check().unwrap();
        assert!(recipe.words().starts_with("products dynamic, adaround, 3 nodes kept in float"), "{}", recipe.words());
    }
}
