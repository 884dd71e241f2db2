//! Running models: one trait, one file per runtime.

use crate::{
    error::Result,
    ir::{Model, Tensor, ValueId},
};

/// Something that can run models.
pub trait Runtime: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Makes a model ready to run. Each run gives the model's own outputs, then the observed values, in order. Values
    /// inside subgraphs cannot be observed.
    fn load(&self, model: &Model, observe: &[ValueId]) -> Result<Box<dyn Session>>;
}

/// A loaded model; may be run from several threads at a time.
pub trait Session: Send + Sync {
    /// Runs on one tensor per required graph input ([`Model::required_inputs`], in that order).
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>>;
}
