//! A loaded model. ONNX Runtime's sessions run one sample at a time, so there may be several of them.

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, PoisonError},
};

use ort::session::Session as OrtSession;

use super::{
    OnnxRuntime, Purpose,
    failure::{Doing, guard},
    source::{self, Source},
    tensors::{self, Known, Value},
};
use crate::{
    error::{Error, Result},
    ir::{Model, Tensor, ValueId},
    runtime::{
        Observer, Session,
        inputs::{self, Input},
    },
};

/// Bytes of weights in all sessions of a model: each holds its own packed copy.
const MOST_BYTES: usize = 512 << 20;

pub(super) struct Sessions {
    runtime: OnnxRuntime,
    source: Source,
    /// Threads of each session.
    threads: usize,
    idle: Mutex<Idle>,
    returned: Condvar,
    inputs: Vec<Input>,
    outputs: Vec<String>,
    /// What each observed value is to the runtime.
    observed: Vec<Watched>,
}

struct Idle {
    sessions: Vec<OrtSession>,
    /// How many more may be made.
    left: usize,
}

enum Watched {
    /// The required input of this number.
    Input(usize),
    Constant(Tensor),
    Output(String),
}

impl Sessions {
    pub(super) fn new(runtime: &OnnxRuntime, model: &Model, observe: &[ValueId]) -> Result<Self> {
        let required = model.required_inputs();
        let outputs: Vec<ValueId> = model.graph(model.main()).outputs().to_vec();
        let mut extended = model.clone();
        let mut observed = Vec::new();
        for &v in observe {
            let value = model.value(v);
            observed.push(if let Some(i) = required.iter().position(|&input| input == v) {
                Watched::Input(i)
            } else if let Some(constant) = value.initializer() {
                Watched::Constant(constant.clone())
            } else {
                if !extended.graph(extended.main()).outputs().contains(&v) {
                    extended.add_output(extended.main(), v);
                }
                Watched::Output(value.name().to_owned())
            });
        }
        let cores = rayon::current_num_threads();
        let most = (MOST_BYTES / source::weights(model).max(1)).clamp(1, cores);
        let made = Self {
            runtime: runtime.clone(),
            source: Source::new(&extended)?,
            threads: cores / most,
            idle: Mutex::new(Idle { sessions: Vec::new(), left: most }),
            returned: Condvar::new(),
            inputs: Input::of(model),
            outputs: outputs.iter().map(|&v| model.value(v).name().to_owned()).collect(),
            observed,
        };
        // What the runtime refuses is said now, not at the first sample.
        let first = made.take()?;
        made.give(first);
        Ok(made)
    }

    /// An idle session, a new one, or the next that comes back.
    fn take(&self) -> Result<OrtSession> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(session) = idle.sessions.pop() {
                return Ok(session);
            }
            if idle.left > 0 {
                idle.left -= 1;
                drop(idle);
                return self.source.load(self.runtime.builder(self.threads, Purpose::Answers)?).inspect_err(|_| {
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).left += 1;
                    self.returned.notify_one();
                });
            }
            idle = self.returned.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give(&self, session: OrtSession) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).sessions.push(session);
        self.returned.notify_one();
    }

    fn run_in(&self, session: &mut OrtSession, given: &[Tensor], observer: &mut Observer<'_>) -> Result<Vec<Tensor>> {
        let feed = |(input, t): (&Input, &Tensor)| {
            Ok((input.name.clone(), tensors::to_ort(t).map_err(|e| e.value(&input.name))?))
        };
        let feeds = self.inputs.iter().zip(given).map(feed).collect::<Result<Vec<_>>>()?;
        let mut given_out = guard(Doing::Run, || session.run(feeds))?;
        let missing = |name: &str| Error::runtime("ONNX Runtime gave no such output").value(name);
        // An output that is listed twice is one value.
        let mut outputs = BTreeMap::new();
        for name in &self.outputs {
            let value = given_out.get(name).ok_or_else(|| missing(name))?;
            if !outputs.contains_key(name) {
                outputs.insert(name, tensors::from_ort(value).map_err(|e| e.value(name))?);
            }
        }
        for (number, watched) in self.observed.iter().enumerate() {
            match watched {
                Watched::Input(i) => observer(number, &Known(&given[*i]))?,
                Watched::Constant(tensor) => observer(number, &Known(tensor))?,
                Watched::Output(name) => {
                    let value = given_out.remove(name).ok_or_else(|| missing(name))?;
                    observer(number, &Value::new(&value).map_err(|e| e.value(name))?)?;
                }
            }
        }
        Ok(self.outputs.iter().filter_map(|name| outputs.get(name).cloned()).collect())
    }
}

impl Session for Sessions {
    fn run_observed(&self, given: &[Tensor], observer: &mut Observer<'_>) -> Result<Vec<Tensor>> {
        inputs::check(&self.inputs, given)?;
        let mut session = self.take()?;
        let done = self.run_in(&mut session, given, observer);
        self.give(session);
        done
    }
}
