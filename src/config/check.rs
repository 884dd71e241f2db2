//! What a configuration must keep to, whatever the model.

use std::time::Duration;

use super::{Activation, Config, Mode, Precision, Rule, RuleWeightOnly, duration, suggest};
use crate::{
    calibrate::observers,
    diagnostics::Diagnostic,
    error::{Error, Result},
    ir::DType,
    weights,
};

const ACTIVATIONS: &[DType] = &[DType::Uint8, DType::Int8, DType::Uint16, DType::Int16];
const WEIGHTS: &[DType] = &[DType::Int8, DType::Uint8];

impl Config {
    /// Refuses values that make no sense.
    pub fn check(&self) -> Result<()> {
        one_of("activation.dtype", self.activation.dtype, ACTIVATIONS)?;
        one_of("weight.dtype", self.weight.dtype, WEIGHTS)?;
        observer("activation.observer", &self.activation.observer)?;
        algorithm("weight.algorithm", &self.weight.algorithm)?;
        self.weight_only.check()?;
        if self.weight_only.is_spread() && self.mode != Mode::WeightOnly {
            let name = if self.weight_only.target_bits.is_some() { "target_bits" } else { "target_size" };
            let text = format!("weight_only.{name} is set, but the mode is not weight-only");
            return Err(Error::config(text).help("set mode: weight-only (--mode weight-only), or leave it out"));
        }
        self.check_float8()?;
        if let Some((i, rule)) =
            self.rules.iter().enumerate().find(|(_, r)| r.is_integer() && self.mode == Mode::WeightOnly)
        {
            let text = format!("{} wants integers, but in mode weight-only all data stay float", rule.called(i));
            return Err(Error::config(text)
                .help("leave the mode out, and make a rule with precision: weight-only for the others"));
        }
        self.check_halves()?;
        let c = &self.calibration;
        c.options().check().map_err(|e| Error::config(format!("calibration: {}", e.message())))?;
        if c.samples == Some(0) {
            return Err(
                Error::config("calibration.samples is 0").help("leave it out, or write null to use all samples")
            );
        }
        if c.image.size.is_some_and(|[w, h]| w == 0 || h == 0) {
            return Err(Error::config("calibration.image.size has a 0; it is [width, height] in pixels"));
        }
        for (name, list) in [("mean", &c.image.mean), ("std", &c.image.std)] {
            if !matches!(list.len(), 1 | 3) || list.iter().any(|x| !x.is_finite()) {
                return Err(Error::config(format!(
                    "calibration.image.{name} has {} numbers, must be 1 or 3",
                    list.len()
                )));
            }
        }
        if c.image.std.contains(&0.0) {
            return Err(Error::config("calibration.image.std is 0, but pixels are divided by it"));
        }
        let p = &self.proof;
        if let Some(loss) = self.max_loss.filter(|loss| !(*loss > 0.0 && *loss <= 1.0)) {
            return Err(Error::config(format!("max_loss is {loss}, must be above 0 and at most 1"))
                .help("write a share: 0.01 for a percent"));
        }
        if let Some(text) = &self.time_budget {
            duration::parse(text).map_err(|said| Error::config(format!("time_budget is {text}: {said}")))?;
        }
        share("proof.min_agreement", p.min_agreement)?;
        share("proof.max_drop", p.max_drop)?;
        if p.floor.is_nan() || p.min_sqnr.is_some_and(f64::is_nan) {
            return Err(Error::config("proof.floor and proof.min_sqnr must be numbers"));
        }
        if p.samples == 0 && (p.min_sqnr.is_some() || p.min_agreement.is_some() || p.max_drop.is_some()) {
            return Err(Error::config("a gate is set, but without proof (proof.samples is 0) it cannot be checked"));
        }
        self.rules.iter().enumerate().try_for_each(|(i, rule)| {
            rule.check().map_err(|e| {
                let text = format!("{}: {}", rule.called(i), e.message());
                let wrapped = Error::config(text);
                e.help_text().map(str::to_owned).into_iter().fold(wrapped, Error::help)
            })
        })
    }
}

impl Config {
    /// Refuses rules that say nothing beside 16-bit floats for the whole model, and two types of them in one model.
    fn check_halves(&self) -> Result<()> {
        let rules = || self.rules.iter().enumerate();
        let mut first = self.precision.half().map(|dtype| (dtype, format!("precision: {}", self.precision.name())));
        let other = |r: &Rule| r.is_integer() || r.precision == Some(Precision::WeightOnly);
        if let Some((i, rule)) = rules().find(|(_, r)| self.precision.half().is_some() && other(r)) {
            let name = self.precision.name();
            let wants = if rule.is_integer() { "integers" } else { "weights in few bits" };
            let text = format!("{} wants {wants}, but with precision: {name} the model has none", rule.called(i));
            return Err(Error::config(text).help(format!(
                "write it the other way round: leave precision out, and let the first rule be {{nodes: '*', precision: {name}}}: \
                 later rules win"
            )));
        }
        for (i, rule) in rules() {
            let Some(dtype) = rule.precision.and_then(Precision::half) else { continue };
            match &first {
                Some((other, who)) if *other != dtype => {
                    let text =
                        format!("{} asks for {dtype}, and {who} for {other}: a model has one of them", rule.called(i));
                    return Err(Error::config(text).help("choose one type of 16-bit floats"));
                }
                Some(_) => {}
                None => first = Some((dtype, rule.called(i))),
            }
        }
        Ok(())
    }

    /// Whether anything may need ranges from calibration.
    pub fn needs_data(&self) -> bool {
        !matches!(self.mode, Mode::Dynamic | Mode::WeightOnly | Mode::Qat) || self.rules_need_data()
    }

    /// Whether a rule needs ranges from calibration.
    pub fn rules_need_data(&self) -> bool {
        self.rules.iter().any(|r| r.precision == Some(Precision::Int8))
    }

    /// The share of right answers that may be lost, or what stands for it.
    pub fn allowed_loss(&self) -> f64 {
        self.max_loss.unwrap_or_else(|| self.precision.usual_loss())
    }

    /// The signal to noise ratio that mode auto keeps at each output where there are no labels, dB: 30 for a loss of a percent,
    /// 20 more for a tenth of it. What depends on thresholds is lost in proportion to the amplitude of the noise, and on real
    /// models some third of that amplitude: at 30 dB, 3 % of the output's, a percent. With 16-bit floats, where every tenth of a
    /// percent counts, it is the worst of these models that decides, a detector whose scores are near its threshold: there it is
    /// all of that amplitude, which makes 10 dB more.
    pub fn least_sqnr(&self) -> f64 {
        let strict = if self.precision.half().is_some() { 10.0 } else { 0.0 };
        let least = 30.0 + strict - 20.0 * (self.allowed_loss() / 0.01).log10();
        self.proof.min_sqnr.map_or(least, |gate| gate.max(least))
    }

    /// The setting that [`Config::least_sqnr`] follows from.
    pub fn noise_limit(&self) -> &'static str {
        let by_gate = self.proof.min_sqnr.is_some_and(|gate| gate >= self.least_sqnr());
        if by_gate { "min_sqnr" } else { "max_loss" }
    }

    /// The setting that says how many right answers may be lost.
    pub fn loss_limit(&self) -> &'static str {
        if self.proof.max_drop.is_some_and(|drop| drop < self.allowed_loss()) { "max_drop" } else { "max_loss" }
    }

    /// How long mode auto may search.
    pub fn time_limit(&self) -> Option<Duration> {
        self.time_budget.as_deref().and_then(|text| duration::parse(text).ok())
    }

    /// Whether anything is observed by this method: everything, or what a rule selects.
    pub fn uses_observer(&self, name: &str) -> bool {
        let of_rule = |r: &Rule| r.activation.as_ref().and_then(|a| a.observer.as_deref()) == Some(name);
        self.activation.observer == name || self.rules.iter().any(of_rule)
    }

    /// What is set and has no effect, whatever the model.
    pub fn idle(&self) -> Vec<Diagnostic> {
        let (c, default) = (&self.calibration, observers::Options::default());
        let changed = |key: &str| match key {
            "percentile" => c.percentile != default.percentile,
            _ => c.averaging != default.averaging,
        };
        let at_run_time = (!self.needs_data() && self.activation != Activation::default()).then(|| {
            let why = match self.mode {
                Mode::WeightOnly => "with mode: weight-only, data stay float",
                _ => "with mode: dynamic, data are quantized at run time, to uint8",
            };
            Diagnostic::warning("settings_without_effect", format!("no effect of activation: {why}"))
        });
        let idle = observers::READERS.iter().filter(|(key, method)| changed(key) && !self.uses_observer(method));
        let idle = idle.map(|(key, method)| {
            let text = format!("no effect of calibration.{key}: no value is observed by {method}");
            Diagnostic::warning("settings_without_effect", text).help(format!("set observer: {method}"))
        });
        at_run_time.into_iter().chain(idle).collect()
    }
}

impl Rule {
    fn is_integer(&self) -> bool {
        matches!(self.precision, Some(Precision::Int8 | Precision::Int8Dynamic))
    }

    fn check(&self) -> Result<()> {
        let by_node = !self.nodes.is_empty() || !self.ops.is_empty() || self.between.is_some();
        let of_weights = self.weight.is_some() || self.weight_only.is_some() || self.float_weights.is_some();
        let for_nodes = self.precision.is_some() || self.force.is_some() || of_weights;
        if !by_node && self.values.is_empty() {
            return Err(Error::config("it selects nothing").help("give it nodes, ops, between or values"));
        }
        if by_node && !self.values.is_empty() {
            return Err(Error::config("it selects both nodes and values").help("make two rules of it"));
        }
        if !by_node && for_nodes {
            return Err(Error::config(
                "precision, force, weight and float_weights belong to nodes, but it selects values",
            ));
        }
        if !for_nodes && self.activation.is_none() {
            return Err(Error::config("it changes nothing")
                .help("give it precision, force, activation, weight or float_weights"));
        }
        if let Some(a) = &self.activation {
            a.dtype.map_or(Ok(()), |d| one_of("activation.dtype", d, ACTIVATIONS))?;
            a.observer.as_deref().map_or(Ok(()), |name| observer("activation.observer", name))?;
            if let Some(percentile) = a.percentile {
                observers::Options { percentile, ..observers::Options::default() }.check()?;
            }
            if let Some([lo, hi]) = a.range.filter(|&r| !super::range_of(r).is_valid()) {
                return Err(Error::config(format!("range [{lo}, {hi}] is not finite and in order"))
                    .help("write the least number first, as [-1, 1]"));
            }
        }
        self.weight_only.as_ref().map_or(Ok(()), RuleWeightOnly::check)?;
        let Some(w) = &self.weight else { return Ok(()) };
        w.algorithm.as_deref().map_or(Ok(()), |name| algorithm("weight.algorithm", name))?;
        w.dtype.map_or(Ok(()), |d| one_of("weight.dtype", d, WEIGHTS))
    }
}

fn one_of(key: &str, dtype: DType, allowed: &[DType]) -> Result<()> {
    if allowed.contains(&dtype) {
        return Ok(());
    }
    let names: Vec<_> = allowed.iter().map(|d| d.name()).collect();
    Err(Error::config(format!("{key} is {dtype}, must be one of {}", names.join(", "))))
}

fn observer(key: &str, name: &str) -> Result<()> {
    named(key, ["calibration method", "methods"], name, observers::METHODS.iter().map(|m| m.name))
}

fn algorithm(key: &str, name: &str) -> Result<()> {
    named(
        key,
        ["weight algorithm", "algorithms"],
        name,
        weights::ALGORITHMS.iter().filter(|a| a.round.is_some()).map(|a| a.name),
    )
}

fn named(key: &str, [one, all]: [&str; 2], name: &str, names: impl Iterator<Item = &'static str>) -> Result<()> {
    let names: Vec<_> = names.collect();
    if names.contains(&name) {
        return Ok(());
    }
    let close = suggest::closest(name, names.iter().copied());
    let hint = close.first().map(|c| format!("did you mean {c:?}? ")).unwrap_or_default();
    Err(Error::config(format!("{key}: no {one} is called {name:?}")).help(format!("{hint}{all}: {}", names.join(", "))))
}

fn share(key: &str, x: Option<f64>) -> Result<()> {
    match x {
        Some(x) if !(0.0..=1.0).contains(&x) => {
            let hint =
                if x > 1.0 && x <= 100.0 { format!("for {x} % write {}", x / 100.0) } else { "0.01 is 1 %".to_owned() };
            Err(Error::config(format!("{key} is {x}, must be from 0 to 1")).help(hint))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_has_no_effect() {
        for (text, idle) in [
            ("calibration: {percentile: 99.9}", 1),
            ("calibration: {percentile: 99.99}", 0),
            ("calibration: {percentile: 99.9, averaging: 0.5}", 2),
            ("{activation: {observer: percentile}, calibration: {percentile: 99.9}}", 0),
            ("{rules: [{values: a, activation: {observer: moving_average}}], calibration: {averaging: 0.5}}", 0),
        ] {
            assert_eq!(Config::from_yaml(text).unwrap().idle().len(), idle, "{text}");
        }
    }

    #[test]
    fn says_what_makes_no_sense() {
        let cases = [
            ("activation: {dtype: float}", "activation.dtype is float, must be one of uint8", ""),
            ("weight: {dtype: int16}", "weight.dtype is int16", ""),
            ("weight: {algorithm: adaroud}", "\"adaroud\"", "did you mean \"adaround\"?"),
            ("rules: [{nodes: a, weight: {algorithm: gptx}}]", "weight.algorithm: no weight algorithm", "rtn, mse"),
            ("activation: {observer: minmax}", "\"minmax\"", "did you mean \"min_max\"?"),
            ("calibration: {percentile: 0.99}", "percentile is 0.99", ""),
            ("calibration: {samples: 0}", "samples is 0", "null"),
            ("calibration: {image: {mean: [1, 2]}}", "mean has 2 numbers", ""),
            ("calibration: {image: {std: 0}}", "std is 0", ""),
            ("proof: {min_agreement: 98}", "must be from 0 to 1", "write 0.98"),
            ("proof: {samples: 0, min_sqnr: 20}", "without proof", ""),
            ("rules: [{precision: float}]", "rule 1: it selects nothing", "nodes"),
            ("rules: [{nodes: a}]", "rule 1 (nodes: a): it changes nothing", "precision"),
            ("rules: [{nodes: a, values: b, force: true}]", "both nodes and values", "two rules"),
            ("rules: [{values: b, force: true}]", "belong to nodes", ""),
            ("rules: [{values: b, float_weights: keep}]", "belong to nodes", ""),
            ("rules: [{values: b, activation: {range: [2, 1]}}]", "range [2, 1]", "least number first"),
        ];
        for (text, message, help) in cases {
            let e = Config::from_yaml(text).unwrap().check().unwrap_err();
            assert!(e.to_string().contains(message), "{text}: {e}");
            assert!(e.help_text().unwrap_or_default().contains(help), "{text}: {:?}", e.help_text());
        }
    }
}
