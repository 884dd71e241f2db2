//! What settings mean beside floats of 8 bits.

use super::{Config, Mode, Precision, Rule};
use crate::error::{Error, Result};

impl Config {
    /// Refuses what asks for something else than floats of 8 bits where these are asked for.
    pub(super) fn check_float8(&self) -> Result<()> {
        if self.precision.float8().is_none() {
            return Ok(());
        }
        let precision = self.precision.name();
        if matches!(self.mode, Mode::Dynamic | Mode::WeightOnly) {
            let mode = if self.mode == Mode::Dynamic { "dynamic" } else { "weight-only" };
            let text = format!("mode is {mode}, but precision {precision} has ranges from calibration data");
            return Err(Error::config(text).help("leave the mode out, or the precision"));
        }
        no_entropy("activation.observer", Some(&self.activation.observer))?;
        no_adaround("weight.algorithm", Some(&self.weight.algorithm))?;
        for (i, rule) in self.rules.iter().enumerate() {
            let wrapped = |e: Error| {
                let error = Error::config(format!("{}: {}", rule.called(i), e.message()));
                e.help_text().map(str::to_owned).into_iter().fold(error, Error::help)
            };
            rule.check_float8(precision).map_err(wrapped)?;
        }
        Ok(())
    }

    /// Settings that have no effect beside floats of 8 bits.
    pub(crate) fn idle_beside_float8(&self) -> Vec<&'static str> {
        let default = Self::default();
        let (a, w) = (&self.activation, &self.weight);
        let (b, v) = (&default.activation, &default.weight);
        let keys = [
            ("max_loss", self.max_loss != default.max_loss),
            ("time_budget", self.time_budget != default.time_budget),
            ("activation.dtype", a.dtype != b.dtype),
            ("activation.symmetric", a.symmetric != b.symmetric),
            ("activation.reduce_range", a.reduce_range != b.reduce_range),
            ("weight.dtype", w.dtype != v.dtype),
            ("weight.symmetric", w.symmetric != v.symmetric),
            ("weight.reduce_range", w.reduce_range != v.reduce_range),
            ("weight_only", self.weight_only != default.weight_only),
            ("cpu", self.cpu != default.cpu),
            ("format", self.format != default.format),
            ("never_slower", self.never_slower),
            ("equalize", self.equalize),
            ("smooth", self.smooth),
            ("absorb_biases", self.absorb_biases),
            ("split_concats", self.split_concats),
            ("fit_ranges", self.fit_ranges),
        ];
        keys.iter().filter(|(_, set)| *set).map(|(key, _)| *key).collect()
    }
}

impl Rule {
    fn check_float8(&self, precision: &str) -> Result<()> {
        let asked = match self.precision {
            Some(Precision::Int8) => Some("int8"),
            Some(Precision::Int8Dynamic) => Some("int8-dynamic"),
            Some(Precision::WeightOnly) => Some("weight-only"),
            Some(Precision::Fp16) => Some("fp16"),
            Some(Precision::Bf16) => Some("bf16"),
            Some(Precision::Float) | None => None,
        };
        if let Some(asked) = asked {
            let text = format!("it asks for precision {asked}, but that of the model is {precision}");
            return Err(Error::config(text).help("beside it, rules may say precision: float"));
        }
        let a = self.activation.as_ref();
        let w = self.weight.as_ref();
        let idle = [
            ("weight_only", self.weight_only.is_some()),
            ("activation.dtype", a.is_some_and(|a| a.dtype.is_some())),
            ("activation.symmetric", a.is_some_and(|a| a.symmetric.is_some())),
            ("activation.reduce_range", a.is_some_and(|a| a.reduce_range.is_some())),
            ("weight.dtype", w.is_some_and(|w| w.dtype.is_some())),
            ("weight.symmetric", w.is_some_and(|w| w.symmetric.is_some())),
            ("weight.reduce_range", w.is_some_and(|w| w.reduce_range.is_some())),
        ];
        if let Some((key, _)) = idle.iter().find(|(_, set)| *set) {
            return Err(Error::config(format!("{key} has no effect with precision {precision}"))
                .help(format!("leave {key} out: the precision says it for the whole model")));
        }
        no_entropy("activation.observer", a.and_then(|a| a.observer.as_ref()))?;
        no_adaround("weight.algorithm", w.and_then(|w| w.algorithm.as_ref()))
    }
}

fn no_entropy(key: &str, name: Option<&String>) -> Result<()> {
    match name.filter(|n| *n == "entropy") {
        Some(_) => Err(Error::config(format!("{key} is entropy, which counts codes that are evenly spread"))
            .help("floats of 8 bits are not: use auto, min_max, percentile, moving_average or mse")),
        None => Ok(()),
    }
}

fn no_adaround(key: &str, name: Option<&String>) -> Result<()> {
    match name.filter(|n| *n == "adaround") {
        Some(_) => Err(Error::config(format!("{key} is adaround, which moves integer codes up and down"))
            .help("for floats of 8 bits use rtn or mse")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asks_for_something_else_is_refused() {
        for (text, message) in [
            ("{precision: fp8, mode: dynamic}", "mode is dynamic, but precision fp8"),
            ("{precision: fp8-e5m2, mode: weight-only}", "mode is weight-only, but precision fp8-e5m2"),
            ("{precision: fp8, activation: {observer: entropy}}", "is entropy"),
            ("{precision: fp8, weight: {algorithm: adaround}}", "is adaround"),
            ("{precision: fp8, rules: [{nodes: a, precision: int8}]}", "rule 1 (nodes: a): it asks for precision int8"),
            ("{precision: fp8, rules: [{nodes: a, activation: {dtype: int8}}]}", "activation.dtype has no effect"),
            ("{precision: fp8, rules: [{nodes: a, weight: {symmetric: true}}]}", "weight.symmetric has no effect"),
        ] {
            let e = Config::from_yaml(text).unwrap().check().unwrap_err();
            assert!(e.to_string().contains(message) && e.help_text().is_some(), "{text}: {e}");
        }
        let fine =
            "{precision: fp8-fnuz, mode: static, activation: {observer: mse}, rules: [{nodes: a, precision: float}]}";
        let config = Config::from_yaml(fine).unwrap();
        config.check().unwrap();
        assert_eq!(config.idle_beside_float8(), [""; 0]);
        let idle = "{precision: fp8, activation: {dtype: int8}, everywhere: true, never_slower: true, smooth: true}";
        let idle = Config::from_yaml(idle).unwrap();
        assert_eq!(idle.idle_beside_float8(), ["activation.dtype", "never_slower", "smooth"]);
    }
}
