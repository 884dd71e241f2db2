//! Kinds of processors: what a target's kernels compute otherwise there, and what they cost there.

use serde::Deserialize;
use serde_yaml::{Mapping, Value};

use super::{Costs, Target};
use crate::{
    error::{Error, Result},
    ir::DType,
};

/// A kind of processor that the target runs on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Its name, as `--cpu` takes it.
    pub name: String,
    /// Kernels that are not exact there.
    #[serde(default)]
    pub saturates: Option<Saturates>,
    /// The times that differ from those of the first one.
    #[serde(default)]
    pub costs: Mapping,
}

/// Kernels that add the products of two neighbours with 16 bits, and saturate.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saturates {
    /// The type of the weights that they do this with; others are exact.
    pub weight: DType,
    /// Their names.
    pub kernels: Vec<String>,
    /// Whether they do so for convolutions of each channel by itself, too.
    #[serde(default)]
    pub depthwise: bool,
}

impl Target {
    /// The names of the processors that the target knows, its own first.
    pub fn cpus(&self) -> impl Iterator<Item = &str> + Clone {
        self.cpus.iter().map(|c| c.name.as_str())
    }

    /// The target on one of its processors.
    pub fn on_cpu(mut self, name: &str) -> Result<Self> {
        let Some(at) = self.cpus.iter().position(|c| c.name == name) else {
            return Err(Error::config(format!("target {:?} knows no cpu {name:?}", self.name)));
        };
        self.costs = self.cpus[at].costs_over(&self.costs).map_err(|e| {
            Error::config(format!("costs of cpu {name:?} in target {:?} are not right: {e}", self.name))
        })?;
        self.cpu = at;
        Ok(self)
    }

    /// The name of the processor, where it is not the target's own.
    pub fn other_cpu(&self) -> Option<&str> {
        self.cpus.get(self.cpu).filter(|_| self.cpu > 0).map(|c| c.name.as_str())
    }

    /// Whether sums in this kernel can saturate with weights of this type.
    pub fn saturates(&self, kernel: &str, weight: DType, depthwise: bool) -> bool {
        let how = self.cpus.get(self.cpu).and_then(|c| c.saturates.as_ref());
        how.is_some_and(|s| s.weight == weight && s.kernels.iter().any(|k| k == kernel) && (s.depthwise || !depthwise))
    }
}

impl Cpu {
    fn costs_over(&self, costs: &Costs) -> Result<Costs, serde_yaml::Error> {
        let mut all = serde_yaml::to_value(costs)?;
        overlay(&mut all, &Value::Mapping(self.costs.clone()));
        serde_yaml::from_value(all)
    }
}

/// Puts the entries of a mapping over those of another.
fn overlay(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Mapping(below), Value::Mapping(above)) => {
            for (key, value) in above {
                match below.get_mut(key) {
                    Some(slot) => overlay(slot, value),
                    None => drop(below.insert(key.clone(), value.clone())),
                }
            }
        }
        (below, above) => *below = above.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cpu_of_each_target() {
        for name in Target::names() {
            let target = Target::load(name).unwrap();
            for cpu in target.cpus() {
                target.clone().on_cpu(cpu).unwrap();
            }
        }
    }

    #[test]
    fn what_is_said_of_a_cpu_holds_there_alone() {
        let target = Target::load("onnxruntime-cpu").unwrap();
        let own = target.clone().on_cpu("vnni").unwrap();
        let other = target.clone().on_cpu("avx2").unwrap();
        assert_eq!((target.other_cpu(), own.other_cpu(), other.other_cpu()), (None, None, Some("avx2")));
        assert!(!own.saturates("QLinearConv", DType::Int8, false));
        assert!(other.saturates("QLinearConv", DType::Int8, false));
        assert!(!other.saturates("QLinearConv", DType::Int8, true)); // depthwise
        assert!(!other.saturates("QLinearConv", DType::Uint8, false));
        assert!(!other.saturates("QLinearAdd", DType::Int8, false));
        assert!(other.costs.integer_mac > own.costs.integer_mac);
        assert!(other.costs.recurrent.integer_mac > own.costs.recurrent.integer_mac);
        assert_eq!(other.costs.uncertainty, target.costs.uncertainty);
    }

    #[test]
    fn what_is_not_right_is_said() {
        let mut target = Target::load("onnxruntime-cpu").unwrap();
        let e = target.clone().on_cpu("avx").unwrap_err();
        assert!(e.to_string().contains("\"avx\"") && e.to_string().contains("onnxruntime-cpu"), "{e}");
        target.cpus[1].costs = serde_yaml::from_str("{recurrent: {integer_mack: 1}}").unwrap();
        let e = target.on_cpu("avx2").unwrap_err().to_string();
        assert!(e.contains("avx2") && e.contains("integer_mack"), "{e}");
    }
}
