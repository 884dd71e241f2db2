//! Running models: one trait, one folder per runtime.

mod guard;
mod inputs;
pub mod onnxruntime;
pub mod tract;

use std::{borrow::Cow, collections::BTreeSet};

pub use self::guard::panics_become_errors;

use crate::{
    error::{Error, Result},
    ir::{DType, Model, Tensor, ValueId},
};

/// Something that can run models.
pub trait Runtime: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Whether it has the integer operators of files (QLinearConv and the like); if not, they are raised into Q/DQ form for it.
    fn has_integer_operators(&self) -> bool {
        false
    }

    /// Whether it runs models of 16-bit floats as they are; if not, they are brought into 32-bit ones with roundings for it.
    fn has_halves(&self) -> bool {
        false
    }

    /// Makes a model ready to run and to observe. Values inside subgraphs cannot be observed.
    fn load(&self, model: &Model, observe: &[ValueId]) -> Result<Box<dyn Session>>;
}

/// A loaded model; may be run from several threads at a time.
pub trait Session: Send + Sync {
    /// Runs on one tensor per required graph input ([`Model::required_inputs`], in that order). Returns the model's
    /// outputs.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.run_observed(inputs, &mut |_, _| Ok(()))
    }

    /// As [`Session::run`], and hands out each observed value, by its number in `observe`, as soon as it is computed
    /// (each once, in no promised order). It is gone after the call: memory does not grow with the number of values.
    fn run_observed(&self, inputs: &[Tensor], observer: &mut Observer<'_>) -> Result<Vec<Tensor>>;

    /// Runs the model with some [`ALTERNATIVE`]s in place, and once more for each set of others. What comes before the first of a
    /// set is computed once for all trials. Returns what the model answers with the base. A set all of whose values
    /// are constants has no trial.
    fn run_trials(&self, _inputs: &[Tensor], _trials: &Trials, _judge: &mut Judge<'_>) -> Result<Vec<Tensor>> {
        Err(Error::bug("this runtime cannot try alternatives"))
    }
}

/// Which alternatives are tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trials {
    /// The numbers of those that are in place before any trial.
    pub base: BTreeSet<usize>,
    /// For each trial, the numbers of those that are switched: put in place, or taken out of it.
    pub sets: Vec<Vec<usize>>,
}

/// The operator of a value that has an alternative: `y = Alternative(x, other)` is `x`, but `other` where the number that its
/// attribute [`NUMBER`] holds is in place. Both have one type and one shape. For models in memory alone; the built-in runtime has it.
pub const ALTERNATIVE: &str = "Alternative";
/// See [`ALTERNATIVE`] and [`ROUNDED`].
pub const NUMBER: &str = "number";

/// The operator that rounds numbers to those of 16-bit floats, of the type whose number is in [`NUMBER`], and makes 32-bit floats.
/// For models in memory alone; the built-in runtime has it.
pub const ROUNDED: &str = "RoundedTo";

/// What [`Session::run_trials`] calls with the number of a trial and what the model then answers.
pub type Judge<'a> = dyn FnMut(usize, &[Tensor]) -> Result<()> + 'a;

/// What [`Session::run_observed`] calls.
pub type Observer<'a> = dyn FnMut(usize, &dyn Observed) -> Result<()> + 'a;

/// A value of the running model.
pub trait Observed {
    /// Element type.
    fn dtype(&self) -> DType;
    /// Shape.
    fn dims(&self) -> &[usize];
    /// The elements of a floating point value, without a copy where they are 32 bits wide.
    fn floats(&self) -> Result<Cow<'_, [f32]>>;
    /// A copy.
    fn to_tensor(&self) -> Result<Tensor>;
}
