//! Factors that even out the channels of a value: who takes them in, and whether a model lets them.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Plan;
use crate::{
    analysis::{
        factors::{Take, group_of, products_of},
        types::{Types, infer},
    },
    calibrate::means::{read_list, write_list},
    error::{Error, Result},
    ir::{Model, ValueId},
};

/// The factors that a value is divided by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelFactors {
    /// What divides it.
    pub taken_by: TakenBy,
    /// A factor for each channel, as numbers with spaces between.
    #[serde(serialize_with = "write_list", deserialize_with = "read_list")]
    pub factors: Vec<f32>,
}

/// What divides a value by its factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TakenBy {
    /// The constants around it and around the values that share its factors.
    Constants,
    /// A multiplication in front of the matrix products that read it, whose matrices take the factors in.
    Mul,
}

impl ChannelFactors {
    /// The constants of the model that take the factors in.
    pub fn takes(&self, model: &Model, types: &Types, name: &str, value: ValueId) -> Result<Vec<Take>> {
        let refused = |why: &str| {
            Error::config(format!("its channels cannot be divided by factors: {why}"))
                .value(name)
                .help("leave it out of channel_factors")
        };
        let takes = match self.taken_by {
            TakenBy::Constants => group_of(model, types, value).map_err(|why| refused(&why))?.takes,
            TakenBy::Mul => products_of(model, types, value),
        };
        let Some(first) = takes.first() else { return Err(refused("no constant takes them in")) };
        let dims = model.constant_input(first.node, first.input).map(|t| t.dims().to_vec()).unwrap_or_default();
        let channels = first.channels(&dims).unwrap_or(0);
        if channels != self.factors.len() {
            let text = format!("{} factors are given, it has {channels} channels", self.factors.len());
            return Err(Error::config(text).value(name));
        }
        match self.factors.iter().find(|f| !(f.is_normal() && **f > 0.0 && f.recip().is_normal())) {
            Some(f) => {
                let text = format!("the factor of a channel is {f}, must be above 0 and far from the ends of float");
                Err(Error::config(text).value(name))
            }
            None => Ok(takes),
        }
    }
}

impl Plan {
    /// Refuses factors that the model, as it is before it is divided, cannot take in.
    pub fn check_factors(&self, model: &Model) -> Result<()> {
        if self.channel_factors.is_empty() {
            return Ok(());
        }
        let (types, names) = (infer(model), values_by_name(model));
        for (name, factors) in &self.channel_factors {
            let Some(&value) = names.get(name.as_str()) else {
                let text = "channel_factors names it, but the model has no such value";
                return Err(Error::config(text).value(name).help("make the plan again, with this model"));
            };
            factors.takes(model, &types, name, value)?;
        }
        Ok(())
    }
}

fn values_by_name(model: &Model) -> HashMap<&str, ValueId> {
    let main = model.value_ids().into_iter().filter(|&v| model.value(v).graph() == model.main());
    main.map(|v| (model.value(v).name(), v)).collect()
}
