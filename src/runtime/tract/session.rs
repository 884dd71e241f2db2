//! A loaded model and its plans by input shapes.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tract_onnx::prelude::{DatumType, InferenceModel, Tensor as TractTensor};

use super::{
    failure::{Failure, Operators},
    plan::{Key, Plan, Stop},
    tensors,
};
use crate::{
    error::{Error, Result},
    ir::{Model, Tensor, ValueId},
    runtime::{
        Judge, Observer, Session, Trials,
        inputs::{self, Input},
    },
};

/// Plans kept at most, and bytes of weights in them: each plan holds its own packed copy.
const MOST_PLANS: usize = 32;
const MOST_BYTES: usize = 512 << 20;

/// Inputs with at most this many elements may become constants of a plan, where it cannot be made otherwise.
const SMALL: usize = 8;

type Slot = Arc<OnceLock<Result<Plan, Failure>>>;

pub(super) struct TractSession {
    /// To parse it again: the tensors are shared with the caller's.
    model: Model,
    observe: Vec<ValueId>,
    parsed: Mutex<Parsed>,
    inputs: Vec<Input>,
    outputs: usize,
    operators: Operators,
    plans: Mutex<Vec<(Key, Slot)>>,
    most_plans: usize,
}

/// The model as tract parsed it.
enum Parsed {
    /// For the first plan.
    Fresh(Box<InferenceModel>),
    /// The first plan has it.
    Gone,
    /// Input shapes change: for all further plans.
    Kept(Box<InferenceModel>),
}

impl TractSession {
    pub(super) fn new(model: &Model, observe: &[ValueId], parsed: InferenceModel) -> Self {
        let weights: usize =
            model.value_ids().iter().filter_map(|&v| model.value(v).initializer()).map(Tensor::byte_len).sum();
        Self {
            inputs: Input::of(model),
            outputs: parsed.outputs.len() - observe.len(),
            operators: Operators::of(model),
            plans: Mutex::default(),
            most_plans: (MOST_BYTES / weights.max(1)).clamp(2, MOST_PLANS),
            model: model.clone(),
            observe: observe.to_vec(),
            parsed: Mutex::new(Parsed::Fresh(Box::new(parsed))),
        }
    }

    fn parsed(&self) -> Result<InferenceModel, Failure> {
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *parsed, Parsed::Gone) {
            Parsed::Fresh(model) => Ok(*model),
            Parsed::Kept(model) => {
                let copy = (*model).clone();
                *parsed = Parsed::Kept(model);
                Ok(copy)
            }
            Parsed::Gone => {
                let model = super::parse(&self.model, &self.observe).map_err(|e| Failure::reading(&e))?;
                *parsed = Parsed::Kept(Box::new(model.clone()));
                Ok(model)
            }
        }
    }

    /// The plan for a key, made by the first thread that asks; others wait for it.
    fn plan(&self, key: Key, types: &[DatumType]) -> Slot {
        let slot = {
            let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = match plans.iter().position(|(k, _)| *k == key) {
                Some(i) => plans.remove(i).1,
                None => Slot::default(),
            };
            plans.push((key.clone(), slot.clone()));
            if plans.len() > self.most_plans {
                plans.remove(0);
            }
            slot
        };
        slot.get_or_init(|| {
            log::debug!("tract: a plan for shapes {:?}", key.shapes);
            Plan::new(&|| self.parsed(), types, self.outputs, &key)
        });
        slot
    }
}

impl TractSession {
    /// Does `work` with the plan for these inputs, and with the inputs as tract has them.
    fn planned<T>(&self, inputs: &[Tensor], work: impl FnOnce(&Plan, &[TractTensor]) -> Result<T, Stop>) -> Result<T> {
        inputs::check(&self.inputs, inputs)?;
        let named = |(input, t): (&Input, &Tensor)| tensors::to_tract(t).map_err(|e| e.value(&input.name));
        let fed: Vec<_> = self.inputs.iter().zip(inputs).map(named).collect::<Result<_>>()?;
        let types: Vec<DatumType> = fed.iter().map(|t| t.datum_type()).collect();
        let shapes = inputs.iter().map(|t| t.dims().to_vec()).collect();
        let key = Key { shapes, constants: vec![None; fed.len()] };
        let mut slot = self.plan(key.clone(), &types);
        if let Some(Err(_)) = slot.get() {
            // A branch or a shape may hang on what a small input holds (a sampling rate, a length).
            let small = |t: &Tensor| t.dtype().is_integer() && t.rank() <= 1 && t.len() <= SMALL;
            let held = inputs.iter().zip(&fed).map(|(t, f)| small(t).then(|| Arc::new(f.clone())));
            let held: Vec<_> = held.collect();
            if held.iter().any(Option::is_some) {
                let other = self.plan(Key { constants: held, ..key }, &types);
                if let Some(Ok(_)) = other.get() {
                    slot = other;
                }
            }
        }
        let plan = match slot.get() {
            Some(Ok(plan)) => plan,
            Some(Err(failure)) => return Err(failure.clone().into_error(&self.operators)),
            None => return Err(Error::bug("a plan was not made")),
        };
        work(plan, &fed).map_err(|stop| match stop {
            Stop::Failed(failure) => failure.into_error(&self.operators),
            Stop::Observer(error) => error,
        })
    }
}

impl Session for TractSession {
    fn run_observed(&self, inputs: &[Tensor], observer: &mut Observer<'_>) -> Result<Vec<Tensor>> {
        let outputs = self.planned(inputs, |plan, fed| plan.run(fed, observer))?;
        outputs.iter().map(|t| tensors::from_tract(t)).collect()
    }

    fn run_trials(&self, inputs: &[Tensor], trials: &Trials, judge: &mut Judge<'_>) -> Result<Vec<Tensor>> {
        let outputs = self.planned(inputs, |plan, fed| {
            plan.run_trials(fed, trials, &mut |number, outputs| {
                let outputs: Vec<Tensor> = outputs.iter().map(|t| tensors::from_tract(t)).collect::<Result<_>>()?;
                judge(number, &outputs)
            })
        })?;
        outputs.iter().map(|t| tensors::from_tract(t)).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        ir::{
            DType, NodeSpec, Place, Tensor,
            testing::{find, model},
        },
        runtime::{Runtime, Session, tract::Tract},
    };

    fn load(text: &str) -> Box<dyn Session> {
        Tract.load(&model(text), &[]).unwrap()
    }

    fn floats(values: &[f32]) -> Tensor {
        Tensor::from_f32(&[values.len()], values)
    }

    #[test]
    fn runs_on_any_shape_the_model_allows() {
        let session = load("float[n] x \n float[1] one = {1} \n y = Add(x, one) \n return y");
        for n in [1, 3, 2, 3] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let want: Vec<f32> = x.iter().map(|x| x + 1.0).collect();
            assert_eq!(session.run(&[floats(&x)]).unwrap()[0].to_f32().unwrap(), want);
        }
    }

    /// As where a quantized node bears the name of the output that its DequantizeLinear makes now.
    #[test]
    fn names_that_nodes_share_with_others() {
        let mut m =
            model("float[2] x \n float[1] one = {1} \n a = Neg(x) \n b = Add(a, one) \n y = Neg(b) \n return y");
        for (value, name) in [("a", "y"), ("b", "x"), ("y", "")] {
            let node = m.producer(find(&m, value)).unwrap();
            m.node_mut(node).name = Some(name.to_owned());
        }
        let session = Tract.load(&m, &[find(&m, "b")]).unwrap();
        assert_eq!(session.run(&[floats(&[1.0, -3.0])]).unwrap()[0].to_f32().unwrap(), [0.0, -4.0]);
    }

    #[test]
    fn wrong_data_is_named() {
        let session = load("float[2,n] x \n y = Neg(x) \n return y");
        let error = |t: Tensor| session.run(&[t]).unwrap_err().to_string();
        assert_eq!(error(floats(&[1.0])), r#"value "x": the model's input has shape [2, n], the data [1]"#);
        let want = r#"value "x": the model's input is of type float, the data of type int64"#;
        assert_eq!(error(Tensor::from_i64(&[2, 1], &[1, 2])), want);
        assert_eq!(session.run(&[]).unwrap_err().to_string(), "the model has 1 inputs, 0 tensors were given");
    }

    #[test]
    fn unknown_operators_are_named_before_anything_runs() {
        let m = model("float[2] x \n y = Frobnicate(x) \n z = Wobble(y) \n return z");
        let error = Tract.load(&m, &[]).err().unwrap();
        assert_eq!(
            error.to_string(),
            r#"node "y" (Frobnicate): the built-in runtime does not have this operator (nor Wobble)"#
        );
        assert!(error.help_text().is_some());
    }

    #[test]
    fn a_failure_names_the_node() {
        let session = load("float[2] x \n int64[1] s = {3} \n y = Neg(x) \n z = Reshape(y, s) \n return z");
        let error = session.run(&[floats(&[1.0, 2.0])]).unwrap_err();
        assert_eq!(error.at().op.as_deref(), Some("Reshape"), "{error}");
    }

    #[test]
    fn observes_values_constants_inputs_and_outputs_once() {
        let m = model(
            "float[2] x \n float[2] w = {3, 4} \n a = Add(x, w) \n b = Relu(a) \n c = Mul(b, b) \n d = Neg(a) \n return c",
        );
        let watch = ["a", "b", "c", "d", "x", "w"].map(|name| find(&m, name));
        let session = Tract.load(&m, &watch).unwrap();
        let mut seen = vec![Vec::new(); watch.len()];
        let outputs = session.run_observed(&[floats(&[-5.0, 1.0])], &mut |i, value| {
            assert_eq!((value.dtype(), value.dims()), (DType::Float, &[2][..]));
            assert!(seen[i].is_empty(), "value {i} came twice");
            seen[i] = value.floats()?.into_owned();
            Ok(())
        });
        assert_eq!(outputs.unwrap()[0].to_f32().unwrap(), [0.0, 25.0]);
        let want = [[-2.0, 5.0], [0.0, 5.0], [0.0, 25.0], [2.0, -5.0], [-5.0, 1.0], [3.0, 4.0]];
        assert_eq!(seen, want.map(|w| w.to_vec()));
        let stop = session.run_observed(&[floats(&[1.0, 1.0])], &mut |_, _| Err(crate::Error::data("enough")));
        assert_eq!(stop.unwrap_err().to_string(), "enough");
    }

    #[test]
    fn a_branch_that_is_not_taken_does_not_matter() {
        // Squeezes if the first dim is 1: the branches differ in rank.
        let mut m = model(
            "float[n,2] x \n int64[1] zero = {0} \n int64[1] one = {1} \n s = Shape(x) \n d = Gather(s, zero) \n \
             c = Equal(d, one)",
        );
        let (x, c, zero) = (find(&m, "x"), find(&m, "c"), find(&m, "zero"));
        let mut bodies = Vec::new();
        for op in ["Squeeze", "Identity"] {
            let g = m.add_graph();
            let inputs = if op == "Squeeze" { vec![Some(x), Some(zero)] } else { vec![Some(x)] };
            let n = m.insert(NodeSpec::new(op).inputs(inputs).output(format!("{op}_out")), Place::End(g));
            let out = m.node(n).output(0).unwrap();
            m.add_output(g, out);
            bodies.push(g);
        }
        let spec =
            NodeSpec::new("If").input(c).output("y").attr("then_branch", bodies[0]).attr("else_branch", bodies[1]);
        let main = m.main();
        let n = m.insert(spec, Place::End(main));
        let y = m.node(n).output(0).unwrap();
        m.add_output(main, y);
        let session = Tract.load(&m, &[]).unwrap();
        for (dims, want) in [([1, 2], &[2][..]), ([2, 2], &[2, 2])] {
            let x = Tensor::from_f32(&dims, &vec![1.5; dims[0] * dims[1]]);
            assert_eq!(session.run(&[x]).unwrap()[0].dims(), want);
        }
    }

    #[test]
    fn threads_share_plans() {
        let session = load("float[n] x \n y = Relu(x) \n return y");
        std::thread::scope(|scope| {
            for t in 0..4 {
                let session = &session;
                scope.spawn(move || {
                    for n in 1..40 {
                        let x = vec![t as f32; n];
                        assert_eq!(session.run(&[floats(&x)]).unwrap()[0].to_f32().unwrap(), x);
                    }
                });
            }
        });
    }
}
