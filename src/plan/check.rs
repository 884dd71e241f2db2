//! Whether a plan that was given can be carried out on a model and means what it says.

use super::{Form, NodePlan, Plan, averages, few_bits, named_values};
use crate::{
    analysis::types::{self, Types},
    error::{Error, Result},
    ir::{DType, Model, NodeId, Tensor, ValueId},
    ops::{self, Role},
    quant::{float8::Float8, integer::mean_scale, params::type_range, saturation::Pairs},
    target::{Output, Target},
    weights,
};

impl Plan {
    /// Refuses a plan for another target, and entries that the model or the target's kernels contradict: they would give
    /// a file that computes something else than the plan says, or nothing in integers.
    pub fn check(&self, model: &Model, target: &Target) -> Result<()> {
        if self.target != target.name {
            return Err(Error::config(format!("the plan is for target {:?}, not {:?}", self.target, target.name))
                .help("make the plan again, or name its target with --target"));
        }
        if let Some(cpu) = self.cpu.as_ref().filter(|cpu| target.cpus().all(|c| c != cpu.as_str())) {
            let known: Vec<_> = target.cpus().collect();
            return Err(Error::config(format!(
                "the plan is for cpu {cpu:?}, which target {:?} does not know",
                target.name
            ))
            .help(format!("cpus that it knows: {}", known.join(", "))));
        }
        for (name, a) in &self.activations {
            let float = Float8::of(a.dtype).map(|_| (0, 0));
            let (least, most) = float.map_or_else(|| type_range(a.dtype), Ok).map_err(|e| e.value(name))?;
            if !(least..=most).contains(&a.zero_point) {
                let text = match float {
                    Some(_) => format!("zero_point is {}, that of type {} is 0", a.zero_point, a.dtype),
                    None => {
                        format!("zero_point is {}, codes of type {} go from {least} to {most}", a.zero_point, a.dtype)
                    }
                };
                return Err(Error::config(text).value(name));
            }
            if let Some([low, high]) = a.clip.filter(|[low, high]| !(least <= *low && low <= high && *high <= most)) {
                let text = format!("clip is [{low}, {high}], codes of type {} go from {least} to {most}", a.dtype);
                return Err(Error::config(text).value(name));
            }
            if !(a.scale.is_finite() && a.scale > 0.0) {
                return Err(Error::config(format!("scale is {}, must be above 0", a.scale)).value(name));
            }
        }
        for (name, algorithm) in self.algorithms() {
            weights::by_name(algorithm).map_err(|e| e.value(name))?;
        }
        for (name, s) in &self.stored_weights {
            if !matches!(s.dtype, DType::Int8 | DType::Float16 | DType::Bfloat16) {
                let text = format!("a stored weight is of type int8, float16 or bfloat16, the plan says {}", s.dtype);
                return Err(Error::config(text).value(name));
            }
        }
        for (name, p) in &self.packed_weights {
            if !matches!(p.bits, 1 | 2 | 4) || p.block_size == 0 {
                let text = format!(
                    "a packed weight has 1, 2 or 4 bits and blocks, the plan says {} and {}",
                    p.bits, p.block_size
                );
                return Err(Error::config(text).value(name));
            }
            if weights::by_name(&p.algorithm).map_err(|e| e.value(name))?.blocks.is_none() {
                return Err(Error::config(format!("{} does not round blocks", p.algorithm)).value(name));
            }
        }
        if let Some(halves) = self.halves.as_ref().filter(|h| !matches!(h.dtype, DType::Float16 | DType::Bfloat16)) {
            let text = format!("halves are of type float16 or bfloat16, the plan says {}", halves.dtype);
            return Err(Error::config(text));
        }
        let (names, types) = (named_values(model), types::infer(model));
        for (name, entry) in &self.nodes {
            // Names that the model does not have are reported where the plan is carried out.
            let Some(id) = names.get(name.as_str()).and_then(|&v| model.producer(v)) else { continue };
            let node = model.node(id);
            if node.op_type != entry.op {
                return Err(self.wrong(
                    name,
                    entry,
                    &format!("the model has a node of operator {} there", node.op_type),
                ));
            }
            match entry.becomes {
                Form::Integer => {
                    self.check_integer(model, target, name, entry, id)?;
                    self.check_average(model, &types, name, entry, id)?;
                }
                Form::Absorbed => self.check_absorbed(model, name, entry, id)?,
                Form::Dynamic => self.check_dynamic(model, target, name, entry, id)?,
                Form::WeightOnly => few_bits::refuse(model, target, entry, id).map_err(|e| {
                    let text = format!("it cannot be weight-only: {}", e.message());
                    self.wrong(name, entry, &text).help("let the node be float")
                })?,
                Form::Half if self.halves.is_none() => {
                    let text = "it is to compute in 16-bit floats, but the plan does not say in which";
                    return Err(self.wrong(name, entry, text).help("add halves: {dtype: float16}"));
                }
                Form::Half => self.check_half(model, name, entry, id)?,
                Form::Float8 => self.check_float8(model, target, name, entry, id)?,
                Form::Float => {}
            }
        }
        Ok(())
    }

    fn check_float8(&self, model: &Model, target: &Target, name: &str, entry: &NodePlan, id: NodeId) -> Result<()> {
        let node = model.node(id);
        let cannot = |why: &str| {
            let text = format!("it cannot stand between floats of 8 bits: {why}");
            self.wrong(name, entry, &text).help("let the node be float")
        };
        let Some(spec) = ops::spec(model, id).filter(|_| target.float8.takes(node)) else {
            return Err(cannot(&format!("{} takes no {} there", target.name, node.op_type)));
        };
        for (i, v) in node.inputs().iter().enumerate() {
            let Some(v) = v.filter(|_| matches!(spec.role(i), Role::Data | Role::Weight)) else { continue };
            if let Some(tensor) = model.value(v).constant().filter(|_| spec.role(i) == Role::Weight) {
                let Some(plan) = &entry.weight else {
                    return Err(cannot("the plan does not say how its weight is quantized"));
                };
                if Float8::of(plan.dtype).is_none() {
                    return Err(cannot(&format!("the plan has a weight of type {}", plan.dtype)));
                }
                let channels = spec.weight_axis(node, tensor.rank());
                if plan.axis.is_some() && plan.axis != channels {
                    let want = channels.map_or("none".into(), |a| a.to_string());
                    let have = plan.axis.unwrap_or_default();
                    let text = format!("axis of its weight is {have}, the axis of its output channels is {want}");
                    return Err(self.wrong(name, entry, &text));
                }
                continue;
            }
            let value = model.value(v);
            match self.activations.get(value.name()) {
                _ if value.constant().is_some() => {}
                Some(a) if Float8::of(a.dtype).is_some() => {}
                Some(a) => return Err(cannot(&format!("its input {:?} is of type {}", value.name(), a.dtype))),
                None => return Err(cannot(&format!("its input {:?} is not quantized", value.name()))),
            }
        }
        Ok(())
    }

    fn check_half(&self, model: &Model, name: &str, entry: &NodePlan, id: NodeId) -> Result<()> {
        match ops::half_refused(model, id) {
            Some(why) => Err(self
                .wrong(name, entry, &format!("it cannot compute in 16-bit floats: {why}"))
                .help("let the node be float")),
            None => Ok(()),
        }
    }

    fn check_dynamic(&self, model: &Model, target: &Target, name: &str, entry: &NodePlan, id: NodeId) -> Result<()> {
        let node = model.node(id);
        let spec = ops::spec(model, id);
        let rank =
            spec.and_then(|s| s.index_of(Role::Weight)).and_then(|i| model.constant_input(id, i)).map(Tensor::rank);
        let channels = spec.zip(rank).and_then(|(s, rank)| s.weight_axis(node, rank));
        let axis = entry.weight.as_ref().and_then(|w| w.axis);
        let why = match target.dynamic_kernel(model, id) {
            Some(Ok(_)) if axis.is_none() || axis == channels => return Ok(()),
            Some(Ok(_)) => {
                let want = channels.map_or("none".into(), |a| a.to_string());
                format!("axis of its weight is {}, the axis of its output channels is {want}", axis.unwrap_or_default())
            }
            Some(Err(reason)) => reason,
            None => format!("no kernel of {} quantizes its data at run time", target.name),
        };
        let text = format!("it cannot become dynamic: {why}");
        Err(self.wrong(name, entry, &text).help("let the node be integer or float"))
    }

    fn wrong(&self, name: &str, entry: &NodePlan, text: &str) -> Error {
        let label = entry.name.clone().unwrap_or_else(|| name.to_owned());
        Error::config(text).node(label, &entry.op).value(name)
    }

    fn check_integer(&self, model: &Model, target: &Target, name: &str, entry: &NodePlan, id: NodeId) -> Result<()> {
        let kernel = target
            .kernel(model, id)
            .map_err(|reason| self.wrong(name, entry, &format!("it cannot become integer: {reason}")))?;
        let Some(spec) = ops::spec(model, id) else { return Ok(()) };
        let node = model.node(id);
        let quantized = |v: ValueId| self.activations.contains_key(model.value(v).name());
        for (i, input) in node.inputs().iter().enumerate() {
            let data = input.filter(|&v| spec.role(i) == Role::Data && model.value(v).constant().is_none());
            if let Some(v) = data.filter(|&v| !quantized(v)) {
                let text = format!("it is integer, but its input {:?} is not quantized", model.value(v).name());
                return Err(self
                    .wrong(name, entry, &text)
                    .help("add the value to activations, or let the node be float"));
            }
        }
        let weight = spec.index_of(Role::Weight).and_then(|i| model.constant_input(id, i));
        if let Some(tensor) = weight {
            let Some(plan) = &entry.weight else {
                return Err(self.wrong(
                    name,
                    entry,
                    "it is integer, but the plan does not say how its weight is quantized",
                ));
            };
            let channels = spec.weight_axis(node, tensor.rank());
            if plan.axis.is_some() && plan.axis != channels {
                let (have, want) = (plan.axis.unwrap_or_default(), channels.map_or("none".into(), |a| a.to_string()));
                let text = format!("axis of its weight is {have}, the axis of its output channels is {want}");
                return Err(self.wrong(name, entry, &text));
            }
            if !matches!(plan.dtype, DType::Int8 | DType::Uint8) {
                let text = format!("its weight is of type {}, kernels take int8 and uint8", plan.dtype);
                return Err(self.wrong(name, entry, &text));
            }
            if !plan.pair_axes.is_empty() {
                Pairs::along(tensor.dims(), &plan.pair_axes).map_err(|e| self.wrong(name, entry, e.message()))?;
            }
        }
        let end = node.output(0).map(|v| self.behind_absorbed(model, v));
        if kernel.output == Output::Required && !end.is_some_and(quantized) {
            let text = "it is integer, but its output is not quantized, without which it has no integer kernel";
            return Err(self.wrong(name, entry, text).help("add the value to activations, or let the node be float"));
        }
        Ok(())
    }

    /// Refuses scales with which the kernel of an average loads and does not run.
    fn check_average(&self, model: &Model, types: &Types, name: &str, entry: &NodePlan, id: NodeId) -> Result<()> {
        let scale = |v: ValueId| self.activations.get(model.value(v).name()).map(|a| a.scale);
        let node = model.node(id);
        let made = node.output(0).map(|v| self.behind_absorbed(model, v)).and_then(scale);
        let around = node.input(0).and_then(scale).zip(made).zip(averages::averaged(model, types, id));
        match around.map(|((x, y), count)| mean_scale(x, y, count)) {
            Some(Err(e)) => {
                let text = format!("its kernel would not run: {}", e.message());
                Err(self
                    .wrong(name, entry, &text)
                    .help("change the scale of its output; sizes that are not known count as 1"))
            }
            _ => Ok(()),
        }
    }

    fn check_absorbed(&self, model: &Model, name: &str, entry: &NodePlan, id: NodeId) -> Result<()> {
        let Some((lo, hi)) = ops::clamp_bounds(model, id) else {
            return Err(self.wrong(name, entry, "only a clamp can be absorbed"));
        };
        // Clamps of quantizers that go for another reason, which the plan then gives.
        if entry.reason.is_some() {
            return Ok(());
        }
        let maker = model.node(id).input(0).and_then(|v| Some((v, model.producer(v)?)));
        let form = maker.and_then(|(v, _)| self.nodes.get(model.value(v).name())).map(|n| n.becomes);
        if !matches!(form, Some(Form::Integer | Form::Absorbed)) {
            let text = "it is absorbed, but the node before it is not integer";
            return Err(self.wrong(name, entry, text).help("let this node be float, too"));
        }
        let end = model.node(id).output(0).map(|v| self.behind_absorbed(model, v));
        let Some(a) = end.and_then(|v| self.activations.get(model.value(v).name())) else {
            return Err(self.wrong(name, entry, "it is absorbed, but its output is not quantized"));
        };
        let (least, most) = a.clip.map_or_else(|| type_range(a.dtype), |[low, high]| Ok((low, high)))?;
        let real = |code: i32| f64::from(code.wrapping_sub(a.zero_point)) * f64::from(a.scale);
        let step = f64::from(a.scale) * 0.75;
        if real(least) < f64::from(lo) - step || real(most) > f64::from(hi) + step {
            let text = format!(
                "it is absorbed and cuts at {lo} and {hi}, but the codes of its output go from {} to {}",
                real(least) as f32,
                real(most) as f32
            );
            return Err(self.wrong(name, entry, &text).help("change scale and zero_point, or let this node be float"));
        }
        Ok(())
    }

    /// The value that stands for `value` once the absorbed clamps behind it are gone.
    fn behind_absorbed(&self, model: &Model, mut value: ValueId) -> ValueId {
        for _ in 0..self.nodes.len() {
            let reader = model.value(value).readers().next().filter(|r| r.1 == 0);
            let next = reader.and_then(|(n, _)| model.node(n).output(0));
            let absorbed =
                |v: &ValueId| self.nodes.get(model.value(*v).name()).is_some_and(|n| n.becomes == Form::Absorbed);
            match next.filter(absorbed) {
                Some(v) => value = v,
                None => break,
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::testing::model,
        plan::{Activation, Readers, Weight},
    };

    type Change<'a> = &'a dyn Fn(&mut Plan);

    fn plan() -> (Model, Plan, Target) {
        let m = model("float[1,1,2] x \n float[1,1,1] w = {2} \n c = Conv(x, w) \n r = Relu(c) \n return r");
        let target = Target::load("onnxruntime-cpu").unwrap();
        let mut plan = Plan { target: target.name.clone(), ..Plan::default() };
        let a = Activation { dtype: DType::Uint8, scale: 0.1, zero_point: 0, clip: None, readers: Readers::All };
        plan.activations.insert("x".into(), a.clone());
        plan.activations.insert("r".into(), a);
        let weight = Some(Weight {
            dtype: DType::Int8,
            axis: Some(0),
            symmetric: true,
            reduce_range: false,
            pair_axes: Vec::new(),
            learned: false,
            algorithm: "rtn".into(),
        });
        let node = |op: &str, becomes, weight| NodePlan { weight, ..NodePlan::new(None, op, becomes) };
        plan.nodes.insert("c".into(), node("Conv", Form::Integer, weight));
        plan.nodes.insert("r".into(), node("Relu", Form::Absorbed, None));
        (m, plan, target)
    }

    #[test]
    fn averages_whose_kernel_would_not_run_are_refused() {
        let m = model("float[1,2,4,4] x \n y = GlobalAveragePool(x) \n return y");
        let target = Target::load("onnxruntime-cpu").unwrap();
        let mut plan = Plan { target: target.name.clone(), ..Plan::default() };
        let a = |scale| Activation { dtype: DType::Uint8, scale, zero_point: 0, clip: None, readers: Readers::All };
        plan.activations.insert("x".into(), a(0.1));
        let entry = "{op: GlobalAveragePool, becomes: integer, kernel: QLinearGlobalAveragePool}";
        plan.nodes.insert("y".into(), serde_yaml::from_str(entry).unwrap());
        for (scale, good) in [(0.1, true), (0.1 / 16.0 / 255.0, true), (0.1 / 16.0 / 257.0, false)] {
            plan.activations.insert("y".into(), a(scale));
            let said = plan.check(&m, &target).map_err(|e| e.to_string());
            assert_eq!(said.is_ok(), good, "{said:?}");
            assert!(good || said.unwrap_err().contains("would not run: an average over 16 elements"));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let (m, good, target) = plan();
        good.check(&m, &target).unwrap();
        let refused = |change: &dyn Fn(&mut Plan)| {
            let mut p = good.clone();
            change(&mut p);
            p.check(&m, &target).unwrap_err().to_string()
        };
        let node = |p: &mut Plan, name: &str, f: &dyn Fn(&mut NodePlan)| f(p.nodes.get_mut(name).unwrap());
        let cases: [(Change, &str); 13] = [
            (
                &|p| {
                    node(p, "c", &|n| n.becomes = Form::Float);
                    node(p, "r", &|n| n.becomes = Form::Dynamic);
                },
                "no kernel of onnxruntime-cpu",
            ),
            (
                &|p| {
                    node(p, "c", &|n| {
                        n.becomes = Form::Dynamic;
                        n.weight.as_mut().unwrap().axis = Some(1);
                    });
                },
                "cannot become dynamic: axis of its weight is 1",
            ),
            (&|p| p.target = "foo".into(), "\"foo\""),
            (&|p| p.cpu = Some("z80".into()), "\"z80\""),
            (&|p| node(p, "c", &|n| n.weight.as_mut().unwrap().pair_axes = vec![2, 3]), "axes [2, 3]"),
            (&|p| p.activations.get_mut("r").unwrap().zero_point = 300, "300"),
            (&|p| p.activations.get_mut("r").unwrap().zero_point = 128, "from -12.8 to 12.7"),
            (&|p| p.activations.get_mut("r").unwrap().scale = 0.0, "scale is 0"),
            (&|p| node(p, "c", &|n| n.weight.as_mut().unwrap().axis = Some(1)), "axis of its weight is 1"),
            (&|p| node(p, "c", &|n| n.op = "MatMul".into()), "operator Conv"),
            (&|p| node(p, "c", &|n| n.becomes = Form::Float), "not integer"),
            (&|p| p.activations.retain(|name, _| name != "x"), "\"x\" is not quantized"),
            (&|p| p.activations.retain(|name, _| name != "r"), "not quantized"),
        ];
        for (change, words) in cases {
            let text = refused(change);
            assert!(text.contains(words), "{text:?} without {words:?}");
        }
    }
}
